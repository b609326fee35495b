"""Each row of the pages on moving over: a peer's options, and ours that equal them."""

import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.reference import peers

PAGES = pathlib.Path(__file__).parents[2] / "docs" / "moving"
ROW = re.compile(r"^\| (.+?) \| `(.+)` \| `(.+)` \| (.+?) \|$", re.MULTILINE)
NUM_STEPS, LATER = 5, 200  # 0.95²⁰⁰ = 3.5e-5


def rows(page):
    return ROW.findall((PAGES / f"{page}.md").read_text())


def each(*pages):
    return [
        pytest.param(page, *row[1:], id=f"{page}, {row[0]}")
        for page in pages
        for row in rows(page)
    ]


@pytest.fixture(autouse=True)
def users_settings():
    """JAX's own promotion of types and ranks, as users have it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def names_of(page):
    """What the page's programs define."""
    text = (PAGES / f"{page}.md").read_text()
    found = {"jax": jax}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, f"{page}.md", "exec"), found)
    return found


def trajectory(tx, num_steps):
    """The updates of every step, on one sequence of gradients."""
    random = np.random.default_rng(0)

    def tree():
        return {
            name: {
                "kernel": jnp.asarray(random.standard_normal((8, 16)), jnp.float32),
                "bias": jnp.asarray(random.standard_normal(16), jnp.float32),
            }
            for name in ("a", "b")
        }

    params, steps = tree(), []
    state = tx.init(params)
    update = jax.jit(tx.update) if num_steps > NUM_STEPS else tx.update
    for _ in range(num_steps):
        updates, state = update(tree(), state, params)
        params = jax.tree.map(
            lambda p, u: jnp.asarray(p + u, jnp.float32), params, updates
        )
        steps.append([np.asarray(u, np.float64) for u in jax.tree.leaves(updates)])
    return steps


def errors(theirs, ours):
    """Of every step: the largest difference, as a share of the largest entry."""
    return [
        max(
            np.abs(t - o).max() / np.abs(t).max() for t, o in zip(one, two, strict=True)
        )
        for one, two in zip(theirs, ours, strict=True)
    ]


def check(theirs, ours, agreement):
    num_steps = LATER if agreement == "later steps" else NUM_STEPS
    found = errors(trajectory(theirs, num_steps), trajectory(ours, num_steps))
    if agreement == "later steps":
        assert found[0] < 1e-4  # measured, compiled: 1.4e-5, float32 over five steps
        assert max(found) > 1e-3
        # What the corrections leave of the buffer's weight, and its mark on iterates.
        assert found[-1] < 3e-3
    else:
        assert max(found) < float(agreement)


@pytest.mark.parametrize(("page", "theirs", "ours", "agreement"), each("optax"))
def test_optax(page, theirs, ours, agreement):
    names = names_of(page)
    check(eval(theirs, names), eval(ours, names), agreement)


@pytest.mark.parametrize(
    ("page", "theirs", "ours", "agreement"), each("keller_jordan", "scion")
)
def test_formulas(page, theirs, ours, agreement):
    names = names_of(page)
    names["theirs"] = {"keller_jordan": peers.keller_jordan, "scion": peers.scion}[page]
    check(eval(theirs, names), eval(ours, names), agreement)


def maxtext(
    muon_beta=0.95,
    muon_weight_decay=0.0,
    muon_consistent_rms=None,
    adam_b1=0.9,
    adam_b2=0.95,
    adam_eps=1e-8,
    adam_weight_decay=0.0,
    mu_dtype=None,
):
    """What MaxText calls for `opt_type: muon`."""
    return optax.contrib.muon(
        0.02,
        eps=adam_eps,
        mu_dtype=mu_dtype,
        beta=muon_beta,
        weight_decay=muon_weight_decay,
        consistent_rms=muon_consistent_rms,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_weight_decay=adam_weight_decay,
    )


@pytest.mark.parametrize(("page", "theirs", "ours", "agreement"), each("maxtext"))
def test_maxtext(page, theirs, ours, agreement):
    names = names_of(page) | {"theirs": maxtext}
    check(eval(theirs, names), eval(ours, names), agreement)


@pytest.mark.parametrize(("page", "theirs", "ours", "agreement"), each("torch"))
def test_torch(page, theirs, ours, agreement):
    torch = pytest.importorskip(
        "torch", reason="PyTorch is no dependency of the tests; install it to compare"
    )

    def muon(**options):
        """`torch.optim.Muon` of one leaf after the other, as a transformation."""
        options = {"lr": 0.02, "weight_decay": 0.0} | options

        def init(params):
            leaves = [x for x in jax.tree.leaves(params) if x.ndim == 2]
            weights = [torch.nn.Parameter(torch.tensor(np.array(x).T)) for x in leaves]
            return weights, torch.optim.Muon(weights, **options)

        def update(grads, state, params):
            weights, optimizer = state
            before = [weight.detach().clone() for weight in weights]
            leaves = [g for g in jax.tree.leaves(grads) if g.ndim == 2]
            for weight, g in zip(weights, leaves, strict=True):
                weight.grad = torch.tensor(np.array(g).T)
            optimizer.step()
            moved = [
                (w.detach() - x).numpy().T for w, x in zip(weights, before, strict=True)
            ]
            moved = iter(moved)
            out = [
                next(moved) if x.ndim == 2 else jnp.zeros_like(x)
                for x in jax.tree.leaves(params)
            ]
            return jax.tree.unflatten(jax.tree.structure(params), out), state

        return optax.GradientTransformation(init, update)

    def kernels_alone(tx):
        """On kernels; biases stay, as `torch.optim.Muon` has none."""
        label = lambda x: "tx" if x.ndim == 2 else "none"  # noqa: E731
        return optax.partition(
            {"tx": tx, "none": optax.set_to_zero()},
            lambda params: jax.tree.map(label, params),
        )

    names = names_of(page) | {"theirs": muon}
    one = trajectory(eval(theirs, names), NUM_STEPS)
    two = trajectory(kernels_alone(eval(ours, names)), NUM_STEPS)
    matrices = [[u for u in step if u.ndim == 2] for step in one]
    others = [[u for u in step if u.ndim == 2] for step in two]
    assert max(errors(matrices, others)) < float(agreement)


def test_every_argument_of_optax_muon_has_its_row():
    options = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows("optax"))))
    arguments = set(inspect.signature(optax.contrib.muon).parameters)
    assert arguments - options == set()


def test_every_argument_of_torch_muon_has_its_row():
    torch = pytest.importorskip(
        "torch", reason="PyTorch is no dependency of the tests; install it to compare"
    )
    options = set(re.findall(r"`(\w+)", " ".join(row[0] for row in rows("torch"))))
    options = {
        "adjust_lr_fn" if name.startswith("adjust") else name for name in options
    }
    arguments = set(inspect.signature(torch.optim.Muon).parameters)
    assert arguments - options - {"params"} == set()
