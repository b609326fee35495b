"""Counts what comes of random cases: `python -m tests.fuzz --cases 10000`.

Every case is judged (see `nouns`, `steps` and `messages`) and counted by family and
outcome; a fault is counted by its message, with the first case that shows it.
"""

import argparse
import collections
import sys
import time
from pathlib import Path

import jaxtyping
from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.common import record
from tests import conftest  # JAX's flags, compiled programs, strict promotion
from tests.fuzz.cases import STRATEGIES, judge


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=[*STRATEGIES, "all"], default="all")
    parser.add_argument("--show", type=int, default=12, help="faults to print")
    parser.add_argument("--json", type=Path, help="file to append a line of counts to")
    options = parser.parse_args()
    assert conftest.CACHE
    jaxtyping.config.update("jaxtyping_disable", True)
    line = record.provenance(seed=options.seed)
    counts: collections.Counter = collections.Counter()
    faults: dict[str, list] = {}
    names = list(STRATEGIES) if options.family == "all" else [options.family]
    total = sum(STRATEGIES[name][1] for name in names)
    start = time.monotonic()
    for name in names:
        strategy, share = STRATEGIES[name]

        @seed(options.seed)
        @settings(
            max_examples=max(1, round(options.cases * share / total)),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def run(case):
            try:
                outcome = judge(case)
            except AssertionError as error:
                outcome = "FAULT"
                said = f"{case.family}: {str(error).splitlines()[0][:90]}"
                faults.setdefault(said, []).append(case)
            counts[case.family, outcome] += 1

        run()
    for said, cases in list(faults.items())[: options.show]:
        print(f"\n{len(cases)} × {said}\n  {min(map(repr, cases), key=len)}")
    print()
    for (family, outcome), number in sorted(counts.items()):
        print(f"{family:12s} {outcome:26s} {number:6d}")
    seconds = time.monotonic() - start
    print(f"{sum(counts.values())} cases, {seconds:.0f} s")
    if options.json:
        outcomes: dict[str, dict[str, int]] = {}
        for (family, outcome), number in sorted(counts.items()):
            outcomes.setdefault(family, {})[outcome] = number
        record.append(options.json, {**line, "outcomes": outcomes})
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
