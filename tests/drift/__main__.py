"""Drift: `python -m tests.drift --steps 100000` runs each algorithm in two dtypes.

`--output FILE` adds a line for each run; `--table FILE` prints those of a file.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks.common import record
from tests.drift import MAKE, run
from tests.drift.report import table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--rate", type=float, default=0.01)
parser.add_argument("--names", nargs="*", default=list(MAKE), choices=list(MAKE))
parser.add_argument("--output", type=Path)
parser.add_argument("--table", type=Path)
options = parser.parse_args()
if options.table:
    print(table(record.read(options.table)))
    raise SystemExit
for name in options.names:
    for dtype in ("float32", "bfloat16"):
        start = time.monotonic()
        line = {"algorithm": name, "dtype": dtype, "steps": options.steps}
        line |= {"rate": options.rate, **run(name, dtype, options.steps, options.rate)}
        print(json.dumps(line, ensure_ascii=False), flush=True)
        print(f"# {time.monotonic() - start:.0f} s", flush=True)
        if options.output:
            record.append(options.output, {**record.provenance(seed=3), **line})
