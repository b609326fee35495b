"""Random cases of EF21-Muon over simulated workers, and what must come of each.

Every line of the box is judged by itself, from the state before and after: momenta,
what the messages make of the estimates, the server's mean, its step, and S.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import dropmuon_optax as dm
from dropmuon_optax import compressors
from dropmuon_optax.wire.server import iterate
from tests.fuzz.nouns import COMPRESSORS, is_ours, pick
from tests.fuzz.oracles import NORMS
from tests.fuzz.steps import (
    ADAPTIVE,
    KEY,
    RADII,
    check_matrices,
    check_momentum,
    layers_of,
    leaves,
    paths,
    trees,
    wide,
    worse,
    wrong_leaves,
)
from tests.fuzz.values import claim, seen
from tests.reference import ef21 as box

EPSILON = 2.0**-23
LARGEST = float(jnp.finfo(jnp.float32).max)
SMALLEST = float(jnp.finfo(jnp.float32).smallest_normal)


@dataclasses.dataclass(frozen=True)
class OfMessages:
    """Some steps of EF21-Muon."""

    tree: Any
    norm: int
    radius: Any
    learning_rate: float
    momentum: float
    decay: float
    wide: bool
    num_steps: int
    num_workers: int
    gather: bool
    worker: compressors.Compressor
    server: compressors.Compressor | None

    family = "ef21_muon"

    def run(self) -> str:
        flat, structure = jax.tree.flatten(self.tree)
        params = jax.tree.unflatten(structure, [leaf.weights() for leaf in flat])
        wrong = {*wrong_leaves(self), *_unsent(self)}
        try:
            return self._steps(flat, structure, params, wrong)
        except (ValueError, TypeError) as error:
            claim(is_ours(error), f"a bare {type(error).__name__}: {error}")
            claim(wrong, f"refused without a reason: {error}")
            named = "" in wrong or any(f"{path!r}" in str(error) for path in wrong)
            claim(named, f"no leaf of {wrong} in the message: {error}")
            return "refused"

    def _make(self) -> optax.GradientTransformationExtraArgs:
        return dm.ef21_muon(
            self.learning_rate,
            layers_of(self),
            self.worker,
            self.server,
            self.momentum,
            num_workers=self.num_workers,
            topology="gather" if self.gather else "owner",
            weight_decay=self.decay,
            momentum_dtype="float32" if self.wide else None,
            key=KEY,
        )

    def _steps(self, flat: Any, structure: Any, params: Any, wrong: Any) -> str:
        tx = self._make()
        state, outcome = tx.init(params), "agrees"
        claim(not wrong, f"{wrong} is not refused")

        def step(params: Any, state: Any, g: Any) -> Any:
            return tx.update(jax.tree.map(lambda x: x[0], g), state, params)

        run = step if self.num_workers == 1 else dm.worker_map(step, "data", state)
        for k in range(self.num_steps):
            each = range(self.num_workers)
            g = [
                jnp.asarray(np.stack([leaf.gradient(k, j) for j in each]))
                for leaf in flat
            ]
            old, structured = state, jax.tree.unflatten(structure, g)
            updates, state = run(params, old, structured)
            claim(jax.tree.structure(updates) == structure, "another structure")
            new = optax.apply_updates(params, updates)
            for i, u in enumerate(jax.tree.leaves(updates)):
                x = jax.tree.leaves(params)[i]
                same = (u.shape, u.dtype) == (x.shape, x.dtype)
                claim(same, "another shape or dtype")
                said = self._check(i, flat[i], x, g[i], u, old, state)
                outcome = worse(outcome, said)
            params = new
        return outcome

    def _check(
        self, i: int, leaf: Any, w: Any, g: Any, u: Any, old: Any, state: Any
    ) -> str:
        """Every line of the box for one leaf."""
        outcome, n = "agrees", self.num_workers
        before, after = _of_leaf(old, i, self.tree), _of_leaf(state, i, self.tree)
        new = [leaf.layers(seen(x)) for x in g]
        for layer in range(leaf.num_layers):
            M = [new[j][layer] for j in range(n)]
            if before.momentum is not None:
                held = [leaf.layers(wide(x))[layer] for x in after.momentum]
                kept = [leaf.layers(seen(x))[layer] for x in before.momentum]
                for j in range(n):
                    check_momentum(
                        self.momentum, kept[j], M[j], held[j], after.momentum.dtype
                    )
                M = held
            G_j = [leaf.layers(seen(x))[layer] for x in before.G_j]
            next_G_j = [leaf.layers(wide(x))[layer] for x in after.G_j]
            for j in range(n):
                for what in zip(M[j], G_j[j], next_G_j[j], strict=True):
                    check_message(self.worker, *what)
            G = leaf.layers(wide(after.G))[layer]
            check_mean(G_j, next_G_j, G)
            update, weights = leaf.layers(wide(u))[layer], leaf.layers(wide(w))[layer]
            if self.server is None:
                said = check_matrices(self, G, update, weights, _narrower(u.dtype))
            else:
                X = leaf.layers(wide(before.X))[layer]
                next_X = leaf.layers(wide(after.X))[layer]
                rounded = 2 * EPSILON * np.abs(X[np.isfinite(X)]).max(initial=0.0)
                said = check_matrices(
                    self, G, next_X - X, X, jnp.dtype("float32"), rounded
                )
                for what in zip(next_X, weights, update, strict=True):
                    check_broadcast(self.server, *what, u.dtype)
            outcome = worse(outcome, said)
        return outcome


def _narrower(dtype: Any) -> Any:
    """Of a dtype and float32, in which all is computed, the one that rounds more."""
    return jnp.dtype("float32") if dtype == jnp.float64 else dtype


@dataclasses.dataclass(frozen=True)
class _Memories:
    """What a state remembers of a leaf; of M_j and G_j with an axis of workers."""

    momentum: Any
    G_j: Any
    G: Any
    X: Any


def _of_leaf(state: Any, i: int, tree: Any) -> _Memories:
    path = list(paths(tree))[i]
    server, G = state.server, state.server._replace(X=state.server.G)
    none = jax.tree.leaves(state.G_j)[i][0]  # of a leaf without entries nobody owns one
    return _Memories(
        None if state.momentum is None else jax.tree.leaves(state.momentum)[i],
        jax.tree.leaves(state.G_j)[i],
        iterate(G).get(path, none),
        None if server.X is None else iterate(server).get(path, none),
    )


def check_message(c: Any, M: np.ndarray, G: np.ndarray, new: np.ndarray) -> None:
    """Whether G_j + 𝒞(M_j − G_j) of a matrix is as near to M_j as 𝒞 promises.

    Args:
      c: the workers' compressor.
      M: the momentum.
      G: the estimate before.
      new: after.
    """
    with np.errstate(all="ignore"):
        delta = (M.astype(np.float32) - G.astype(np.float32)).astype(np.float64)
    if not np.isfinite(delta).all():
        claim(not np.isfinite(new).all(), "the estimate of what is not finite is")
        return
    if not delta.size:
        return
    claim(np.isfinite(new).all(), "a finite message makes an estimate that is not")
    room = 2 * EPSILON * (np.abs(G) + np.abs(new)) + 4 * SMALLEST
    if 1 in delta.shape or isinstance(c, compressors.Identity):
        claim((np.abs(new - G - delta) <= room).all(), "a dense message is another")
        return
    if c == compressors.Natural():
        mantissa, _ = np.frexp(np.abs(delta))
        sure = np.abs(mantissa - 0.75) > 1e-5  # no tie
        off = np.abs(new - G - box.natural(delta))
        claim((off <= room)[sure].all(), "no powers of two")
    most = np.sqrt(1 - _alpha(c, delta.shape)) * np.linalg.norm(delta)
    if isinstance(c, compressors.TopK) and c.block is None:
        most = np.linalg.norm(delta - box.top_k(c.fraction)(delta))
    most += np.linalg.norm(room) + 1e-4 * np.linalg.norm(delta)
    lost = np.linalg.norm(delta - (new - G))
    claim(lost <= most, f"no contraction: {lost} of {most}")


def _alpha(c: Any, shape: tuple[int, int]) -> float:
    """What it promises of every matrix, not on average alone."""
    if "Composed" in repr(c):
        return -0.1 if "RankK" in repr(c) else 0.0
    return 0.0 if c.random or "RankK" in repr(c) else c.alpha(shape)


def check_mean(old: list[np.ndarray], G_j: list[np.ndarray], G: np.ndarray) -> None:
    """G = (1/n)ΣG_j, of all matrices of a layer: error feedback's identity.

    Messages whose sum is beyond float32 have no mean there, and no estimate after it.
    """
    with np.errstate(all="ignore"):
        mean = sum(G_j) / len(G_j)
        sent = sum(np.abs(new - was) for new, was in zip(G_j, old, strict=True))
    bad = ~np.isfinite(mean)
    claim(not np.isfinite(G[bad]).any(), "the mean of what is not finite is")
    sure = ~bad & ((sent < LARGEST) | np.isfinite(G))
    size = sum(map(np.abs, [*old, *G_j]))  # roundings of what it was stay with it
    room = 16 * EPSILON * size[sure] + 16 * SMALLEST
    claim((np.abs(G - mean)[sure] <= room).all(), "the server has another mean")


def check_broadcast(
    c: Any, X: np.ndarray, W: np.ndarray, S: np.ndarray, dtype: Any
) -> None:
    """S = 𝒞(X − W) of one matrix."""
    with np.errstate(all="ignore"):
        delta = X - W.astype(np.float32)
    if not np.isfinite(delta).all():
        claim(not np.isfinite(S).all(), "a plausible broadcast of what is not finite")
        return
    if not delta.size:
        return
    if np.abs(delta).max() > 0.25 * float(jnp.finfo(dtype).max):
        return
    eps = max(float(jnp.finfo(dtype).eps), EPSILON)
    least = max(float(jnp.finfo(dtype).smallest_normal), SMALLEST)
    room = np.linalg.norm(
        2 * eps * np.abs(S) + EPSILON * (np.abs(X) + np.abs(W)) + 2 * least
    )
    dense = 1 in S.shape
    most = 0.0 if dense else np.sqrt(1 - _alpha(c, S.shape)) * np.linalg.norm(delta)
    most += room + 1e-4 * np.linalg.norm(delta)
    lost = np.linalg.norm(delta - S)
    claim(lost <= most, f"no contraction of S: {lost} of {most}")


def _unsent(case: OfMessages) -> list[str]:
    """Paths of leaves whose matrices a compressor can't send."""
    return [
        path
        for path, leaf in paths(case.tree).items()
        if leaf.has_axis
        for x in leaf.layers(np.zeros(leaf.shape))
        if not all(_sends(c, x.shape[1:]) for c in (case.worker, case.server) if c)
    ]


def _sends(c: compressors.Compressor, shape: tuple[int, int]) -> bool:
    """Whether it fits a shape: vectors and what has no entries go dense."""
    if 0 in shape or 1 in shape:
        return True
    try:
        c.check(shape)
    except ValueError:
        return False
    return True


def message_cases() -> Any:
    cases = st.builds(
        OfMessages,
        trees(leaves()),
        st.integers(0, len(NORMS) - 1),
        pick(*RADII, *RADII, *ADAPTIVE),
        pick(0.25, 0.0, 1.0),
        pick(0.0, 0.5, 0.875),
        pick(0.0, 0.0, 0.5, 1.0),
        st.booleans(),
        pick(1, 2, 2),
        pick(1, 1, 3),
        st.booleans(),
        pick(*COMPRESSORS),
        pick(None, None, *COMPRESSORS),
    )
    return cases.map(_consistent)


def _consistent(case: OfMessages) -> OfMessages:
    """Where every worker is the server there is no server's compressor.

    Adaptive radii have no theory with one, which a warning says; and the state of no
    leaves does not say how many workers there are.
    """
    if not jax.tree.leaves(case.tree):
        case = dataclasses.replace(case, num_workers=1)
    shared = case.gather and case.num_workers > 1
    if shared or isinstance(case.radius, dm.AdaptiveRadius):
        return dataclasses.replace(case, server=None)
    return case
