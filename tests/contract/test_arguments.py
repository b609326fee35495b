"""What is no number is refused when it is given, by the argument's name."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES, Case, case_named, given, jit

import dropmuon_optax as dm
from dropmuon_optax import compressors, linalg, norms, samplings

pytestmark = pytest.mark.usefixtures("without_type_checks")

KEY = np.uint32([0, 7])
LAYERS = dm.layers_by_path(None)


def a_function(count: Any) -> Any:
    return 0.5


FUNCTIONS: list[tuple[str, Callable[..., Any], dict[str, Any], str]] = [
    ("gluon", dm.gluon, {"learning_rate": 0.1}, "learning_rate momentum weight_decay"),
    (
        "muon",
        dm.muon,
        {"learning_rate": 0.1},
        "learning_rate momentum weight_decay adam_b1 adam_b2 adam_eps "
        "adam_weight_decay",
    ),
    ("scion", dm.scion, {"learning_rate": 0.1}, "learning_rate momentum"),
    (
        "drop_muon",
        dm.drop_muon,
        {
            "learning_rate": 0.1,
            "layers": LAYERS,
            "sampling": samplings.Full(),
            "key": KEY,
        },
        "learning_rate momentum weight_decay",
    ),
    (
        "ef21_muon",
        dm.ef21_muon,
        {
            "learning_rate": 0.1,
            "layers": LAYERS,
            "worker_compressor": compressors.Natural(),
            "num_workers": 1,
            "key": KEY,
        },
        "learning_rate momentum weight_decay num_workers",
    ),
    ("scale_by_momentum", dm.scale_by_momentum, {}, "momentum"),
    ("schedule", dm.gluon_learning_rate_schedule, {"t": 1.0}, "t"),
    ("horizon", dm.ef21_muon_horizon, {"num_steps": 9}, "num_steps eta"),
    ("Layer", dm.Layer, {"index": 0, "norm": None}, "radius"),
    ("Stacked", dm.Stacked, {"start": 0, "norm": None}, "radius"),
    ("AdaptiveRadius", dm.AdaptiveRadius, {"l0": 1.0, "l1": 1.0}, "l0 l1"),
    (
        "track_smoothness",
        dm.track_smoothness,
        {"layers": LAYERS},
        "capacity every asymmetry",
    ),
    ("StepCost", dm.StepCost, {"fixed": 1.0, "per_layer": (1.0,)}, "fixed"),
    (
        "estimated_layers",
        lambda max_honesty: dm.estimated_layers(LAYERS, [], max_honesty=max_honesty),
        {"max_honesty": 1.0},
        "max_honesty",
    ),
    (
        "measure_smoothness",
        lambda shares: dm.measure_smoothness(abs, LAYERS, 0, 0, shares=(shares,)),
        {"shares": 1.0},
        "shares",
    ),
    (
        "optimal_probabilities",
        lambda smoothness: dm.optimal_probabilities(
            dm.StepCost(1.0, (1.0,)), (smoothness,)
        ),
        {"smoothness": 1.0},
        "smoothness",
    ),
    ("Monomial", norms.Monomial, {}, "fan_in fan_out constant at_most"),
    ("Spectral", norms.Spectral, {}, "num_steps"),
    ("Scaled", norms.Scaled, {"inner": norms.RMS(), "factor": 2.0}, "factor"),
    ("scion_conv", lambda k: norms.scion_conv(k), {"k": 3}, "k"),
    (
        "lmo",
        lambda radius: norms.RMS().lmo(jnp.ones((2, 2)), radius),
        {"radius": 1.0},
        "radius",
    ),
    ("TopK", compressors.TopK, {"fraction": 0.5}, "fraction block"),
    ("ColumnTopK", compressors.ColumnTopK, {"fraction": 0.5}, "fraction"),
    ("RandK", compressors.RandK, {"fraction": 0.5}, "fraction block"),
    ("RankK", compressors.RankK, {"fraction": 0.5}, "fraction num_steps"),
    ("Natural", compressors.Natural, {}, "bits"),
    ("Damping", compressors.Damping, {"factor": 0.5}, "factor"),
    ("Dropout", compressors.Dropout, {"probability": 0.5}, "probability"),
    ("Nice", samplings.Nice, {"tau": 1}, "tau"),
    ("EpochShift", samplings.EpochShift, {"num_steps": 9}, "num_steps alpha"),
    ("LinearShift", samplings.LinearShift, {"num_steps": 9}, "num_steps"),
    (
        "Independent",
        samplings.Independent,
        {"probabilities": (0.5,)},
        "probabilities",
    ),
    ("Progressive", samplings.Progressive, {}, "probabilities"),
    (
        "active_layers",
        dm.active_layers,
        {"sampling": samplings.Full(), "num_layers": 2, "key": KEY, "step": 0},
        "num_layers step",
    ),
    (
        "newton_schulz",
        lambda num_steps: linalg.newton_schulz(jnp.eye(2), num_steps),
        {"num_steps": 5},
        "num_steps",
    ),
]

# Where a function of the step count is a schedule, or of the sides a factor.
TAKE_FUNCTIONS = {
    "learning_rate",
    "momentum",
    "weight_decay",
    "adam_weight_decay",
    "radius of Layer",
    "radius of Stacked",
    "factor of Scaled",
}
# Where None has a meaning of its own.
TAKE_NONE = {
    "block of TopK",
    "num_steps of Spectral",
    "probabilities of Progressive",
}
WRONG = {
    "function": a_function,
    "string": "0.5",
    "None": None,
    "nan": math.nan,
    "bool": True,
}


def table() -> list[Any]:
    lines = []
    for function, make, arguments, names in FUNCTIONS:
        for name in names.split():
            known = {name, f"{name} of {function}"}
            for kind, value in WRONG.items():
                if kind == "function" and known & TAKE_FUNCTIONS:
                    continue
                if kind == "None" and known & TAKE_NONE:
                    continue
                label = f"{function}-{name}-{kind}"
                lines.append(pytest.param(make, arguments, name, value, id=label))
    return lines


@pytest.mark.parametrize(("make", "arguments", "name", "value"), table())
def test_what_is_no_number_is_refused(
    make: Any, arguments: dict[str, Any], name: str, value: Any
):
    named = "kernel_size" if name == "k" else name
    with pytest.raises(ValueError, match=f"`{named}`"):
        make(**{**arguments, name: value})


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_every_number_of_a_transformation_is_in_the_table(case: Case):
    numbers = {
        name
        for name, parameter in inspect.signature(case.make).parameters.items()
        if type(parameter.default) in (int, float)
    }
    listed = {
        name
        for _, make, _, names in FUNCTIONS
        for name in names.split()
        if make is case.make
    }
    assert numbers <= listed


@pytest.mark.parametrize("name", ["nesterov", "constrained", "adam_nesterov"])
def test_flags_are_bools(name: str):
    make = dm.muon if name == "adam_nesterov" else dm.gluon
    with pytest.raises(ValueError, match=f"`{name}` must be True or False, got 'no'"):
        make(0.1, **{name: "no"})


def test_arrays_that_are_no_numbers():
    for value in (jnp.ones(2), np.ones(2), np.bool_(True), jnp.array(True), 1j):
        with pytest.raises(ValueError, match="`weight_decay` must be a number"):
            dm.gluon(0.1, weight_decay=value)
    for value in (jnp.array(0.5), np.float32(0.5), np.array(0.5), 1):
        dm.gluon(0.1, weight_decay=value)


def test_a_probability_alone_says_what_is_wanted():
    with pytest.raises(ValueError, match=r"sequence.*one for each layer.*\(0.5, 1.0\)"):
        samplings.Independent(0.5)


def decayed(k: int) -> float:
    """A schedule, and the same as a Python number."""
    return 0.5 / (1 + k)


def schedule(count: Any) -> Any:
    return 0.5 / (1 + jnp.asarray(count, jnp.float32))


SCHEDULED = {
    "gluon": lambda decay: dm.gluon(0.1, weight_decay=decay),
    "muon": lambda decay: dm.muon(0.1, weight_decay=decay, adam_weight_decay=decay),
    "drop_muon": lambda decay: case_named("drop_muon").build(
        learning_rate=0.1, weight_decay=decay
    ),
    "ef21_muon": lambda decay: case_named("ef21_muon").build(
        learning_rate=0.1, weight_decay=decay
    ),
}
PARAMS = {
    "kernel": jnp.arange(1.0, 13.0).reshape(4, 3) / 8,
    "bias": jnp.array([0.5, -1.0, 2.0]),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", SCHEDULED)
def test_weight_decay_follows_its_schedule(name: str):
    tx = SCHEDULED[name](schedule)
    state = tx.init(PARAMS)
    update = jit(tx.update)
    plain = [SCHEDULED[name](decayed(k)) for k in range(3)]
    states = plain[0].init(PARAMS)
    for k in range(3):
        updates, state = update(PARAMS, state, PARAMS)
        expected, states = plain[k].update(PARAMS, states, PARAMS)
        for got, want in zip(
            jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True
        ):
            # float32, and Newton–Schulz's in another program
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def radii(radius: Any) -> Any:
    return given(
        {
            "kernel": dm.Layer(0, norms.MaxEntry(), radius),
            "bias": dm.Layer(1, norms.MaxEntry(), 2.0),
            "stack": dm.Stacked(2, norms.Scaled(norms.MaxEntry(), 4.0), radius),
        }
    )


TREE = {**PARAMS, "stack": jnp.ones((3, 2, 2))}
BY_RADIUS = {
    "gluon": lambda layers: dm.gluon(0.5, layers),
    "muon": lambda layers: dm.muon(0.5, layers, momentum=0.5),
    "drop_muon": lambda layers: dm.drop_muon(
        0.5, layers, samplings.RoundRobin(), key=KEY
    ),
    "ef21_muon": lambda layers: dm.ef21_muon(
        0.5, layers, compressors.Identity(), num_workers=1, key=KEY
    ),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", BY_RADIUS)
def test_a_radius_follows_its_schedule(name: str, compiled: bool):
    tx = BY_RADIUS[name](radii(schedule))
    state, update = tx.init(TREE), jit(tx.update) if compiled else tx.update
    for k in range(5):
        updates, state = update(TREE, state, TREE)
        moves = [name != "drop_muon" or k == i for i in range(5)]
        kernel, bias, stack = (updates[key] for key in ("kernel", "bias", "stack"))
        # The gradient is the weights; 0.5 is the learning rate, 4 the norm's factor.
        expected = -0.5 * decayed(k) * np.sign(TREE["kernel"]) * moves[0]
        np.testing.assert_allclose(kernel, expected, rtol=1e-6)
        np.testing.assert_allclose(bias, -np.sign(TREE["bias"]) * moves[1])
        rows = np.array(moves[2:], float)[:, None, None] * np.ones((3, 2, 2))
        np.testing.assert_allclose(stack, -0.5 * decayed(k) / 4 * rows, rtol=1e-6)


def test_a_static_set_follows_the_schedule_of_a_radius():
    tx = BY_RADIUS["drop_muon"](radii(schedule))
    state = tx.init(TREE)
    for k, active in enumerate([(1, 0, 0, 0, 0), (0, 1, 0, 1, 0), (1, 0, 1, 0, 0)]):
        moves = tuple(map(bool, active))
        updates, state = tx.update(TREE, state, TREE, active=moves)
        expected = -0.5 * decayed(k) * moves[0]
        np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-6)
        rows = np.array(moves[2:], float)[:, None, None] * np.ones((3, 2, 2))
        np.testing.assert_allclose(
            updates["stack"], -0.5 * decayed(k) / 4 * rows, rtol=1e-6
        )


def test_a_ball_has_a_radius_not_a_schedule():
    with pytest.raises(ValueError, match="'kernel' must have a fixed radius"):
        dm.init_on_ball(TREE, radii(schedule), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"`key` must be one PRNG key.*got 7"):
        dm.init_on_ball(PARAMS, key=7)


def test_a_schedule_beside_the_constraint_is_refused():
    for changes in ({"weight_decay": schedule}, {"weight_decay_mask": True}):
        with pytest.raises(ValueError, match="`weight_decay` must be 0"):
            dm.gluon(0.1, constrained=True, **changes)


def test_optax_schedules_are_schedules():
    ramp = optax.linear_schedule(0.0, 1.0, 10)
    dm.muon(ramp, momentum=ramp, weight_decay=ramp, adam_weight_decay=ramp)


def test_describe_says_that_a_radius_is_a_schedule():
    assert dm.describe(radii(schedule), TREE).count("  schedule  ") == 2


def test_an_infinite_learning_rate_is_refused():
    for make in (dm.gluon, dm.muon, dm.scion):
        with pytest.raises(ValueError, match="`learning_rate` must be in"):
            make(math.inf)


def test_momentum_is_nine_tenths_where_nothing_else_is_said():
    first = {"kernel": jnp.full((2, 3), 4.0)}
    tx = dm.scale_by_momentum()
    _, state = tx.update(first, tx.init(first), first)
    updates, _ = tx.update({"kernel": jnp.zeros((2, 3))}, state, first)
    start = 0.1 * 4.0  # (1 − β)·4, from a buffer of zeros
    np.testing.assert_allclose(updates["kernel"], 0.9 * start, rtol=1e-6)
