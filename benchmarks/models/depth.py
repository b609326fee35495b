"""Which blocks of a network are run, and which move."""

from collections.abc import Sequence

Active = tuple[bool, ...]  # of each layer, from the input on
Blocks = tuple[bool, ...]  # of each block


def of_blocks(
    order: Sequence[str], active: Active | None, present: Active | None
) -> tuple[Blocks, Blocks]:
    """The blocks that move and those that are run, of a network with ends.

    Args:
        order: Names of the layers; those of blocks, which have a residual path, begin
            with "block".
        active: Which layers move; None is all that are run.
        present: Which layers are run; None is all.

    Raises:
        ValueError: If there is not a bool for each layer, a layer moves that is not
            run, or embedding or head, which have no residual path, are not run.
    """
    blocks = [i for i, name in enumerate(order) if name.startswith("block")]
    present = present or (True,) * len(order)
    active = active or present
    if not len(active) == len(present) == len(order):
        raise ValueError(
            f"`active` and `present` must have a bool for each of {order}, got "
            f"{active} and {present}"
        )
    absent = [name for name, here in zip(order, present, strict=True) if not here]
    if any(not name.startswith("block") for name in absent):
        raise ValueError(
            f"`present` must hold embedding and head, which have no residual path, got "
            f"{present} for {order}"
        )
    moving = [name for name, moves in zip(order, active, strict=True) if moves]
    if set(moving) & set(absent):
        raise ValueError(
            f"`present` must hold every layer of `active`, got {present} for {active}"
        )
    return tuple(active[i] for i in blocks), tuple(present[i] for i in blocks)
