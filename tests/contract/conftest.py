"""Dtype promotion for each case: strict, but where Optax's own parts don't allow it."""

import contextlib
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    callspec = getattr(request.node, "callspec", None)
    case = callspec.params.get("case") if callspec else None
    with case.promotion() if case else contextlib.nullcontext():
        yield
