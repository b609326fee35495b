"""`python -m benchmarks.nanogpt`, which `benchmarks.language.nanogpt` runs."""

import sys

from benchmarks.language.nanogpt import main

if __name__ == "__main__":
    sys.exit(main())
