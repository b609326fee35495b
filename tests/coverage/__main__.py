"""Which statements of the package no test runs: `python -m tests.coverage`.

Runs the tests, folder after folder, and adds to a file which lines each one runs;
`--report` only reads it. A statement counts if a test that has passed runs a line of
it, or the import of its module does. What other processes run is not seen.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.coverage.statements import statements

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "dropmuon_optax",
    *(f"tests/{name}" for name in ("algorithms", "backprop", "compressors")),
    *(f"tests/{name}" for name in ("contract", "counters", "layers", "linalg")),
    *(f"tests/{name}" for name in ("norms", "samplings", "theory", "wire")),
    *(f"tests/test_{name}.py" for name in ("absent", "door", "lmo")),
)


def run(folder: str, output: Path) -> None:
    """Runs the tests of a folder and adds the lines of each."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0"]
    command += ["-p", "tests.coverage.lines", folder]
    env = os.environ | {"LINES": str(output), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=env, check=False)


def read(path: Path) -> dict[str, set[int]]:
    """All lines that ran, by file."""
    ran: dict[str, set[int]] = collections.defaultdict(set)
    for line in path.read_text().splitlines():
        for file, lines in json.loads(line)["files"].items():
            ran[file] |= set(lines)
    return ran


def missed(ran: dict[str, set[int]]) -> tuple[int, dict[str, list[int]]]:
    """How many statements there are, and by file the first lines of those not run."""
    total, found = 0, {}
    for path in sorted((ROOT / "dropmuon_optax").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        known = statements(path.read_text())
        total += len(known)
        found[name] = [k for k, lines in known.items() if not lines & ran[name]]
    return total, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", nargs="*", default=FOLDERS)
    parser.add_argument("--output", type=Path, default=Path("results/lines.jsonl"))
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    output = options.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    for folder in [] if options.report else options.folders:
        run(folder, output)
    total, found = missed(read(output))
    for name, lines in found.items():
        if lines:
            print(f"{name}: {', '.join(map(str, lines))}")
    left = sum(map(len, found.values()))
    print(f"{total - left} of {total} statements run: {(total - left) / total:.1%}")


if __name__ == "__main__":
    main()
