"""What the mutants are, and which tests are run against one."""

from pathlib import Path

from tests.mutants import killers
from tests.mutants.changes import changes


def test_every_change_is_one_and_leaves_the_rest():
    source = "def f(x: int = 3) -> int:\n    return not x < 2 and -x"
    found = {change.source.splitlines()[1].strip() for change in changes(source)}
    assert found == {
        "return not x < 2 and -x",  # of the default
        "return not x < 2 or -x",
        "return not not x < 2 and -x",
        "return not x <= 2 and -x",
        "return not x < 3 and -x",
        "return not x < 2 and +x",
    }


def test_the_quickest_tests_of_a_line_come_first(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    path.write_text(
        '{"test": "", "seconds": 0, "files": {"a.py": [1, 2]}}\n'
        '{"test": "slow", "seconds": 2, "files": {"a.py": [5]}}\n'
        '{"test": "other", "seconds": 1, "files": {"a.py": [6]}}\n'
        '{"test": "quick", "seconds": 1, "files": {"a.py": [4, 5]}}\n'
    )
    tests = killers.read([path])
    assert [t.name for t in killers.that_run(tests, "a.py", range(5, 6))] == [
        "quick",
        "slow",
    ]
    # Line 1 runs at import alone: every test of the file may see it.
    assert len(killers.that_run(tests, "a.py", range(1, 2))) == 3
    assert killers.that_run(tests, "b.py", range(1, 2)) == tests
