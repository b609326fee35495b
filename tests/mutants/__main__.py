"""How many small wrong changes the tests see: `python -m tests.mutants --sample 200`.

A seeded sample of changes is spread over the packages by how many each one has. Each is
made in a copy of the repository, against the tests of its own folder; what these let
pass has survived. Lines go to a file, and a run that was stopped goes on with it.
"""

import argparse
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants.changes import changes, count

ROOT = Path(__file__).parents[2]
TESTS = {
    "norms": ["tests/norms"],
    "compressors": ["tests/compressors"],
    "samplings": ["tests/samplings"],
    "layers": ["tests/layers"],
    "algorithms": ["tests/algorithms", "tests/contract/test_optax_contract.py"],
}


def sample(number: int, seed: int) -> list[tuple[str, int, str]]:
    """(package, index of the change, file) of a sample, the same for the same seed."""
    everything = []
    for package in TESTS:
        for path in sorted((ROOT / "dropmuon_optax" / package).glob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            number_of_changes = count(path.read_text())
            everything += [(package, i, name) for i in range(number_of_changes)]
    random.Random(seed).shuffle(everything)
    return everything[:number]


def survives(copy: Path, package: str, name: str, source: str, seconds: int) -> bool:
    """Whether the tests of a package pass with a file changed."""
    (copy / name).write_text(source)
    tests = [f"dropmuon_optax/{package}", *TESTS[package]]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", *tests]
    env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=env, capture_output=True, timeout=seconds
        )
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        shutil.copy(ROOT / name, copy / name)


def interval(killed: int, number: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share."""
    z, p = 1.96, killed / number
    center, width = (
        p + z**2 / (2 * number),
        math.sqrt(p * (1 - p) / number + (z / (2 * number)) ** 2),
    )
    whole = 1 + z**2 / number
    return (center - z * width) / whole, (center + z * width) / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--seconds", type=int, default=600, help="for one change")
    options = parser.parse_args()
    known = {}
    if options.output.exists():
        lines = map(json.loads, options.output.read_text().splitlines())
        known = {(line["file"], line["index"]): line for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "repository")
        ignored = shutil.ignore_patterns(".git", "__pycache__", "results")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for package, index, name in sample(options.sample, options.seed):
            if (name, index) in known:
                continue
            every = changes((ROOT / name).read_text())
            change = next(itertools.islice(every, index, None))
            left = survives(copy, package, name, change.source, options.seconds)
            line = {"file": name, "index": index, "line": change.line}
            line |= {"was": change.was, "now": change.now, "survived": left}
            known[name, index] = line
            with options.output.open("a") as file:
                print(json.dumps(line, ensure_ascii=False), file=file)
            print("survived" if left else "killed", name, change.line, change.now)
    killed = sum(not line["survived"] for line in known.values())
    low, high = interval(killed, len(known))
    print(f"{killed} of {len(known)} killed: {low:.0%} to {high:.0%} (95 %)")


if __name__ == "__main__":
    main()
