"""Tests that guard what was once lost in silence: each is broken, and must notice.

Claim: for every line of `GUARDS` a test fails when the code that it guards is gone.

Command: python -m benchmarks.trust.guards [--points "no state"]
Device: a CPU; ten seconds of a core for each. Needs `pip install -e ".[test]"`.
Expected: all are noticed; the README beside this file lists them.

The code is broken in a copy of the checkout, never in the checkout itself.
"""

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import record
from benchmarks.common import report as tables
from benchmarks.common.options import new_parser
from benchmarks.trust import report
from benchmarks.trust.guards_list import GUARDS, Guard

FAILED = 1  # pytest's exit status where tests fail
NOTICED, MISSED = "noticed by the test", "not noticed"


def broken(guard: Guard, root: Path) -> None:
    """Breaks the code of a copy.

    Raises:
        ValueError: If what is to be broken does not stand in the file once.
    """
    path = root / guard.file
    text = path.read_text()
    if (count := text.count(guard.old)) != 1:
        raise ValueError(
            f"{guard.file} must have {guard.old!r} once, got it {count} times"
        )
    path.write_text(text.replace(guard.old, guard.new))


def notices(guard: Guard) -> bool:
    """Whether the test fails on broken code."""
    listed = record.git("ls-files", "--cached")
    if listed is None:
        raise RuntimeError("guards are broken in a copy of a checkout, got none")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "copy")
        for name in listed.splitlines():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.REPOSITORY / name, root / name)
        broken(guard, root)
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-x", guard.test]
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider"],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode not in (0, FAILED):
        raise RuntimeError(f"{guard.test} can't be run: {done.stdout[-2000:]}")
    return done.returncode == FAILED


def table() -> str:
    """Points, and the tests that guard them."""
    rows = [[guard.point, f"`{guard.test}`"] for guard in GUARDS]
    return tables.format_table(["once", "guarded by"], rows)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = new_parser("benchmarks.trust.guards", "Breaks code that tests guard.")
    points = [guard.point for guard in GUARDS]
    add = parser.add_argument
    add("--points", nargs="+", choices=points, default=points, help="which to break")
    add("--show", action="store_true", help="print the table of guards")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    if options.show:
        print(table())
        return 0
    outcomes = collections.Counter()
    for guard in tqdm([g for g in GUARDS if g.point in options.points]):
        kind = NOTICED if notices(guard) else MISSED
        outcomes[kind] += 1
        tqdm.write(f"{guard.point}: {kind}")
    report.append(
        options.output,
        "what was once lost in silence",
        "the code that refuses or mends it is taken out, in a copy, and its test run",
        outcomes,
        losses=outcomes[MISSED],
        by="python -m benchmarks.trust.guards",
    )
    return int(outcomes[MISSED] > 0)


if __name__ == "__main__":
    sys.exit(main())
