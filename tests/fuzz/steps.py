"""Random cases of whole transformations on whole trees, and what must come of each."""

import dataclasses
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
from tests.fuzz.oracles import NORMS, Known, check_step, inexact
from tests.fuzz.values import KINDS, array, claim, computed, seen
from tests.reference.oracles import newton_schulz

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
    axis: int | None  # over layers, where the leaf is stacked

    def weights(self) -> jax.Array:
        return Values("normal", self.shape, self.dtype, self.seed).make()

    def gradient(self, step: int, worker: int = 0) -> np.ndarray:
        seed = self.seed + 1 + step + 7 * worker
        return array(self.kinds[step], self.shape, self.dtype, seed)

    @property
    def num_layers(self) -> int:
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def has_axis(self) -> bool:
        """Whether there is the axis that it is stacked along."""
        ndim = len(self.shape)
        return self.axis is None or -ndim <= self.axis < ndim

    def layers(self, x: np.ndarray) -> list[np.ndarray]:
        """Of each layer, its matrices, (count, m, n)."""
        if self.axis is None:
            return [as_matrices(x)]
        return [as_matrices(x.take(j, self.axis)) for j in range(self.num_layers)]


@dataclasses.dataclass(frozen=True)
class OfStep:
    """Some steps of a transformation."""

    algorithm: str
    tree: Any
    norm: int
    radius: Any  # a number, or an `AdaptiveRadius`
    learning_rate: float
    momentum: float
    nesterov: bool
    decay: float
    wide: bool  # whether the momentum is float32
    num_steps: int

    @property
    def family(self) -> str:
        return self.algorithm

    def run(self) -> str:
        flat, structure = jax.tree.flatten(self.tree)
        params = jax.tree.unflatten(structure, [leaf.weights() for leaf in flat])
        wrong = wrong_leaves(self)
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
            moves, found = self._moves(params, k), jax.tree.leaves(updates)
            rows = zip(flat, jax.tree.leaves(params), g, found, strict=True)
            kept = zip(_momentum(old), _momentum(state), strict=True)
            for i, (leaf, x, new, u) in enumerate(rows):
                claim(
                    (u.shape, u.dtype) == (x.shape, x.dtype), "another shape or dtype"
                )
                said = self._check(leaf, moves[i], x, new, u, *next(kept))
                outcome = worse(outcome, said)
            params = optax.apply_updates(params, updates)
        return outcome

    def _moves(self, params: Any, k: int) -> list[list[bool]]:
        """Of each leaf, which of its layers move."""
        flat = jax.tree.leaves(self.tree)
        if self.algorithm != "drop_muon" or not flat:
            return [[True] * leaf.num_layers for leaf in flat]
        tree = layers_of(self)(params)
        b = dm.count_layers(tree, params)
        sets = iter(dm.active_layers(SAMPLING, b, KEY, k) if b else ())
        return [[next(sets) for _ in range(leaf.num_layers)] for leaf in flat]

    def _check(self, leaf: Any, moves: Any, x: Any, g: Any, u: Any, *kept: Any) -> str:
        """One leaf's update against the box, from the momentum before and after."""
        outcome, beta = "agrees", self.momentum
        arrays = [leaf.layers(wide(a)) for a in (x, seen(g), u, seen(kept[0]), kept[1])]
        for i, (w, new, update, old, held) in enumerate(zip(*arrays, strict=True)):
            if not moves[i]:
                claim(not update.any(), "frozen, and moves")
                claim(np.array_equal(seen(old), seen(held), True), "frozen, and learns")
                continue
            check_momentum(beta, old, new, held, kept[1].dtype)
            with np.errstate(invalid="ignore"):
                direction = (1 - beta) * new + beta * held if self.nesterov else held
            said = check_matrices(self, direction, update, w, u.dtype)
            outcome = worse(outcome, said)
        return outcome


def worse(outcome: str, other: str) -> str:
    """What came of two things together."""
    return other if outcome == "agrees" else outcome


def wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def check_momentum(
    beta: float, old: np.ndarray, new: np.ndarray, held: np.ndarray, dtype: Any
) -> None:
    """Whether `held` is β·old + (1 − β)·new, in its dtype."""
    with np.errstate(invalid="ignore"):
        mean = beta * old + (1 - beta) * new
    bad = ~(np.abs(mean) <= float(jnp.finfo(dtype).max))
    claim(not np.isfinite(held[bad]).any(), "the momentum of NaN is a number")
    off = np.abs(held[~bad] - mean[~bad]) - _bottom(dtype)
    size = beta * np.abs(old) + (1 - beta) * np.abs(new)  # they may cancel
    room = 4 * float(jnp.finfo(dtype).eps) * size[~bad]
    claim((off <= room).all(), "the momentum")


def check_matrices(
    case: Any,
    direction: np.ndarray,
    update: np.ndarray,
    weights: np.ndarray,
    dtype: Any,
    rounded: float = 0.0,
) -> str:
    """Whether updates are LMOs of their directions, times γt, less γλ of the weights.

    Args:
      case: with `norm`, `radius`, `learning_rate` and `decay`.
      direction: matrices (count, m, n).
      update: likewise; the step, less weight decay.
      weights: likewise.
      dtype: of the update.
      rounded: by how much its entries may be off besides.
    """
    known, outcome, lr = NORMS[case.norm], "agrees", case.learning_rate
    eps = float(jnp.finfo(dtype).eps) * (8 + 16 * case.decay * weights.size)
    smallest = float(computed(dtype).smallest_normal)
    for g, u, w in zip(direction, update, weights, strict=True):
        if not np.isfinite(g).all():
            claim(np.isnan(u).all(), "a plausible step of what is not finite")
            outcome = "not finite, and says so"
        elif g.size:
            g = np.where(np.abs(g) < smallest, 0.0, g)
            radius = length(known, g, case.radius)
            t = lr * radius
            if max(t, radius) * entry(known, g.shape) > 0.25 * float(
                jnp.finfo(dtype).max
            ):
                outcome = "beyond its dtype"  # of an adaptive radius alone
                continue
            decay = lr * case.decay * w if case.decay else np.zeros(w.shape)
            off = np.abs(decay).max() + rounded / eps
            if not (t and g.any()):
                claim(np.abs(u + decay).max() <= eps * off, "zero does not go to zero")
                continue
            slack = eps * (1 + off * known.value(np.ones(g.shape)) / max(t, 1e-30))
            check_step(known, g, -u - decay, t, slack, dtype)
    return outcome


def length(known: Known, g: np.ndarray, radius: Any) -> float:
    """t: the radius, or Gluon's ‖g‖⋆/(L⁰ + L¹‖g‖⋆), with the ‖g‖⋆ that is attained."""
    if not isinstance(radius, dm.AdaptiveRadius):
        return radius
    largest = np.abs(g).max()
    if not largest:
        return 0.0
    unit = g / largest
    dual = known.dual(unit)
    if inexact(known):
        dual = known.scale(*g.shape) * (unit * newton_schulz(unit)).sum()
    return 1 / (radius.l0 / largest / dual + radius.l1)


def entry(known: Known, shape: tuple[int, ...]) -> float:
    """The largest entry of a matrix of length 1."""
    unit = np.zeros(shape)
    unit[0, 0] = 1.0
    return known.dual(unit)


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


def layers_of(case: Any) -> Any:
    """Every leaf a layer of its own, or a stack of layers, with the case's norm."""
    norm, index, found = NORMS[case.norm].norm, 0, {}
    for path, leaf in paths(case.tree).items():
        ndim = len(leaf.shape)
        if leaf.axis is None:
            found[path] = dm.Layer(index, norm, case.radius, _view(ndim))
        else:
            length = leaf.num_layers if leaf.has_axis and leaf.seed % 2 else None
            if case.family == "drop_muon" or not length:  # as its documentation says
                length = None
            view = _view(max(ndim - 1, 0))
            found[path] = dm.Stacked(
                index, norm, case.radius, view, length, axis=leaf.axis
            )
        index += leaf.num_layers if leaf.has_axis else 1

    def layers(params: Any) -> Any:
        return jax.tree.map_with_path(lambda keys, x: found[_path(keys)], params)

    return layers


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def paths(tree: Any) -> dict[str, Any]:
    """Leaves by path."""
    return {_path(keys): leaf for keys, leaf in jax.tree.leaves_with_path(tree)}


def _bottom(dtype: Any) -> float:
    """Half of what is between a dtype's smallest numbers, and what XLA flushes."""
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    return max(2 * smallest, 4 * float(computed(dtype).smallest_normal))


def _momentum(state: Any) -> list[Any]:
    nodes = jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, MomentumState))
    found = [node for node in nodes if isinstance(node, MomentumState)]
    return jax.tree.leaves(found[0].momentum) if found else []


def wrong_leaves(case: Any) -> list[str]:
    """Paths of leaves that have to be refused."""
    flat = paths(case.tree)
    wrong = [path for path, leaf in flat.items() if _is_wrong(case, leaf)]
    if case.family == "drop_muon" and not wrong:
        return list(flat) if not sum(leaf.num_layers for leaf in flat.values()) else []
    return wrong


def _is_wrong(case: Any, leaf: Gradients) -> bool:
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.has_axis:
        return True
    if isinstance(case.radius, dm.AdaptiveRadius):
        return False
    most = 0.5 * float(jnp.finfo(leaf.dtype).max)
    return any(
        case.radius * entry(NORMS[case.norm], x.shape[1:]) > most
        for x in leaf.layers(np.zeros(leaf.shape))
        if x.size
    )


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


def leaves() -> Any:
    return st.builds(
        Gradients,
        pick(*SHAPES),
        pick(*FLOATS[:3] * 4, *DTYPES),
        st.tuples(pick(*KINDS), pick(*KINDS)),
        st.integers(0, 2**16),
        pick(None, None, None, 0, 0, 1, -1),
    )


RADII = (1.0, 2.5, 0.0, 3000.0, 1e30)
SMOOTHNESS = ((1.0, 1.0), (0.0, 0.5), (4.0, 0.0), (100.0, 1e-3))
ADAPTIVE = tuple(dm.AdaptiveRadius(*pair) for pair in SMOOTHNESS)


def step_cases() -> Any:
    cases = st.builds(
        OfStep,
        pick(*MAKE),
        trees(leaves()),
        st.integers(0, len(NORMS) - 1),
        pick(*RADII, *RADII, *ADAPTIVE),
        pick(0.25, 0.0, 1.0),
        pick(0.0, 0.5, 0.875),
        st.booleans(),
        pick(0.0, 0.0, 0.5, 1.0),
        st.booleans(),
        pick(1, 1, 2),
    )
    return cases.map(_consistent)


def _consistent(case: OfStep) -> OfStep:
    """Scion has neither Nesterov's momentum nor a decay but the constraint's."""
    if case.algorithm != "scion":
        return case
    decay = float(case.decay > 0)
    return dataclasses.replace(case, nesterov=False, wide=False, decay=decay)
