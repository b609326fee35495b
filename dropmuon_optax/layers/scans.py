"""How many layers a scan has stacked in each leaf, and along which axis."""

import re
from collections.abc import Mapping

Shape = tuple[int, ...]


def stack_lengths(
    stacked: re.Pattern[str] | None, axis: int, shapes: Mapping[str, Shape]
) -> dict[str, int]:
    """The number of layers in each leaf that is stacked.

    Leaves under one key that `stacked` matches come from one scan.

    Args:
      stacked: matches the paths of stacked leaves; None where there are none.
      axis: over layers.
      shapes: of the leaves, by path.

    Raises:
      ValueError: if a leaf lacks the axis, or leaves of one scan differ in length.

    Examples:
      >>> shapes = {"block/kernel": (16, 3, 64), "block/bias": (64, 3)}
      >>> stack_lengths(re.compile("block"), 1, shapes)
      {'block/kernel': 3, 'block/bias': 3}
      >>> stack_lengths(re.compile("block"), 0, shapes)
      Traceback (most recent call last):
      ...
      ValueError: leaves stacked in 'block' must have leading axes of one length, got
      [16, 64]; along axis 1 all have 3: write `stacked_axis=1`
    """
    scans: dict[str, dict[str, Shape]] = {}
    lengths = {}
    for path, shape in shapes.items():
        match = stacked.search(path) if stacked else None
        if match is None:
            continue
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"`stacked` must match leaves with {_named(axis)}, got {path!r} "
                f"of shape {shape}"
            )
        lengths[path] = shape[axis]
        if match.group():  # up to the end of the key that it is in
            scan = path[: match.end()] + path[match.end() :].partition("/")[0]
            scans.setdefault(scan, {})[path] = shape
    for scan, found in scans.items():
        one_length(scan, axis, found)
    return lengths


def one_length(where: str, axis: int, shapes: Mapping[str, Shape]) -> int | None:
    """The length along `axis` that all leaves have; None if there are no leaves.

    Raises:
      ValueError: if they differ, with the axis along which they don't.
    """
    lengths = {shape[axis] for shape in shapes.values()}
    if len(lengths) <= 1:
        return next(iter(lengths), None)
    hint = ""
    for other in range(min(map(len, shapes.values()))):
        agreed = {shape[other] for shape in shapes.values()}
        if len(agreed) == 1:
            hint = (
                f"; along axis {other} all have {agreed.pop()}: write "
                f"`stacked_axis={other}`"
            )
            break
    axes = "leading axes" if axis == 0 else f"axes {axis}"
    raise ValueError(
        f"leaves stacked in {where!r} must have {axes} of one length, got "
        f"{sorted(lengths)}{hint}"
    )


def without(shape: Shape, axis: int | None) -> Shape:
    """The shape of one layer of a leaf that is stacked along `axis`, if it is.

    >>> without((16, 3, 64), 1)
    (16, 64)
    """
    if axis is None:
        return shape
    return tuple(n for i, n in enumerate(shape) if i != axis % len(shape))


def _named(axis: int) -> str:
    return "a leading axis" if axis == 0 else f"an axis {axis}"
