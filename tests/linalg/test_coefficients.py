"""Exact scalar certificates: Newton–Schulz acts on singular values as a scalar map."""

import numpy as np
import pytest

from dropmuon_optax import linalg

# (set, steps, range over [1e-3, 1], range over [1e-2, 1]), to four digits, computed in
# float64 apart from this package by independent implementations of the same tables.
CERTIFICATES = [
    (linalg.KELLER_JORDAN, 5, (0.4705, 1.2024), (0.6818, 1.1344)),
    (linalg.YOU_JIACHENG, 5, (0.4750, 1.1450), (0.9778, 1.0318)),
    (linalg.POLAR_EXPRESS_MODDED, 5, (0.8466, 1.1411), (0.8589, 1.1411)),
    (linalg.POLAR_EXPRESS, 8, (1.0000, 1.0000), (1.0000, 1.0000)),
    (linalg.CANS, 5, (0.8393, 1.1134), (0.8491, 1.1134)),
    (linalg.DEEPSEEK_V4, 10, (1.0000, 1.0005), (1.0000, 1.0005)),
    (linalg.NEWTON_SCHULZ, 20, (1.0000, 1.0000), (1.0000, 1.0000)),
]
SETS = [row[0] for row in CERTIFICATES]
each_set = pytest.mark.parametrize("coefficients", SETS, ids=lambda c: c.name)


def composed(coefficients, num_steps, sigma):
    x = sigma / coefficients.safety
    for a, b, c in coefficients.first(num_steps):
        x = a * x + b * x**3 + c * x**5
    return x


@pytest.mark.parametrize(
    ("coefficients", "steps", "thousandth", "hundredth"),
    CERTIFICATES,
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_range_of_the_composed_polynomial(coefficients, steps, thousandth, hundredth):
    for start, expected in ((1e-3, thousandth), (1e-2, hundredth)):
        values = composed(coefficients, steps, np.geomspace(start, 1.0, 400_001))
        assert (round(values.min(), 4), round(values.max(), 4)) == expected


@each_set
def test_points_of_the_tables(coefficients):
    known = {
        "keller_jordan": (0.47054, 0.69892, 0.71212, 0.76544, 0.69644),
        "you_jiacheng": (0.47498, 1.01803, 1.01905, 0.98587, 0.97835),
        "polar_express_modded": (0.84665, 0.99678, 1.01646, 1.08640, 0.90354),
        "cans": (0.83925, 1.05836, 1.11290, 1.11321, 1.08333),
        "deepseek_v4": (1.00000, 1.00002, 1.00006, 1.00016, 1.00001),
        "polar_express": (1.0, 1.0, 1.0, 1.0, 1.0),
        "newton_schulz": (1.0, 1.0, 1.0, 1.0, 1.0),
    }[coefficients.name]
    steps = {"deepseek_v4": 10, "polar_express": 8, "newton_schulz": 20}
    sigma = np.array([0.001, 0.01, 0.1, 0.5, 1.0])
    values = composed(coefficients, steps.get(coefficients.name, 5), sigma)
    np.testing.assert_allclose(values, known, atol=6e-6)  # five digits are printed


@each_set
def test_the_first_steps_are_the_ones_used(coefficients):
    assert coefficients.first(1) == coefficients.steps[:1]
    whole = coefficients.first(len(coefficients.steps))
    assert whole == coefficients.steps


@each_set
def test_more_steps_than_there_are(coefficients):
    more = len(coefficients.steps) + 2
    if coefficients.repeats_last:
        assert coefficients.first(more)[-3:] == (coefficients.steps[-1],) * 3
    else:
        with pytest.raises(ValueError, match=f"at most {more - 2} .* got {more}"):
            coefficients.first(more)


@each_set
def test_each_set_says_where_it_is_from(coefficients):
    assert len(coefficients.source) > 20
    assert repr(coefficients).startswith(f"Coefficients('{coefficients.name}'")


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("steps", [(), ((1.0, 2.0),)])
def test_malformed_steps_are_refused(steps):
    with pytest.raises(ValueError, match="`steps` must be one or more triples"):
        linalg.Coefficients("mine", steps, "nowhere")


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True])
def test_malformed_num_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match="`num_steps` must be a whole number"):
        linalg.KELLER_JORDAN.first(num_steps)
