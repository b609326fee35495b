"""What importing the package costs beyond what it needs: jax and optax.

Claim: less than 0.3 s, as the median of pairs of processes.

Command: python -m benchmarks.trust.imports [--rounds 11]
Device: none; the time is a processor's, so nothing else may run beside it.
Expected: a row of the README beside this file, no losses.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from tqdm import tqdm

from benchmarks.common import record
from benchmarks.common.options import new_parser, positive
from benchmarks.trust import report

LIMIT_S = 0.3
BASE, OURS = "import jax, optax", "import jax, optax, dropmuon_optax"


def seconds(code: str) -> float:
    """From the start of a process to its end."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=record.REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    for code in (BASE, OURS):  # files are read and compiled once before
        seconds(code)
    base_s, added_s = [], []
    for _ in tqdm(range(options.rounds)):
        base_s.append(seconds(BASE))
        added_s.append(seconds(OURS) - base_s[-1])
    median_s = statistics.median(added_s)
    slow, of_s = median_s > LIMIT_S, statistics.median(base_s)
    report.append(
        options.output,
        "importing the package",
        f"`{OURS}` after `{BASE}`, in pairs of processes; the median "
        f"of what it adds is to be below {LIMIT_S:g} s",
        {f"pairs: {median_s:.2f} s added to {of_s:.2f} s": options.rounds},
        losses=options.rounds if slow else 0,
        by="python -m benchmarks.trust.imports",
        added_s=added_s,
        base_s=base_s,
    )
    print(f"{median_s:.3f} s added to {of_s:.3f} s")
    return int(slow)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = new_parser("benchmarks.trust.imports", "Times the package's import.")
    add = parser.add_argument
    add("--rounds", type=positive, default=11, help="pairs of processes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
