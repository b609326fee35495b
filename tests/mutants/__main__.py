"""How many small wrong changes the tests see: `python -m tests.mutants --sample 200`.

A seeded sample of changes is spread over the packages by how many each one has. Each is
made in a copy of the repository, against the tests that run its line, quickest first,
until one fails; what these let pass has survived. Which tests those are is read from
what `python -m tests.coverage` has written of a folder and its doctests. Lines go to a
file, and a run that was stopped goes on with it.
"""

import argparse
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.mutants import killers
from tests.mutants.changes import Change, changes, count
from tests.mutants.report import table

ROOT = Path(__file__).parents[2]
PACKAGES = ("norms", "compressors", "samplings", "layers", "algorithms")
UNUSABLE = (3, 4, 5)  # of pytest: an error of its own, of usage, or no tests
PRELOADED = ("equinox", "flax.nnx", "flax.linen", "hypothesis", "optax", "pytest")


def sample(number: int, seed: int) -> list[tuple[int, str]]:
    """(index of the change, file) of a sample, the same for the same seed."""
    everything = []
    for package in PACKAGES:
        for path in sorted((ROOT / "dropmuon_optax" / package).glob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            everything += [(i, name) for i in range(count(path.read_text()))]
    random.Random(seed).shuffle(everything)
    return everything[:number]


def survives(copy: Path, name: str, change: Change, tests: list[killers.Test]) -> bool:
    """Whether tests pass with a file changed. Hanging for long is no passing."""
    (copy / name).write_text(change.source)
    listed = copy / "tests.txt"
    listed.write_text("\n".join(test.name for test in tests))
    limit = 120 + 10 * sum(test.seconds for test in tests)
    try:
        return _passes(copy, listed, limit)
    finally:
        shutil.copy(ROOT / name, copy / name)


def _passes(copy: Path, listed: Path, limit: float) -> bool:
    """pytest in a fork, which has imported all but the package already."""
    child = os.fork()
    if child == 0:
        os.setsid()
        _run(copy, listed)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            if code in UNUSABLE:
                raise RuntimeError((copy / "output.txt").read_text()[-2000:])
            return code == 0
        time.sleep(0.2)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run(copy: Path, listed: Path) -> None:
    os.chdir(copy)
    with (copy / "output.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    ours = ("tests", "benchmarks", "dropmuon_optax")
    for name in [x for x in sys.modules if x.split(".")[0] in ours]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(p for p in sys.path if p not in ("", str(ROOT)))]
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = str(copy)
    code: int = UNUSABLE[0]
    try:
        import pytest
        from _pytest.assertion import rewrite

        # Plugins that are imported already would be warned of, and warnings are errors.
        rewrite.AssertionRewritingHook._warn_already_imported = lambda *given: None
        code = pytest.main(
            ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", f"@{listed}"]
        )
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--only", nargs="*", default=PACKAGES, help="packages")
    parser.add_argument("--lines", type=Path, nargs="+", required=True)
    options = parser.parse_args()
    for module in PRELOADED:
        importlib.import_module(module)
    tests = killers.read(options.lines)
    known = {}
    if options.output.exists():
        lines = map(json.loads, options.output.read_text().splitlines())
        known = {(line["file"], line["index"]): line for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "repository")
        ignored = shutil.ignore_patterns(".git", "__pycache__", "results")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for index, name in sample(options.sample, options.seed):
            if (name, index) in known or name.split("/")[1] not in options.only:
                continue
            every = changes((ROOT / name).read_text())
            change = next(itertools.islice(every, index, None))
            where = range(change.line, change.end_line + 1)
            able = killers.that_run(tests, name, where)
            if not able:
                raise ValueError(f"`--lines` must have tests that run {name}")
            left = survives(copy, name, change, able)
            line = {"file": name, "index": index, "line": change.line}
            line |= {"was": change.was, "now": change.now, "survived": left}
            known[name, index] = line
            with options.output.open("a") as file:
                print(json.dumps(line, ensure_ascii=False), file=file)
            said = "survived" if left else "killed"
            print(said, name, change.line, change.now, flush=True)
    print(table(list(known.values())))


if __name__ == "__main__":
    main()
