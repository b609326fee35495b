"""Many steps of a small problem: what grows, what stalls, what leaves its ball.

½‖X − T‖² of a matrix and a vector, with noise of a hundredth in the gradients. T lies
outside the balls of constrained Scion, so that its iterates run along their boundary.
`python -m tests.drift` takes 100,000 steps of every algorithm, in float32 and bfloat16.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dropmuon_optax as dm

KEY = np.uint32([0, 7])
SHAPES = {"kernel": (8, 6), "bias": (6,)}
RADIUS = 2.0
EXACT = dm.norms.Spectral(num_steps=None)


def _layers(spectral: dm.norms.Norm, radius: float = 1.0) -> Any:
    geometry = [("kernel", spectral, radius), ("bias", dm.norms.RMS(), radius)]
    return dm.layers_by_path(["kernel", "bias"], geometry)


def _ef21(rate: float, server: Any) -> Any:
    worker, layers = dm.compressors.TopK(0.25), _layers(EXACT)
    return dm.ef21_muon(rate, layers, worker, server, num_workers=1, key=KEY)


MAKE = {
    "gluon": lambda rate: dm.gluon(rate, _layers(EXACT)),
    "gluon (L⁰, L¹)": lambda rate: dm.gluon(
        1.0, _layers(EXACT, dm.AdaptiveRadius(1.0 / rate, 1.0)), momentum=0.0
    ),
    "muon": lambda rate: dm.muon(rate, weight_decay=0.1),
    "scion, exact": lambda rate: dm.scion(rate, _layers(EXACT, RADIUS)),
    "scion": lambda rate: dm.scion(rate, _layers(dm.norms.Spectral(), RADIUS)),
    "drop_muon": lambda rate: dm.drop_muon(
        rate, _layers(EXACT), dm.samplings.Progressive(), key=KEY
    ),
    "ef21_muon": lambda rate: _ef21(rate, None),
    "ef21_muon, server": lambda rate: _ef21(rate, dm.compressors.Natural()),
}


class Seen(NamedTuple):
    """Of a step, or the largest and last of many."""

    spectral: Any  # ‖X‖₂ of the matrix
    rms: Any  # of the vector
    gap: Any  # ‖W − X‖_F, where the two differ
    distance: Any  # ‖X − T‖_F
    still: Any  # the share of entries that the step leaves as they are


def run(name: str, dtype: str, num_steps: int, rate: float) -> dict[str, float]:
    """Runs an algorithm and says what was seen, in units of what it is to be below."""
    keys = jax.random.split(jax.random.key(3), len(SHAPES))
    target = {
        name: 3.0 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }
    tx = MAKE[name](rate)
    params = jax.tree.map(lambda t: jnp.zeros_like(t, dtype=dtype), target)

    def step(carry: Any, k: Any) -> Any:
        w, state, worst = carry
        noise = jax.random.fold_in(jax.random.key(4), k)

        def gradient(w: Any, t: Any) -> Any:
            random = 0.01 * jax.random.normal(noise, t.shape)
            return (w.astype(t.dtype) - t + random).astype(w.dtype)

        g = jax.tree.map(gradient, w, target)
        updates, state = tx.update(g, state, w)
        new = jax.tree.map(lambda w, u: w + u, w, updates)
        seen = _look(name, w, new, state, target)
        return (new, state, jax.tree.map(jnp.maximum, worst, seen)), seen

    def whole(params: Any, state: Any) -> Any:
        first = Seen(*[jnp.zeros(())] * len(Seen._fields))
        carry = params, state, first
        (_, state, worst), seen = jax.lax.scan(step, carry, jnp.arange(num_steps))
        tail = jax.tree.map(lambda x: x[-(num_steps // 10) :], seen)
        head = jax.tree.map(lambda x: jnp.max(x[: num_steps // 10]), seen)
        return worst, tail, head

    with jax.numpy_dtype_promotion("standard"):
        worst, tail, head = jax.jit(whole)(params, tx.init(params))
    return {
        "largest_spectral_over_radius": float(worst.spectral) / RADIUS,
        "largest_rms_over_radius": float(worst.rms) / RADIUS,
        "largest_gap_in_the_first_tenth": float(head.gap),
        "largest_gap": float(worst.gap),
        "last_distance": float(jnp.mean(tail.distance)),
        "still_entries_in_the_last_tenth": float(jnp.mean(tail.still)),
    }


def _look(name: str, old: Any, w: Any, state: Any, target: Any) -> Seen:
    x = dm.ef21_muon_eval_params(state, w) if name.startswith("ef21") else w
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), x)
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(wide)])
    goal = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(target)])
    here = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(w)])
    before = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(old)])
    return Seen(
        spectral=EXACT.norm(wide["kernel"]),
        rms=dm.norms.RMS().norm(wide["bias"][None]),
        gap=jnp.linalg.norm(here.astype(jnp.float32) - flat),
        distance=jnp.linalg.norm(flat - goal),
        still=jnp.mean((here == before).astype(jnp.float32)),
    )
