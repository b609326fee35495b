"""Features of a prefix that will not move again, computed once for each sample.

A frozen layer still costs its forward pass at every step. After the last step at which
the first layers move their outputs are fixed, so they can be kept, and later steps
start from them, at the cutoff. Ours, not the Drop-Muon paper's.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dropmuon_optax import checks
from dropmuon_optax.counters.flops import count_primitives, inner_jaxprs
from dropmuon_optax.layers.leaves import LayersFn, path_of
from dropmuon_optax.layers.modules import changes_of, parameters, with_changes
from dropmuon_optax.layers.parts import place
from dropmuon_optax.samplings.base import Sampling

_RANDOM = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")


def cache_features(
    prefix: Callable[[Any, Any], Any],
    params: Any,
    inputs: Any,
    *,
    layers: LayersFn,
    sampling: Sampling,
    step: int,
    batch_size: int = 256,
    dtype: Any = None,
) -> Any:
    r"""prefix(params, x) of all inputs x, batch by batch, into arrays on the host.

    From `step` on, train by the rest of the model on the features in place of the
    inputs, with the same `layers`, `active` and optimizer: what the rest doesn't read
    has no gradient, and doesn't move. For inputs that are the same whenever they are
    read, without augmentation. All features of N samples take N times the bytes of one
    sample's: 7×7×32 numbers in float32 are 6.3 kB a sample, 376 MB of 60,000.

    Args:
      prefix: a function (params, x) -> features of the first layers of a model, as
        many as `sampling.settled(num_layers, step)` or fewer; arrays with a leading
        axis over samples.
      params: the parameters, or a module of Flax nnx or Equinox, as for
        `value_and_grad`.
      inputs: a tree of arrays with a leading axis over N samples.
      layers: a function from the parameters to a tree of `Layer`s with indices.
      sampling: of the layers that move.
      step: the step count k from which on the features are to be used.
      batch_size: samples at once.
      dtype: what the features are kept in, such as `jnp.bfloat16` for half the memory;
        None is what `prefix` returns.

    Returns:
      A tree of NumPy arrays with a leading axis over N samples.

    Raises:
      ValueError: if `prefix` reads a layer that may move at `step` or later, naming the
        leaf; draws random numbers (Dropout); changes the module's other variables, or
        lets samples depend on others of their batch (BatchNorm); returns arrays without
        an axis over samples; or if `inputs` have no common number of samples.

    Examples:
      >>> import jax.numpy as jnp
      >>> from dropmuon_optax.layers import layers_by_path
      >>> from dropmuon_optax.samplings import Full, Progressive, Staged
      >>> layers = layers_by_path(order=[r"dense_(\d)"])
      >>> params = {"dense_0": jnp.eye(2), "dense_1": jnp.ones((2, 1))}
      >>> last = Progressive((0.0, 1.0))
      >>> sampling = Staged(((0, Full()), (300, last)))
      >>> sampling.settled(2, 299), sampling.settled(2, 300)
      (0, 1)
      >>> images = np.arange(6.0, dtype=np.float32).reshape(3, 2)
      >>> cache_features(
      ...     lambda params, x: jnp.tanh(x @ params["dense_0"]), params, images,
      ...     layers=layers, sampling=sampling, step=300,
      ... ).shape
      (3, 2)
    """
    checks.is_function("prefix", prefix)
    checks.is_function("layers", layers)
    checks.positive_int("batch_size", batch_size)
    kept_in = None if dtype is None else checks.float_dtype("dtype", dtype)
    num_samples = _num_samples(inputs)
    size = min(batch_size, num_samples)
    tree = parameters(params)

    def run(tree: Any, x: Any) -> tuple[Any, Any]:
        model = with_changes(params, tree)
        return prefix(model, x), changes_of(model)

    first = _rows(inputs, slice(size))
    _check_program(run, tree, first, layers, sampling, step)
    compiled = jax.jit(run)
    features, after = compiled(tree, first)
    _check_samples(features, size)
    _check_changes(changes_of(params), after)
    _check_apart(compiled, tree, first, features, size)
    kept = jax.tree.map(
        lambda x: np.empty((num_samples, *x.shape[1:]), kept_in or x.dtype), features
    )
    for start in range(0, num_samples, size):
        start = min(start, num_samples - size)  # the last batch is whole, too
        part = slice(start, start + size)
        features, _ = compiled(tree, _rows(inputs, part))
        for whole, x in zip(
            jax.tree.leaves(kept), jax.tree.leaves(features), strict=True
        ):
            whole[part] = np.asarray(x)
    return kept


def _rows(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _num_samples(inputs: Any) -> int:
    shapes = [np.shape(x) for x in jax.tree.leaves(inputs)]
    lengths = {shape[0] if shape else None for shape in shapes}
    found = lengths.pop() if len(lengths) == 1 else None
    if not found:
        raise ValueError(
            "`inputs` must be arrays with a leading axis over one number of samples, "
            f"got shapes {shapes}"
        )
    return found


def _check_program(
    run: Callable[..., Any],
    tree: Any,
    x: Any,
    layers: LayersFn,
    sampling: Sampling,
    step: int,
) -> None:
    """Refuses a prefix that draws at random, or reads what may move again."""
    drawn = sorted(set(count_primitives(run, tree, x)) & set(_RANDOM))
    if drawn:
        raise ValueError(
            "`prefix` must draw no random numbers, for they would be the same at every "
            f"step, got {', '.join(drawn)}; switch Dropout off, as by `model.eval()`"
        )
    placed = place(layers, tree)
    settled = sampling.settled(placed.num_layers, step)
    moves = tuple(i >= settled for i in range(placed.num_layers))
    reads = _reads(jax.make_jaxpr(run)(tree, x).jaxpr)
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    for (keys, _), part, index, is_read in zip(
        flat, placed.parts(moves), placed.indices, reads, strict=False
    ):
        if is_read and part.any:
            raise ValueError(
                f"`prefix` must read the first {settled} layers alone, for others may "
                f"move at step {step} or later, got {path_of(keys)!r} of layer "
                f"{index[-1]}"
            )


def _reads(jaxpr: Any) -> list[bool]:
    """Which inputs of a jaxpr are read in it."""
    read = {x for x in jaxpr.outvars if not hasattr(x, "val")}
    for equation in jaxpr.eqns:
        flags = [True] * len(equation.invars)
        inner = list(inner_jaxprs(equation))
        if len(inner) == 1 and len(inner[0].invars) == len(flags):
            flags = _reads(inner[0])
        pairs = zip(equation.invars, flags, strict=True)
        read |= {x for x, flag in pairs if flag and not hasattr(x, "val")}
    return [x in read for x in jaxpr.invars]


def _check_samples(features: Any, size: int) -> None:
    shapes = [np.shape(x) for x in jax.tree.leaves(features)]
    if not shapes or any(shape[:1] != (size,) for shape in shapes):
        raise ValueError(
            "`prefix` must return arrays with a leading axis over samples (and nothing "
            f"else, such as batch statistics), got shapes {shapes} of {size} samples"
        )


def _check_changes(before: dict[str, Any], after: dict[str, Any]) -> None:
    for path, x in after.items():
        if not np.array_equal(before[path], x, equal_nan=True):
            raise ValueError(
                f"`prefix` must not change the model, got a change of {path!r}; let "
                "a BatchNorm use its running average, as by `model.eval()`"
            )


def _check_apart(
    compiled: Callable[..., Any], tree: Any, x: Any, features: Any, size: int
) -> None:
    """Refuses features that depend on other samples: by one program, bit for bit."""
    half = max(1, size // 2)
    mixed = np.where(np.arange(size) < half, np.arange(size), 0)
    others, _ = compiled(tree, _rows(x, mixed))
    for a, b in zip(jax.tree.leaves(features), jax.tree.leaves(others), strict=True):
        if not np.array_equal(np.asarray(a[:half]), np.asarray(b[:half]), True):
            raise ValueError(
                "`prefix` must map each sample by itself, got features that change "
                "with the others of the batch; let a BatchNorm use its running "
                "average, as by `model.eval()`"
            )
