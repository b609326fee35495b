"""Unusual inputs, each in a process: command lines, and damaged data files.

Claim: what is wrong is refused in one line with status 2 before a step is taken, never
with a traceback; what is only unusual runs.

Command: python -m benchmarks.trust.inputs [--programs nanogpt cnn …]
Device: a CPU; a second of a core for each input, a minute for one that runs.
Expected: a row of the README beside this file for each program, no losses, and
inputs.md, which lists what was typed and what was said.

A process is a fork of one that has imported the programs and done nothing else, which
takes most of the time of a start. POSIX only.
"""

import argparse
import collections
import multiprocessing
import os
import runpy
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.common import record
from benchmarks.common.options import new_parser
from benchmarks.common.sources import DATA_VARIABLE
from benchmarks.trust import report
from benchmarks.trust.damage import lay
from benchmarks.trust.inputs_list import PROGRAMS, Input, Program

COMMAND = "python -m benchmarks.trust.inputs"
LIMIT_S = 300.0  # in which a process is to end
REFUSED, RAN = "refused in one line with status 2", "ran"
LOSSES = ("a traceback", "another end", "ran though wrong", "did not end")
TRACEBACK, OTHER, RAN_WRONG, HUNG = LOSSES
FORKS = multiprocessing.get_context("forkserver")
FAMILY = "unusual inputs of "


class End(NamedTuple):
    """How a process ended."""

    status: int | None  # None: it had to be ended
    lines: list[str]  # on standard error

    def kind(self, runs: bool) -> str:
        """One of `REFUSED`, `RAN`, `LOSSES`."""
        if any("Traceback" in line for line in self.lines):
            return TRACEBACK
        if self.status is None:
            return HUNG
        if self.status == 0:
            return RAN if runs else RAN_WRONG
        whole = self.status == 2 and len(self.lines) == 1 and not runs
        return REFUSED if whole and "error: " in self.lines[0] else OTHER


def tried(program: Program, given: Input, folder: Path) -> End:
    """Runs a program on an input, in a folder of its own."""
    lay(given.fault, folder / "data")
    (folder / "file").write_text("")
    typed = given.arguments.replace("{data}", str(folder / "data"))
    typed = shlex.split(typed.replace("{file}", str(folder / "file")))
    typed = ["--output", str(folder / "results"), *shlex.split(program.small), *typed]
    own = dict(word.split("=", 1) for word in shlex.split(given.variables))
    own[DATA_VARIABLE] = str(folder / "data")
    process = FORKS.Process(target=start, args=(program.module, typed, own, folder))
    process.start()
    process.join(LIMIT_S)
    status = process.exitcode
    if status is None:
        process.kill()
        process.join()
    said = (folder / "stderr").read_text(errors="replace")
    return End(status, said.replace(str(folder), "…").splitlines())


def start(module: str, typed: list[str], own: dict[str, str], folder: Path) -> None:
    """What the new process does: `python -m module`, in a terminal's place a file."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        with (folder / name).open("w") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(own)
    sys.argv = [module, *typed]
    warnings.filterwarnings("ignore", "found in sys.modules|.* found in sys.modules")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run(name: str, output: Path) -> dict[str, Any]:
    """Tries all inputs of a program, and adds its line."""
    program, outcomes, listed = PROGRAMS[name], collections.Counter(), []
    for given in tqdm(program.inputs, desc=name):
        with tempfile.TemporaryDirectory() as folder:
            end = tried(program, given, Path(folder))
        kind = end.kind(given.runs)
        outcomes[kind] += 1
        said = end.lines[-1] if end.lines and kind != RAN else ""
        listed.append({"input": given.shown, "ended": kind, "said": said})
        if kind in LOSSES:
            shown = "\n    ".join(end.lines[-4:])
            tqdm.write(f"{name} {given.shown}: {kind} {end.status}\n    {shown}")
    return report.append(
        output,
        f"{FAMILY}{name}",
        f"after `{program.small}`, on small files: inputs.md",
        outcomes,
        losses=sum(outcomes[kind] for kind in LOSSES),
        by=f"{COMMAND} --programs {name}",
        inputs=listed,
    )


def listing(entries: list[dict[str, Any]]) -> str:
    """What was typed, and what was said, program by program."""
    parts = [PAGE_HEAD]
    for entry in report.newest(entries):
        if "inputs" not in entry:
            continue
        rows = [
            [line["input"] or "nothing more", line["said"] or line["ended"]]
            for line in entry["inputs"]
        ]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        rows = [["typed, on", "said"], [":---", ":---"], *rows]
        name = entry["family"].removeprefix(FAMILY)
        small = PROGRAMS[name].small
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"## {name}\n\nAfter `{small}`:\n\n{table}")
    return "\n\n".join(parts) + "\n"


PAGE_HEAD = f"""# What was typed, and what was said

    {COMMAND} --output benchmarks/results

Each line was a process; folders of the test are "…". `damage.py` has the files, of
which there is a small text if nothing is said."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = new_parser("benchmarks.trust.inputs", "Tries unusual inputs.")
    names = list(PROGRAMS)
    add = parser.add_argument
    add("--programs", nargs="+", choices=names, default=names, help="which to try")
    add("--show", action="store_true", help="print the list of those of the lines")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    path = options.output / f"{report.NAME}.jsonl"
    if options.show:
        print(listing(record.read(path)), end="")
        return 0
    for name in [n for n in os.environ if n.startswith(("JAX_", "XLA_"))]:
        del os.environ[name]
    os.environ["JAX_PLATFORMS"] = "cpu"
    FORKS.set_forkserver_preload([PROGRAMS[n].module for n in options.programs])
    for name in options.programs:
        run(name, options.output)
    print(report.table(record.read(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
