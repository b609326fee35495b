"""Random cases of every family; `python -m tests.fuzz` runs as many as you like."""

from typing import Any

import hypothesis
import pytest

from tests.fuzz.cases import STRATEGIES, judge

NUM_CASES = 500
TOTAL = sum(share for _, share in STRATEGIES.values())

# A whole report of a shrunk case takes longer than the cases do.
settings = hypothesis.settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("family", STRATEGIES)
def test_random_cases(family: str):
    strategy, share = STRATEGIES[family]
    outcomes = []

    @hypothesis.settings(settings, max_examples=-(-NUM_CASES * share // TOTAL))
    @hypothesis.given(strategy)
    def run(case: Any) -> None:
        outcomes.append(judge(case))

    run()
    # What has no case says nothing.
    assert {"agrees", "refused"} <= set(outcomes)
