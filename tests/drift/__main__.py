"""Drift: `python -m tests.drift --steps 100000` prints a line for each run."""

import argparse
import json
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.drift import MAKE, run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--rate", type=float, default=0.01)
parser.add_argument("--names", nargs="*", default=list(MAKE), choices=list(MAKE))
options = parser.parse_args()
for name in options.names:
    for dtype in ("float32", "bfloat16"):
        start = time.monotonic()
        found = run(name, dtype, options.steps, options.rate)
        line = {"algorithm": name, "dtype": dtype, "steps": options.steps}
        line |= {"rate": options.rate, **found}
        print(json.dumps(line, ensure_ascii=False), flush=True)
        print(f"# {time.monotonic() - start:.0f} s", flush=True)
