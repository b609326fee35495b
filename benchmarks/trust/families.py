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
    Family(
        "full disks",
        "a checkpoint that can't be written, on a small disk or for a limit; a disk "
        "that is read-only; files in place of folders",
        ("tests/benchmarks/trust/test_full_disk.py",),
    ),
    Family(
        "another number of devices",
        "8, then 4, then 8 devices, by Orbax: sharded weights and states, raw and "
        "typed keys, `nnx.Optimizer`",
        ("tests/contract/test_restores.py",),
    ),
    Family(
        "threads and copies",
        "two threads that trace and train while a third makes states; copied and "
        "pickled states, transformations and nouns",
        ("tests/contract/test_threads.py", "tests/contract/test_copies.py"),
    ),
    Family(
        "imports and wheel",
        "an import without a device, without Flax and other extras; what is public; "
        "what the wheel holds",
        ("tests/test_door.py", "tests/test_wheel.py"),
    ),
)
