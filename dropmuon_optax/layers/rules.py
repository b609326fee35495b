"""Which compressor a leaf's matrices get."""

import re
from collections.abc import Sequence

from dropmuon_optax.compressors.base import Compressor
from dropmuon_optax.compressors.identity import Identity

Rules = Sequence[tuple[str, Compressor]]


def choose(rules: Compressor | Rules, path: str, shape: tuple[int, int]) -> Compressor:
    """The compressor of a leaf, by rule.

    A compressor stands for itself on matrices, and for `Identity` on vectors (matrices
    of one row or column): they are small, and what compresses matrices rarely fits.
    Of matrices without entries nothing is sent, by `Identity` again. A list of (regex,
    compressor) is taken as it is: the first that matches counts.

    Args:
      rules: a compressor, or a list of (regex, compressor).
      path: the leaf's path.
      shape: of what is compressed, (m, n).

    Raises:
      ValueError: if no rule matches, or the compressor doesn't fit the shape.

    Examples:
      >>> from dropmuon_optax.compressors.natural import Natural
      >>> choose(Natural(), "kernel", (64, 64)), choose(Natural(), "bias", (1, 64))
      (Natural(), Identity())
      >>> choose([("bias|kernel", Natural())], "bias", (1, 64))
      Natural()
    """
    if isinstance(rules, Compressor):
        found = Identity() if 1 in shape else rules
    else:
        found = next((c for regex, c in rules if re.search(regex, path)), None)
        if found is None:
            raise ValueError(
                f"a compressor must be given for every leaf, got none for {path!r}"
            )
    if 0 in shape:
        return Identity()
    found.check(shape, path)
    return found


def check_rules(name: str, rules: Compressor | Rules | None) -> None:
    """Refuses what is neither a compressor nor a list of (regex, compressor)."""
    if rules is None or isinstance(rules, Compressor):
        return
    if not isinstance(rules, list | tuple) or not all(
        isinstance(rule, list | tuple)
        and len(rule) == 2
        and isinstance(rule[0], str)
        and isinstance(rule[1], Compressor)
        for rule in rules
    ):
        raise ValueError(
            f"`{name}` must be a compressor or a list of (regex, compressor), "
            f"got {rules!r}"
        )
