"""`python -m benchmarks.trust.guards`: code is broken in a copy, and tests notice."""

import pathlib
import shutil

import pytest

from benchmarks.common import record
from benchmarks.trust import guards
from benchmarks.trust.guards_list import GUARDS, Guard

WEAK = Guard(
    "none", "benchmarks/trust/report.py", 'NAME = "trust"', 'NAME = "rust"', "none"
)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.point)
def test_what_is_broken_stands_there_once_and_its_test_too(guard, tmp_path):
    path = tmp_path / guard.file
    path.parent.mkdir(parents=True)
    shutil.copyfile(record.REPOSITORY / guard.file, path)
    guards.broken(guard, tmp_path)
    assert path.read_text() != (record.REPOSITORY / guard.file).read_text()
    compile(path.read_text(), guard.file, "exec")
    file, name = guard.test.split("::")
    assert f"\ndef {name}(" in (record.REPOSITORY / file).read_text()
    with pytest.raises(ValueError, match=r"must have .* once, got it 0 times"):
        guards.broken(guard._replace(old="nowhere"), tmp_path)


def test_a_test_that_notices_and_one_that_does_not():
    if record.git("rev-parse", "HEAD") is None:
        pytest.skip("no checkout")
    here = "tests/benchmarks/trust/test_trust.py::"
    noticed = WEAK._replace(test=f"{here}test_no_cases_are_no_line")
    assert not guards.notices(noticed)
    noticed = noticed._replace(old="if not 0 <= losses", new="if False and losses")
    assert guards.notices(noticed)
    with pytest.raises(RuntimeError, match="can't be run"):
        guards.notices(WEAK._replace(test="tests/nowhere.py"))


def test_the_page_has_the_table():
    page = pathlib.Path(guards.__file__).with_name("README.md").read_text()
    assert guards.table() in page
