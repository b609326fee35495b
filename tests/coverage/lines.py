"""A plugin of pytest, `-p tests.coverage.lines`: which test runs which line.

The file that `LINES` names gets a JSON line for each test that has passed: its name,
its seconds and, by file of the package, the lines that it ran; and one, of no test, for
what ran when modules were imported.
"""

import collections
import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = f"{ROOT / 'dropmuon_optax'}{os.sep}"
IMPORTED = ""  # the name of no test

monitoring = getattr(sys, "monitoring", None)  # of Python 3.12 and newer
TOOL = 1  # `sys.monitoring.COVERAGE_ID`
ran: dict[str, set[int]] = collections.defaultdict(set)


def _enters(code: CodeType, offset: int) -> Any:
    if code.co_filename.startswith(PACKAGE):
        monitoring.set_local_events(TOOL, code, monitoring.events.LINE)
    return monitoring.DISABLE


def _runs(code: CodeType, line: int) -> Any:
    ran[code.co_filename.removeprefix(f"{ROOT}{os.sep}")].add(line)
    return monitoring.DISABLE


def start() -> None:
    """Watches from now on: the package must not be imported yet."""
    if monitoring is None:
        raise RuntimeError(f"Python must be 3.12 or newer, got {sys.version}")
    monitoring.use_tool_id(TOOL, "lines")
    monitoring.register_callback(TOOL, monitoring.events.PY_START, _enters)
    monitoring.register_callback(TOOL, monitoring.events.LINE, _runs)
    monitoring.set_events(TOOL, monitoring.events.PY_START)


if "LINES" in os.environ:  # pytest's plugin, not a module whose doctests are looked for
    start()


def _write(name: str, seconds: float) -> None:
    files = {file: sorted(lines) for file, lines in ran.items()}
    line = {"test": name, "seconds": round(seconds, 2), "files": files}
    with Path(os.environ["LINES"]).open("a") as file:
        print(json.dumps(line), file=file)
    ran.clear()


def pytest_collection_finish() -> None:
    _write(IMPORTED, 0.0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    monitoring.restart_events()
    ran.clear()
    return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[STARTED] = time.monotonic()


STARTED = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "call" and report.passed:
        _write(item.nodeid, time.monotonic() - item.stash[STARTED])
    return report


def pytest_unconfigure() -> None:
    monitoring.set_events(TOOL, 0)  # the interpreter still runs code as it ends
    monitoring.free_tool_id(TOOL)
