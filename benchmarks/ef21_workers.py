"""`python -m benchmarks.ef21_workers`, which `benchmarks.ef21_muon.workers` runs."""

import sys

from benchmarks.ef21_muon.workers import main

if __name__ == "__main__":
    sys.exit(main())
