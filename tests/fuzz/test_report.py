"""The table of random cases, from two lines and a third that one of them replaces."""

from tests.fuzz.report import table

OLD = {"seed": 1, "outcomes": {"norms": {"FAULT": 7}}}
LINES = [
    {"seed": 0, "outcomes": {"norms": {"agrees": 999, "FAULT": 1}}},
    OLD,
    {"seed": 1, "outcomes": {"norms": {"agrees": 1}, "gluon": {"refused": 2}}},
]


def test_the_newest_of_each_seed_and_family_counts():
    _, _, gluon, norms, everything = table(LINES).splitlines()
    assert gluon == "| gluon | 2 | 0 | 0 | 0 | 0 | 2 | 0 |"
    assert norms == "| norms | 1,001 | 1,000 | 0 | 0 | 0 | 0 | 1 |"
    assert everything == "| all | 1,003 | 1,000 | 0 | 0 | 0 | 2 | 1 |"
