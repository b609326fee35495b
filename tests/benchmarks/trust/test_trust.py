"""`python -m benchmarks.trust`: tests are counted, and lines are shown."""

import pytest

from benchmarks.common import record
from benchmarks.trust import __main__ as trust
from benchmarks.trust import report
from benchmarks.trust.families import FAMILIES, Family

CASES = """
import pytest
def test_one(record_property):
    record_property("refused", 40)
    record_property("trained", 2)
@pytest.mark.parametrize("x", range(3))
def test_two(x):
    pass
def test_lost():
    assert False
@pytest.mark.skip
def test_not_here():
    pass
"""


def test_a_family_is_counted_from_its_tests(tmp_path, capfd):
    (tmp_path / "test_cases.py").write_text(CASES)
    for number in range(2):  # the newest line is the one that is shown
        tests = (str(tmp_path / "test_cases.py"),)
        trust.run(Family("faults", f"number {number}", tests), tmp_path)
    capfd.readouterr()
    assert trust.main(["show", "--output", str(tmp_path)]) == 0
    *_, row, total = capfd.readouterr().out.splitlines()
    ends = "40 refused, 2 trained, 3 as the test says, 1 failed"
    assert row.startswith(f"| faults | number 1 | 46 | {ends} | 1 | `/")
    assert total == "| all |  | 46 |  | 1 |  |"
    first, _ = record.read(tmp_path / "trust.jsonl")
    assert first["losses"] == 1


def test_no_cases_are_no_line(tmp_path):
    for outcomes, losses in (({}, 0), ({"fine": 1}, 2), ({"fine": 1}, -1)):
        with pytest.raises(ValueError, match="`losses` must be among"):
            report.append(tmp_path, "x", "y", outcomes, losses=losses, by="z")


def test_every_family_has_a_line_and_its_tests_are_there():
    entries = report.newest(record.read(record.COMMITTED / "trust.jsonl"))
    known = {entry["family"]: entry for entry in entries}
    for family in FAMILIES:
        assert all((record.REPOSITORY / path).is_file() for path in family.tests)
        assert known[family.name]["by"].split() == list(family.tests)
        assert known[family.name]["tried"] == family.tried


def test_nothing_was_lost():
    for entry in report.newest(record.read(record.COMMITTED / "trust.jsonl")):
        assert entry["losses"] == 0, entry["family"]
        assert sum(entry["outcomes"].values()) == entry["num_cases"]
