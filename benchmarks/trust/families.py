"""Faults that tests try, by family: what is done, and the tests that do it."""

from typing import NamedTuple


class Family(NamedTuple):
    """Faults of one kind, and the files of the tests that try them."""

    name: str
    tried: str
    tests: tuple[str, ...]  # paths from the root of the repository


FAMILIES = (
    Family(
        "damaged checkpoints",
        "flipped, halved, zeroed, emptied, longer and deleted files; folders emptied, "
        "replaced, without parts; a full disk",
        ("tests/benchmarks/language/test_checkpoints.py",),
    ),
    Family(
        "command lines and data files",
        "every wrong value of every option of every program; settings that don't fit; "
        "damaged, wrong and missing data files",
        ("tests/benchmarks/test_command_lines.py",),
    ),
    Family(
        "states and gradients that don't fit",
        "the state of other options, widths, trees; gradients that are missing, "
        "broadcastable, of other trees or dtypes",
        ("tests/contract/test_states.py",),
    ),
)
