"""Random cases of whole transformations on whole trees, and what must come of each."""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import dropmuon_optax as dm
from dropmuon_optax import compressors, samplings
from dropmuon_optax.algorithms.gluon import MomentumState
from tests.fuzz.nouns import DTYPES, FLOATS, Values, is_ours, pick
from tests.fuzz.oracles import NORMS, check_step
from tests.fuzz.values import KINDS, array, claim, computed, seen

SHAPES = (
    (),
    (3,),
    (0,),
    (1, 5),
    (4, 4),
    (6, 3),
    (0, 4),
    (2, 3, 4),
    (2, 2, 3, 4),
    (1, 2, 2, 3, 4),
)
NAMES = ("kernel", "bias", "embedding", "w")
WORKERS = (
    compressors.Identity(),
    compressors.Natural(),
    compressors.TopK(0.5),
    compressors.RankK(0.5),
)


class Pair(NamedTuple):
    """A node of a tree that is neither a dictionary nor a list."""

    left: Any
    right: Any


def trees(leaf: Any) -> Any:
    nothing = st.one_of(st.none(), st.builds(optax.MaskedNode), st.just({}))
    some = st.one_of(leaf, leaf, leaf, leaf, nothing)
    node = st.one_of(
        some,
        st.dictionaries(pick(*NAMES), some, max_size=2),
        st.lists(some, max_size=2),
        st.builds(Pair, some, leaf),
    )
    named = st.dictionaries(pick(*NAMES), node, min_size=1, max_size=3)
    return st.one_of(named, named, named, leaf, node.filter(lambda x: x is not None))


@dataclasses.dataclass(frozen=True)
class Gradients:
    """A leaf: its weights' kind is plain, its gradients are of a kind each step."""

    shape: tuple[int, ...]
    dtype: str
    kinds: tuple[str, str]
    seed: int

    def weights(self) -> jax.Array:
        return Values("normal", self.shape, self.dtype, self.seed).make()

    def gradient(self, step: int, worker: int = 0) -> np.ndarray:
        seed = self.seed + 1 + step + 7 * worker
        return array(self.kinds[step], self.shape, self.dtype, seed)


@dataclasses.dataclass(frozen=True)
class OfStep:
    """Some steps of a transformation."""

    algorithm: str
    tree: Any
    norm: int
    radius: float
    learning_rate: float
    momentum: float
    nesterov: bool
    decay: float
    wide: bool  # whether the momentum is float32
    num_steps: int
    stacked: bool

    @property
    def family(self) -> str:
        return self.algorithm

    def run(self) -> str:
        flat, structure = jax.tree.flatten(self.tree)
        params = jax.tree.unflatten(structure, [leaf.weights() for leaf in flat])
        wrong = _wrong(self, params)
        try:
            return self._steps(flat, structure, params, wrong)
        except (ValueError, TypeError) as error:
            claim(is_ours(error), f"a bare {type(error).__name__}: {error}")
            claim(wrong, f"refused without a reason: {error}")
            named = any(f"{path!r}" in str(error) for path in wrong)
            claim(named, f"no leaf of {wrong} in the message: {error}")
            return "refused"

    def _steps(self, flat: Any, structure: Any, params: Any, wrong: Any) -> str:
        tx = MAKE[self.algorithm](self)
        state, outcome = tx.init(params), "agrees"
        claim(not wrong, f"{wrong} is not refused")
        for k in range(self.num_steps):
            g = [jnp.asarray(leaf.gradient(k)) for leaf in flat]
            old = state
            updates, state = tx.update(jax.tree.unflatten(structure, g), old, params)
            claim(jax.tree.structure(updates) == structure, "another structure")
            moved = self._moves(params, k)
            buffers = _momentum(state)
            found = jax.tree.leaves(updates)
            olds = _momentum(old) or [None] * len(found)
            sure = buffers or [None] * len(found)
            for i, (u, x) in enumerate(
                zip(found, jax.tree.leaves(params), strict=True)
            ):
                claim(
                    (u.shape, u.dtype) == (x.shape, x.dtype), "another shape or dtype"
                )
                if not moved[i]:
                    claim(not np.asarray(u).astype(float).any(), "frozen, and moves")
                    continue
                said = self._check(x, g[i], u, olds[i], sure[i])
                outcome = "agrees" if outcome == said == "agrees" else said
            params = optax.apply_updates(params, updates)
        return outcome

    def _moves(self, params: Any, k: int) -> list[bool]:
        leaves = jax.tree.leaves(params)
        if self.algorithm != "drop_muon" or not leaves:
            return [True] * len(leaves)
        tree = layers_of(self)(params)
        b = dm.count_layers(tree, params)
        sets = dm.active_layers(SAMPLING, b, KEY, k)
        return [sets[layer.index] for layer in jax.tree.leaves(tree)]

    def _check(self, x: Any, g: Any, u: Any, old: Any, m: Any) -> str:
        """One leaf's update against the box, from the momentum that is kept."""
        if m is None:  # nothing is kept of it: AdamW's, or another state
            finite = np.isfinite(np.asarray(g).astype(np.float64)).all()
            claim(np.isfinite(np.asarray(u).astype(float)).all() == finite, "AdamW")
            return "agrees" if finite else "not finite, and says so"
        beta = self.momentum
        new, kept = seen(g), seen(old)
        with np.errstate(invalid="ignore"):
            mean = beta * kept + (1 - beta) * new
        held = np.asarray(m).astype(np.float64)
        bad = ~(np.abs(mean) <= float(jnp.finfo(m.dtype).max))
        claim(not np.isfinite(held[bad]).any(), "the momentum of NaN is a number")
        off = np.abs(held[~bad] - mean[~bad]) - _bottom(m.dtype)
        room = 4 * float(jnp.finfo(m.dtype).eps) * np.abs(mean[~bad])
        claim((off <= room).all(), "the momentum")
        with np.errstate(invalid="ignore"):
            direction = (1 - beta) * new + beta * held if self.nesterov else held
        return self._check_matrices(x, u, direction)

    def _check_matrices(self, x: Any, u: Any, direction: np.ndarray) -> str:
        known, outcome = NORMS[self.norm], "agrees"
        lr, w, dtype = self.learning_rate, np.asarray(x).astype(np.float64), u.dtype
        step = -np.asarray(u).astype(np.float64) - lr * self.decay * w
        eps = float(jnp.finfo(dtype).eps) * (8 + 4 * self.decay * w.size * 4)
        for g, s in zip(as_matrices(direction), as_matrices(step), strict=True):
            if not np.isfinite(g).all():
                claim(np.isnan(s).all(), "a plausible step of what is not finite")
                outcome = "not finite, and says so"
            elif g.size:
                smallest = float(computed(dtype).smallest_normal)
                g = np.where(np.abs(g) < smallest, 0.0, g)
                shrink = lr * self.decay * np.abs(w).max()
                slack = eps * (1 + shrink / max(lr * self.radius, 1e-30))
                check_step(known, g, s, lr * self.radius, slack, dtype)
        return outcome


SAMPLING, KEY = samplings.RoundRobin(), np.uint32([0, 7])


def as_matrices(x: np.ndarray) -> np.ndarray:
    """(count, m, n): as the explicit views below have it."""
    if x.ndim in (2, 3):
        return x if x.ndim == 3 else x[None]
    rows = math.prod(x.shape[:-1]) if x.ndim > 3 else 1  # kernels of a convolution
    return x.reshape(1, rows, -1) if x.size else x.reshape(1, 0, 1)


def _view(ndim: int) -> dm.View:
    if ndim < 2:
        return dm.View((), (0,) * ndim)
    rows = (-2,) if ndim < 4 else tuple(range(ndim - 1))
    return dm.View(rows, (-1,))


def layers_of(case: OfStep) -> Any:
    """Every leaf a layer of its own, with the case's norm."""

    def layers(params: Any) -> Any:
        numbers = itertools.count()
        norm = NORMS[case.norm].norm
        return jax.tree.map(
            lambda x: dm.Layer(next(numbers), norm, case.radius, _view(x.ndim)), params
        )

    return layers


def _bottom(dtype: Any) -> float:
    """Half of what is between a dtype's smallest numbers, and what XLA flushes."""
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    return max(2 * smallest, 4 * float(computed(dtype).smallest_normal))


def _momentum(state: Any) -> list[Any] | None:
    nodes = jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, MomentumState))
    found = [node for node in nodes if isinstance(node, MomentumState)]
    return jax.tree.leaves(found[0].momentum) if found else None


def _wrong(case: OfStep, params: Any) -> list[str]:
    """Paths of leaves that have to be refused."""
    return [
        jax.tree_util.keystr(keys, simple=True, separator="/")
        for keys, x in jax.tree.leaves_with_path(params)
        if not jnp.issubdtype(x.dtype, jnp.floating) or (x.size and _too_large(case, x))
    ]


def _too_large(case: OfStep, x: Any) -> bool:
    unit = np.zeros_like(as_matrices(np.zeros(x.shape))[0])
    unit[0, 0] = 1.0
    largest = case.radius * NORMS[case.norm].dual(unit)
    return largest > 0.5 * float(jnp.finfo(x.dtype).max)


def _common(case: OfStep) -> dict[str, Any]:
    dtype = {"momentum_dtype": "float32"} if case.wide else {}
    return {"momentum": case.momentum, "nesterov": case.nesterov, **dtype}


MAKE = {
    "gluon": lambda c: dm.gluon(
        c.learning_rate, layers_of(c), weight_decay=c.decay, **_common(c)
    ),
    "muon": lambda c: dm.muon(
        c.learning_rate, layers_of(c), weight_decay=c.decay, **_common(c)
    ),
    "scion": lambda c: dm.scion(
        c.learning_rate, layers_of(c), momentum=c.momentum, constrained=c.decay > 0
    ),
    "drop_muon": lambda c: dm.drop_muon(
        c.learning_rate,
        layers_of(c),
        SAMPLING,
        key=KEY,
        weight_decay=c.decay,
        **_common(c),
    ),
}


def step_cases() -> Any:
    leaf = st.builds(
        Gradients,
        pick(*SHAPES),
        pick(*FLOATS[:3] * 4, *DTYPES),
        st.tuples(pick(*KINDS), pick(*KINDS)),
        st.integers(0, 2**16),
    )
    cases = st.builds(
        OfStep,
        pick(*MAKE),
        trees(leaf),
        st.integers(0, len(NORMS) - 1),
        pick(1.0, 2.5, 0.0, 3000.0, 1e30),
        pick(0.25, 0.0, 1.0),
        pick(0.0, 0.5, 0.875),
        st.booleans(),
        pick(0.0, 0.0, 0.5, 1.0),
        st.booleans(),
        pick(1, 1, 2),
        st.booleans(),
    )
    return cases.map(_consistent)


def _consistent(case: OfStep) -> OfStep:
    """Scion has neither Nesterov's momentum nor a decay but the constraint's."""
    if case.algorithm != "scion":
        return case
    decay = float(case.decay > 0)
    return dataclasses.replace(case, nesterov=False, wide=False, decay=decay)
