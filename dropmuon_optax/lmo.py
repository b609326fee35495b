"""The tree-wide oracle: one stacked call for matrices of one shape, norm and dtype."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dropmuon_optax import checks, linalg
from dropmuon_optax.layers.leaves import (
    AdaptiveRadius,
    Layer,
    LayersFn,
    Leaf,
    Stacked,
    join,
    movable_norm,
)
from dropmuon_optax.layers.trees import checked
from dropmuon_optax.meshes import has_auto, like, num_devices, rest_like, spread
from dropmuon_optax.norms import Norm, unscaled

# Bytes of a stack on each device, beyond which its leaves are split among several. A
# stack, its steps and what is between them take some four times as much memory. On a
# CPU of two cores 2 MB were best: at width 256 an update took 0.96 of its time with
# stacks of 256 KB and 0.90 of that with 64 MB, with 48 blocks of width 64 0.76 of that
# with 256 KB (jax 0.12, single runs of the benchmark `oracle`, lines not kept). Equal
# parts compile once. Elsewhere a stack fills the device.
MAX_STACK_BYTES = {"cpu": 2**21}
MAX_STACK_BYTES_ELSEWHERE = 2**26


def scale_by_lmo(layers: LayersFn) -> optax.GradientTransformationExtraArgs:
    """Replaces every update g_i by −LMO(g_i), the steepest step of length radius_i.

    As Optax's `scale_by_*` do, it returns what points along the gradient: −LMO with
    LMO = argmin {⟨g_i, x⟩ : ‖x‖_(i) ≤ radius_i}. `optax.scale_by_learning_rate` at the
    end of the chain turns it around.

    Leaves whose matrices have the same sides, norm and dtype are stacked and go through
    one call of the oracle. Where it multiplies matrices and takes a transpose to the
    transpose, as the spectral norm's does, tall matrices lie in the stack of the wide
    ones of the same sides; the norms' scales may differ. Stacks are of at most
    `MAX_STACK_BYTES`, or one leaf. On a mesh a stack is spread over all devices, each
    of which orthogonalizes its share.

    Args:
      layers: a function from the parameters to a tree of `Layer`s.

    Returns:
      A transformation whose state is the step count k, for radii that are schedules.
      Its updates have the dtype of the gradients; of a matrix that is not finite they
      are NaN, and those of the others as ever.

    Raises:
      ValueError: from `init` and `update`, if a leaf has `norm=None`, is no real
        floating-point array, or doesn't fit its view; naming its path.

    Examples:
      >>> from dropmuon_optax import norms
      >>> from dropmuon_optax.layers import layers_by_path
      >>> tx = scale_by_lmo(layers_by_path(None, [("", norms.MaxEntry(), 0.5)]))
      >>> g = {"a": jnp.array([3.0, -4.0])}
      >>> tx.update(g, tx.init(g))[0]
      {'a': Array([ 0.5, -0.5], dtype=float32)}

    References:
      Pethick et al., Scion, arXiv:2502.07529. Riabinin et al., Gluon, arXiv:2505.13416.
    """
    checks.is_function("layers", layers)

    def init(params: Any) -> CountState:
        _check(join(layers, params))
        return first_count()

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del params, extra
        steps = tree_lmo(layers, updates, state.count)
        return steps, CountState(optax.safe_increment(state.count))

    return checked(optax.GradientTransformationExtraArgs(init, update))


class CountState(NamedTuple):
    """State of what follows schedules."""

    count: Any  # k, steps taken, int32 of shape ()  # pyright: ignore


def first_count() -> CountState:
    """The state before the first step."""
    return CountState(jnp.zeros((), jnp.int32))


def tree_lmo(layers: LayersFn, updates: Any, count: Any) -> Any:
    """−LMO(g_i) for every leaf g_i of `updates` at step k; see `scale_by_lmo`."""
    leaves = join(layers, updates)
    _check(leaves)
    stacks: dict[Any, list[_Member]] = {}
    steps: list[dict[int, Array]] = [{} for _ in leaves]
    for position, leaf in enumerate(leaves):
        if leaf.value.size == 0:
            continue
        for piece, matrices in enumerate(leaf.view.to_pieces(leaf.value)):
            key, member = _member(position, piece, leaf, matrices)
            stacks.setdefault(key, []).append(member)
    for (norm, *_), members in stacks.items():
        for some in _bounded(members):
            found = _stacked_oracle(norm, some, count)
            for member, step in zip(some, found, strict=True):
                turned = step.mT if member.flips else step
                steps[member.position][member.piece] = turned
    tree = [_whole(leaf, found) for leaf, found in zip(leaves, steps, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(updates), tree)


def _whole(leaf: Leaf, pieces: dict[int, Array]) -> Array:
    """The leaf that the steps of its pieces are, sharded as it is."""
    x, parts = leaf.value, [pieces[i] for i in sorted(pieces)]
    return like(leaf.view.from_pieces(parts, x.shape), x) if parts else x


class _Member(NamedTuple):
    """A piece of a leaf: matrices on the way to the oracle."""

    position: int
    piece: int
    radius: tuple[Any, ...]  # (t,) or (L⁰, L¹), in units of the norm without its scale
    flips: bool  # whether the matrices are transposed, to be wide
    matrices: Float[Array, "k m n"]


def _member(
    position: int, piece: int, leaf: Leaf, matrices: Array
) -> tuple[Any, _Member]:
    """A member, and what the members of one stack have in common."""
    _, m, n = matrices.shape
    norm, radius = unscaled_geometry(leaf.layer, (m, n))
    flips = m > n and norm.mixes and norm.symmetric
    if flips:
        matrices = matrices.mT
    spec = jax.typeof(matrices).sharding.spec
    # Stacked vectors would infect each other with their layouts on Auto axes.
    alone = (position, piece) if has_auto(matrices) and not norm.mixes else None
    shape, dtype = matrices.shape[1:], matrices.dtype
    key = norm, len(radius), shape, dtype, spec, alone
    return key, _Member(position, piece, radius, flips, matrices)


def unscaled_geometry(
    layer: Layer | Stacked, shape: tuple[int, int]
) -> tuple[Norm, tuple[Any, ...]]:
    """A layer's norm without its scale, and its radius in units of that.

    A radius t of c‖·‖ is one of t/c of ‖·‖; Gluon's, 1/(L⁰/‖g‖⋆ + L¹), goes with
    L⁰c² and L¹c. So matrices whose scales differ can share a stack.

    Args:
      layer: a layer with a norm.
      shape: of the matrices that the norm sees, (m, n).

    Returns:
      ‖·‖, and (t/c,), a schedule where t is one, or (L⁰c², L¹c).
    """
    assert layer.norm is not None  # `movable_norm` has seen to it
    norm, c = unscaled(layer.norm, shape)
    radius = layer.radius
    if isinstance(radius, AdaptiveRadius):
        return norm, (radius.l0 * c**2, radius.l1 * c)
    return norm, (_Quotient(radius, c) if callable(radius) else radius / c,)


@dataclasses.dataclass(frozen=True)
class _Quotient:
    """A schedule divided by a number; two of them compare by both."""

    schedule: optax.Schedule
    divisor: float

    def __call__(self, count: Any) -> Any:
        return self.schedule(count) / self.divisor


def _check(leaves: list[Leaf]) -> None:
    for leaf in leaves:
        movable_norm(leaf)


def _bounded(members: list[_Member]) -> Iterator[list[_Member]]:
    """The members of a stack in parts of `MAX_STACK_BYTES`, or of one leaf."""
    backend = jax.default_backend()
    limit = MAX_STACK_BYTES.get(backend, MAX_STACK_BYTES_ELSEWHERE)
    limit *= num_devices(members[0].matrices)
    part: list[_Member] = []
    size = 0
    for member in members:
        if part and size + member.matrices.nbytes > limit:
            yield part
            part, size = [], 0
        part.append(member)
        size += member.matrices.nbytes
    yield part


def _stacked_oracle(
    norm: Norm, members: list[_Member], count: Any
) -> list[Float[Array, "k m n"]]:
    """One call of the oracle for matrices that may come from several leaves."""
    rows = [row for x in members for row in [x.radius] * len(x.matrices)]
    columns = [
        [value(count) if callable(value) else value for value in column]
        for column in zip(*rows, strict=True)
    ]
    return _oracle(norm, [member.matrices for member in members], columns)


@functools.partial(jax.jit, static_argnums=0)
def _oracle(norm: Norm, parts: list[Array], columns: list[list[Any]]) -> list[Array]:
    """The steps of a stack; one compiled function, for eager updates too."""
    whole = jnp.concatenate(parts)
    parameters = [jnp.array(c, linalg.wide_dtype(whole)) for c in columns]
    stack = whole
    if norm.mixes:
        stack, *parameters = spread(whole, *parameters)
    steps = lmo_rows(norm, stack, parameters)
    if norm.mixes:
        (steps,) = spread(steps)  # else the compiler may split the products after all
    if steps.shape != whole.shape:
        steps = rest_like(steps, whole)[: len(whole)]  # what fills up stays behind
    steps = like(steps, whole)
    starts = itertools.accumulate([len(part) for part in parts], initial=0)
    return [steps[i : i + len(part)] for i, part in zip(starts, parts, strict=False)]


def lmo_rows(norm: Norm, stack: Array, parameters: list[Array]) -> Array:
    """−LMO of every matrix of a stack, in one call.

    Args:
      norm: the norm ‖·‖ of all of them.
      stack: matrices, (k, m, n).
      parameters: the radii, [t], or [L⁰, L¹] of adaptive ones; each of shape (k,).
    """
    step = _fixed_step if len(parameters) == 1 else _adaptive_step
    return jax.vmap(functools.partial(step, norm))(stack, *parameters)


def _fixed_step(norm: Norm, g: Array, radius: Array) -> Array:
    return -norm.lmo(g, radius)


def _adaptive_step(norm: Norm, g: Array, l0: Array, l1: Array) -> Array:
    """t·(−LMO) with t = ‖g‖⋆/(L⁰ + L¹‖g‖⋆) (Gluon, Theorem 1).

    In the form t = 1/(L⁰/‖g‖⋆ + L¹), with ‖g‖⋆ = s·‖g/s‖⋆, which may itself be larger
    than the largest number, or smaller than the smallest.
    """
    unit, scale = linalg.unit_scale(g.astype(l0.dtype))
    step = -norm.lmo(unit)
    dual = jnp.sum(unit * step)
    zero = (dual == 0).astype(dual.dtype)  # arithmetic: see `linalg.unit_scale`
    # XLA makes a/b/c of it a/(b·c), or a·(1/c): neither may overflow or be flushed.
    above = (scale > 1).astype(scale.dtype)
    nudge = 2.0**-32 * above + 2.0**32 * (1 - above)
    quotient = l0 * nudge / (dual + zero) / (scale * nudge + zero)
    radius = (1 - zero) / (quotient + l1 + zero)
    return (radius * step).astype(g.dtype)
