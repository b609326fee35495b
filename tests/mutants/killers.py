"""Which tests run a line, of those whose lines are known, the quickest first."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Test(NamedTuple):
    """A test that has passed, and what it ran."""

    name: str
    seconds: float
    files: dict[str, list[int]]


def read(paths: Iterable[Path]) -> list[Test]:
    """The lines that `tests.coverage` has written, of tests alone."""
    lines = [json.loads(x) for path in paths for x in path.read_text().splitlines()]
    tests = [Test(x["test"], x["seconds"], x["files"]) for x in lines if x["test"]]
    return sorted(tests, key=lambda test: test.seconds)


def that_run(tests: list[Test], file: str, lines: range) -> list[Test]:
    """Those that run one of the lines; or else those that run the file; or else all.

    Such lines, or files, run when their module is imported.
    """
    some = [test for test in tests if set(lines) & set(test.files.get(file, ()))]
    return some or [test for test in tests if file in test.files] or tests
