"""What of a model is a parameter: modules of Flax nnx and Equinox, variables of linen.

A model holds more than its parameters: batch statistics, counters of random streams,
functions. They are told apart by what the frameworks say of them, by their types and
the names of their collections. No framework is imported: of whose model is given, that
one has been already.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Path = tuple[str, ...]

# Linen's collections that are no parameters, as its own modules name them.
_COLLECTIONS = ("batch_stats", "cache", "intermediates", "perturbations")
# Variables of nnx that are no parameters. Of others only the user knows.
_STATES = ("BatchStat", "Cache", "Intermediate", "RngState", "OptState")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # as in PyTorch
_PLAIN = (dict, list, tuple, np.ndarray, jax.Array, jax.ShapeDtypeStruct)  # of no nnx
_BATCH_NORM = ("mean", "var", "scale", "bias")  # as in nnx


def is_nnx(model: Any) -> bool:
    """Whether it is a module of Flax nnx (or a list or dictionary of nnx's own)."""
    return isinstance(model, _classes("flax.nnx", "Pytree", "Module"))


def is_equinox(model: Any) -> bool:
    """Whether a module of Equinox is in it."""
    modules = _classes("equinox", "Module")

    def is_module(node: Any) -> bool:
        return isinstance(node, modules)

    return any(map(is_module, jax.tree.leaves(model, is_leaf=is_module)))


def parameters(model: Any) -> Any:
    """What `value_and_grad` differentiates of a model.

    Args:
      model: a module of nnx or Equinox, or a tree of parameters.

    Returns:
      The `nnx.State` of a module's `nnx.Param`s; Equinox modules with None for all but
      inexact arrays; any other tree as it is.

    Raises:
      ValueError: naming the leaf, if one is no parameter or can't be differentiated.

    >>> parameters({"step": 3})
    Traceback (most recent call last):
    ...
    ValueError: the leaf 'step' must be a floating-point array to be differentiated, \
got int32; give it to the function as a further argument
    """
    if is_nnx(model):
        nnx = sys.modules["flax.nnx"]
        params = nnx.state(model, nnx.Param)
    elif is_equinox(model):
        equinox = sys.modules["equinox"]
        params = equinox.filter(model, equinox.is_inexact_array)
    else:
        params = model
    check_params(params)
    for path, x in _leaves(params):
        if not _is_inexact(x):
            raise ValueError(
                f"the leaf {'/'.join(path)!r} must be a floating-point array to be "
                f"differentiated, got {jnp.result_type(x)}; give it to the function "
                "as a further argument"
            )
    return params


def with_parameters(model: Any, params: Any) -> Any:
    """The model with other `parameters`, for all but modules of nnx."""
    if not is_equinox(model):
        return params
    equinox = sys.modules["equinox"]
    rest = equinox.filter(model, equinox.is_inexact_array, inverse=True)
    return equinox.combine(params, rest)


def with_changes(model: Any, params: Any) -> Any:
    """The model with other `parameters`: a copy, of modules of nnx too."""
    if not is_nnx(model):
        return with_parameters(model, params)
    nnx = sys.modules["flax.nnx"]
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    # Variables of their own, at the level of a trace if there is one.
    params, rest = jax.tree.map(lambda x: x, (params, states[1]))
    return nnx.merge(graphdef, params, rest)


def changes_of(model: Any) -> dict[str, Any]:
    """What a module of nnx holds beside its parameters: path -> array."""
    if not is_nnx(model):
        return {}
    nnx = sys.modules["flax.nnx"]
    return {
        "/".join(path): jax.random.key_data(x) if _is_key(x) else x
        for path, x in _leaves(nnx.state(model, nnx.Not(nnx.Param)))
    }


def nnx_value_and_grad(
    fun: Callable[..., Any], moves: list[bool], has_aux: bool
) -> Callable[..., tuple[Any, list[Any]]]:
    r"""`nnx.value_and_grad` with respect to some leaves of a module's `nnx.Param`s.

    All else that `fun` changes in the module and in other objects of nnx, it changes in
    place.

    Args:
      fun: a function of a module and further arguments.
      moves: of each leaf of `parameters(model)`, whether it is differentiated.
      has_aux: as in `nnx.value_and_grad`.

    Returns:
      A function (model, \*args, \*\*kwargs) -> (value, the gradients of those leaves).
    """
    nnx = sys.modules["flax.nnx"]

    def of_all(model: Any, args: Any, kwargs: Any) -> Any:
        return fun(model, *args, **kwargs)

    def gradient(model: Any, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        params = nnx.state(model, nnx.Param)
        flags = jax.tree.unflatten(jax.tree.structure(params), moves)
        # A Param may hold a tree; it is differentiated as a whole if any of it moves.
        taken = nnx.filter_state(flags, lambda _, flag: any(jax.tree.leaves(flag)))
        paths = {path for path, _ in nnx.to_flat_state(taken)}
        wrt = nnx.DiffState(0, lambda path, _: path in paths)
        # `compat`: with updates of all state, whatever Flax's defaults are set to.
        transforms = getattr(nnx, "compat", nnx)
        grad = transforms.value_and_grad(of_all, argnums=wrt, has_aux=has_aux)
        value, found = grad(model, args, kwargs)
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(taken), strict=True)
        return value, [g for g, flag in pairs if flag]

    return gradient


def check_params(tree: Any) -> None:
    """Refuses a tree with what is no parameter in it, by name and with what to write.

    Raises:
      ValueError: if the tree is or holds a module of nnx; variables of nnx that are
        known to be no parameters, or are of other types beside `nnx.Param`s; linen's
        collections beside "params"; the running statistics of a BatchNorm; what is no
        array; in a module of Equinox, what is no inexact array.

    >>> check_params({"params": {"w": 1.0}, "batch_stats": {"mean": 0.0}})
    Traceback (most recent call last):
    ...
    ValueError: the leaf 'batch_stats/mean' must be a parameter, got one of the \
collection 'batch_stats'; write `variables["params"]` (collections that are to be \
trained together go under names without "params")
    """
    _check_nnx(tree)
    leaves = _leaves(tree)
    _check_arrays(leaves, is_equinox(tree))
    _check_collections([path for path, _ in leaves])
    _check_statistics({path: jnp.shape(x) for path, x in leaves})


def _check_nnx(tree: Any) -> None:
    variable = _classes("flax.nnx", "Variable")
    if not variable:
        return
    kinds = _classes("flax.nnx", "Pytree", "Module") + variable
    nodes = _leaves(tree, lambda x: not isinstance(x, _PLAIN) and isinstance(x, kinds))
    nodes = [(path, x) for path, x in nodes if not isinstance(x, _PLAIN)]
    param = _classes("flax.nnx", "Param")
    others = variable if any(isinstance(x, param) for _, x in nodes) else ()
    others += _classes("flax.nnx", *_STATES)
    for path, x in nodes:
        if is_nnx(x):
            raise ValueError(
                f"parameters must be a tree of arrays, got the nnx module "
                f"{type(x).__name__}; write `nnx.state(model, nnx.Param)` (of several "
                "modules in one `nnx.Dict` or `nnx.List`)"
            )
        if isinstance(x, others) and not isinstance(x, param):
            raise ValueError(
                f"the leaf {'/'.join(path)!r} must be a parameter, got a "
                f"{type(x).__name__}; write `nnx.state(model, nnx.Param)` (a variable "
                "that is to be trained too is of a class derived from `nnx.Param`)"
            )


def _check_arrays(leaves: list[tuple[Path, Any]], in_equinox: bool) -> None:
    for path, x in leaves:
        good = _is_inexact(x) and hasattr(x, "dtype") if in_equinox else _is_array(x)
        if not good:
            what = "an inexact array" if in_equinox else "an array"
            line = "; write `eqx.filter(model, eqx.is_inexact_array)`"
            raise ValueError(
                f"the leaf {'/'.join(path)!r} must be {what} to be a parameter, got "
                f"{x!r}{line if in_equinox else ''}"
            )


def _check_collections(paths: list[Path]) -> None:
    """Linen's collections lie beside "params", and go by the same submodules."""
    known = {path[:i] for path in paths for i in range(1, len(path) + 1)}
    for path in paths:
        for i, name in enumerate(path):
            params = (*path[:i], "params")
            if name == "params" or params not in known:
                continue
            submodule = path[i + 1 : i + 2]
            if name in _COLLECTIONS or (submodule and (*params, *submodule) in known):
                raise ValueError(
                    f"the leaf {'/'.join(path)!r} must be a parameter, got one of the "
                    f'collection {name!r}; write `variables["params"]` (collections '
                    'that are to be trained together go under names without "params")'
                )


def _check_statistics(shapes: dict[Path, tuple[int, ...]]) -> None:
    """A BatchNorm's mean and variance lie beside its scale or bias, of one shape."""
    for path, shape in shapes.items():
        *module, name = path or ("",)
        beside = (
            {x for x in _BATCH_NORM if shapes.get((*module, x)) == shape}
            if name in ("mean", "var")
            else set()
        )
        if name in _STATISTICS or {"mean", "var"} < beside:
            raise ValueError(
                f"the leaf {'/'.join(path)!r} must be a parameter, got a statistic of "
                "a BatchNorm; keep these out of the tree of parameters"
            )


def _classes(module: str, *names: str) -> tuple[type, ...]:
    """Classes of a framework, as far as it has been imported and has them."""
    found = [getattr(sys.modules.get(module), name, None) for name in names]
    return tuple(cls for cls in found if cls is not None)


def _leaves(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[Path, Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return [(_names(keys), x) for keys, x in flat]


def _names(keys: Sequence[Any]) -> Path:
    """A leaf's keys as words, without nnx's trailing `.value`."""
    words = tuple(map(_word, keys))
    nnx_value = jax.tree_util.GetAttrKey("value")
    return words[:-1] if len(keys) > 1 and keys[-1] == nnx_value else words


def _word(key: Any) -> str:
    for attribute in ("key", "name", "idx"):  # of JAX's kinds of keys
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _is_array(x: Any) -> bool:
    has_dtype = getattr(x, "dtype", None) is not None  # a linen module's is None
    return has_dtype or isinstance(x, bool | int | float | complex)


def _is_key(x: Any) -> bool:
    return _is_array(x) and jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def _is_inexact(x: Any) -> bool:
    return _is_array(x) and jnp.issubdtype(jnp.result_type(x), jnp.inexact)
