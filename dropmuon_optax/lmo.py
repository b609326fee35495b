"""The tree-wide oracle: one stacked call for matrices of one shape, norm and dtype."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dropmuon_optax import checks, linalg
from dropmuon_optax.layers.leaves import (
    AdaptiveRadius,
    LayersFn,
    Leaf,
    join,
    movable_norm,
)
from dropmuon_optax.layers.trees import checked
from dropmuon_optax.meshes import gathered, has_auto, like, spread
from dropmuon_optax.norms import Norm


def scale_by_lmo(layers: LayersFn) -> optax.GradientTransformationExtraArgs:
    """Replaces every update g_i by −LMO(g_i), the steepest step of length radius_i.

    As Optax's `scale_by_*` do, it returns what points along the gradient: −LMO with
    LMO = argmin {⟨g_i, x⟩ : ‖x‖_(i) ≤ radius_i}. `optax.scale_by_learning_rate` at the
    end of the chain turns it around.

    Leaves whose matrices have the same shape, norm and dtype are stacked and go through
    one call of the oracle, so the program has one loop for each distinct shape. On a
    mesh the stack is spread over all devices, each of which orthogonalizes its share.

    Args:
      layers: a function from the parameters to a tree of `Layer`s.

    Returns:
      A transformation whose state is the step count k, for radii that are schedules.
      Its updates have the dtype of the gradients.

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
            member = _Member(position, piece, leaf, matrices)
            stacks.setdefault(_key(member), []).append(member)
    for members in stacks.values():
        found = _stacked_oracle(members, count)
        for member, step in zip(members, found, strict=True):
            steps[member.position][member.piece] = step
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
    leaf: Leaf
    matrices: Float[Array, "k m n"]


def _key(member: _Member) -> Any:
    """What the members of one stack have in common."""
    layer, matrices = member.leaf.layer, member.matrices
    adaptive = isinstance(layer.radius, AdaptiveRadius)
    spec = jax.typeof(matrices).sharding.spec
    # Stacked vectors would infect each other with their layouts on Auto axes.
    mixes = layer.norm is not None and layer.norm.mixes
    alone = member[:2] if has_auto(matrices) and not mixes else None
    return layer.norm, adaptive, matrices.shape[1:], matrices.dtype, spec, alone


def _check(leaves: list[Leaf]) -> None:
    for leaf in leaves:
        movable_norm(leaf)


def _stacked_oracle(members: list[_Member], count: Any) -> list[Float[Array, "k m n"]]:
    """One call of the oracle for matrices that may come from several leaves."""
    norm = members[0].leaf.layer.norm
    assert norm is not None  # _check has seen to it
    sizes = [member.matrices.shape[0] for member in members]
    parameters = [
        _parameters(member.leaf.layer.radius, count)
        for member, size in zip(members, sizes, strict=True)
        for _ in range(size)
    ]
    columns = [list(column) for column in zip(*parameters, strict=True)]
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
        steps = gathered(steps)[: len(whole)]
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


def _parameters(radius: Any, count: Any) -> tuple[Any, ...]:
    if isinstance(radius, AdaptiveRadius):
        return radius.l0, radius.l1
    return (radius(count) if callable(radius) else radius,)


def _fixed_step(norm: Norm, g: Array, radius: Array) -> Array:
    return -norm.lmo(g, radius)


def _adaptive_step(norm: Norm, g: Array, l0: Array, l1: Array) -> Array:
    """t·(−LMO) with t = ‖g‖⋆/(L⁰ + L¹‖g‖⋆) (Gluon, Theorem 1).

    In the form that can't overflow, t = 1/(L⁰/‖g‖⋆ + L¹).
    """
    wide = g.astype(l0.dtype)
    step = -norm.lmo(wide)
    dual = jnp.sum(wide * step)
    zero = (dual == 0).astype(dual.dtype)  # arithmetic: see `linalg.unit_scale`
    radius = (1 - zero) / (l0 / (dual + zero) + l1 + zero)
    return (radius * step).astype(g.dtype)
