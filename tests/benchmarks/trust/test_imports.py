"""`python -m benchmarks.trust.imports`: pairs of processes are timed."""

import pytest

from benchmarks.common import record
from benchmarks.trust import imports


@pytest.mark.parametrize(("added_s", "losses"), [(0.2, 0), (0.4, 3)])
def test_the_median_of_what_is_added_is_judged(added_s, losses, tmp_path, monkeypatch):
    times_s = iter([9.0, 9.0, 1.0, 1.0 + added_s, 2.0, 8.0, 3.0, 3.0])
    monkeypatch.setattr(imports, "seconds", lambda code: next(times_s))
    arguments = ["--rounds", "3", "--output", str(tmp_path)]
    assert imports.main(arguments) == (losses > 0)
    (entry,) = record.read(tmp_path / "trust.jsonl")
    assert entry["losses"] == losses
    assert list(entry["outcomes"]) == [f"pairs: {added_s:.2f} s added to 2.00 s"]


def test_a_process_is_timed():
    assert imports.seconds("import time; time.sleep(0.2)") > 0.2
