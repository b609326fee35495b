"""What a program costs, counted in the program itself: traces, primitives, FLOPs."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count_primitives(function: Callable[..., Any], *args: Any) -> collections.Counter:
    """How often each primitive stands in the program of `function(*args)`.

    A loop's body counts once, however often it runs: the counts say how large the
    program is, not how long it takes.

    Args:
      function: a function of arrays.
      *args: its arguments, or `jax.ShapeDtypeStruct`s of their shapes.

    Returns:
      A counter from the primitive's name (`"dot_general"`, `"scan"`) to its number.

    Examples:
      >>> import jax.numpy as jnp
      >>> count_primitives(lambda x: x @ x @ x, jnp.ones((2, 2)))["dot_general"]
      2
    """
    jaxpr = jax.make_jaxpr(function)(*args)
    return collections.Counter(eqn.primitive.name for eqn in equations(jaxpr.jaxpr))


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation has as parameters: bodies, branches, functions."""
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(value):
            yield getattr(value, "jaxpr", value)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def count_flops(function: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """Floating-point operations of the compiled `function(*args, **kwargs)`.

    The compiler's own estimate (`Compiled.cost_analysis`): what it removed as dead is
    not in it. The body of a loop counts once on most backends.

    Args:
      function: a function of arrays; static arguments are to be bound before.
      *args: its arguments, or `jax.ShapeDtypeStruct`s of their shapes.
      **kwargs: the same, by name.

    Returns:
      The number of floating-point operations of one call.

    Examples:
      >>> import jax.numpy as jnp
      >>> count_flops(lambda a, b: a @ b, jnp.ones((4, 8)), jnp.ones((8, 2))) >= 128
      True
    """
    compiled = jax.jit(function).lower(*args, **kwargs).compile()
    analysis = compiled.cost_analysis()
    entry = analysis[0] if isinstance(analysis, list) else analysis
    return float((entry or {}).get("flops", 0.0))
