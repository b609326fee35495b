"""The first 1,000 of the steps that `python -m tests.drift` takes."""

import numpy as np
import pytest

from tests.drift import MAKE, run

RATE = 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MAKE)
def test_nothing_grows(name: str, dtype: str):
    found = run(name, dtype, 1000, RATE)
    assert all(map(np.isfinite, found.values()))
    epsilon = 2.0**-22 if dtype == "float32" else 2.0**-8
    if name == "scion, exact":
        # The ball, and a rounding of every entry at each step, which 1 − γ forgets.
        assert found["largest_spectral_over_radius"] <= 1 + 8 * epsilon / RATE
        assert found["largest_rms_over_radius"] <= 1 + 8 * epsilon / RATE
    if name == "scion":
        # Newton–Schulz's five steps put singular values at up to 1.2025.
        assert found["largest_spectral_over_radius"] <= 1.2025 + 8 * epsilon / RATE
    if name == "ef21_muon, server":
        assert 0 < found["largest_gap"] <= 2 * RATE * 8
    if dtype == "float32" and not name.startswith("scion"):
        assert found["last_distance"] < 20  # of about 22 at the start
