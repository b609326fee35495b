"""What was tried to break it: faults, cases, losses.

Claim: of all the faults on the page beside this file none loses a run or changes a
number in silence.

Command: python -m benchmarks.trust [show|run] [--families "damaged checkpoints"]
Device: any; `show` prints the table of the committed lines, `run` runs the tests behind
the rows (minutes on two cores) and adds a line for each family.
Expected: the README beside this file.

Tests count their cases by pytest's `record_property("how it ended", number)`; a test
that doesn't is one case. Needs `pip install -e ".[test]"` and a checkout.
"""

import argparse
import collections
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from benchmarks.common import record
from benchmarks.common.options import new_parser
from benchmarks.trust import report
from benchmarks.trust.families import FAMILIES, Family

FAILED = "failed"
AS_TESTED = "as the test says"


def run(family: Family, output: Path) -> None:
    """Runs a family's tests, and adds its line."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *family.tests]
        command += ["-o", "junit_family=xunit1", f"--junitxml={results}"]
        subprocess.run(command, cwd=record.REPOSITORY, check=False)
        outcomes = outcomes_of(results.read_text())
    by = " ".join(family.tests)
    report.append(
        output,
        family.name,
        family.tried,
        outcomes,
        losses=outcomes.get(FAILED, 0),
        by=by,
    )


def outcomes_of(results: str) -> Mapping[str, int]:
    """Cases by how they ended, from pytest's JUnit report; what was skipped is none.

    Examples:
        >>> case = '<testcase><properties><property name="refused" value="3"/>'
        >>> case += "</properties></testcase>"
        >>> outcomes_of(f"<testsuite>{case}{case}<testcase/></testsuite>")
        {'refused': 6, 'as the test says': 1}
    """
    found = collections.Counter()
    for case in ET.fromstring(results).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            found[FAILED] += 1
        elif case.find("skipped") is None:
            counted = [
                (p.attrib["name"], p.attrib["value"]) for p in case.iter("property")
            ]
            for name, value in counted or [(AS_TESTED, "1")]:
                found[name] += int(value)
    return dict(found)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = new_parser("benchmarks.trust", "Counts what was tried, and what was lost.")
    parser.add_argument(
        "part", choices=("show", "run"), nargs="?", default="show", help="what to do"
    )
    names = [family.name for family in FAMILIES]
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    if options.part == "run":
        for family in FAMILIES:
            if family.name in options.families:
                run(family, options.output)
    print(report.table(record.read(options.output / f"{report.NAME}.jsonl")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
