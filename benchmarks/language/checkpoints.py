"""Checkpoints of a run: weights, optimizer's state and history, by Orbax.

A step's batch, learning rate and set of layers are functions of (seed, step), so a run
that goes on from a checkpoint ends with the bits of one that was not interrupted.

Each checkpoint has a digest of every file in it, `digests.json`, written last: one that
was cut short, or in which a byte has changed, is known by it, and the one before is
taken. What is damaged is put aside under another name, never deleted.
"""

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from benchmarks.common.record import check_folder

NUM_KEPT = 2  # the newest, and the one before it should that be damaged
DIGESTS = "digests.json"  # in each checkpoint: SHA-256 by file
NOTES = Path("notes", "metadata")  # where Orbax puts JSON


class Store:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        """Makes the folder, if there is none.

        Args:
            folder: Of the checkpoints.
            settings: All that the run's numbers depend on, as JSON. A run goes on from
                a checkpoint with the same settings only.

        Raises:
            ValueError: If nothing can be written there.
        """
        check_folder("checkpoint", folder)
        self.folder, self.settings = folder.resolve(), settings
        self.manager: Any = None  # only once what is damaged has been put aside

    def save(self, step: int, state: Any, history: list[dict[str, Any]]) -> None:
        """Keeps the state after `step` steps, and then drops all but two.

        Raises:
            OSError: If it could not be written; the last one is still there.
        """
        notes = {"settings": self.settings, "history": history}
        try:
            if self.manager is None:
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=NUM_KEPT, enable_async_checkpointing=False
                )
                self.manager = ocp.CheckpointManager(self.folder, options=options)
            parts = ocp.args.Composite(
                state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
            )
            with quietly():
                self.manager.save(step, args=parts)
            if jax.process_index() == 0:
                write_digests(self.folder / str(step))
        except (OSError, ValueError) as error:
            raise OSError(
                f"checkpoint {step} could not be written to {self.folder}: "
                f"{in_one_line(error)}; those before it are kept"
            ) from error

    def restore(self, state: Any) -> tuple[Any, list[dict[str, Any]]] | None:
        """The newest whole state, laid out as `state` is, and the history.

        What is newer and damaged is named on standard error, and put aside.

        Returns:
            State and history; None if there is no checkpoint.

        Raises:
            ValueError: If it is a checkpoint of a run with other settings, or there are
                checkpoints and none is whole.
        """
        found, damaged = self.newest()
        if found is None:
            return None
        notes = json.loads((found / NOTES).read_text())
        layout = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(found / "state", layout)
        self.put_aside(damaged)
        return restored, notes["history"]

    def newest(self) -> tuple[Path | None, dict[int, str]]:
        """The newest whole checkpoint, and what is newer and damaged, by step.

        Raises:
            ValueError: As from `restore`.
        """
        steps = steps_in(self.folder)
        damaged: dict[int, str] = {}
        for step in steps:
            reason = damage(self.folder / str(step))
            if reason is None:
                break
            damaged[step] = reason
        if len(damaged) == len(steps):
            if not steps:
                return None, {}
            reasons = ", ".join(f"{step} ({why})" for step, why in damaged.items())
            raise ValueError(
                "`checkpoint` must hold a whole checkpoint, got none in "
                f"{self.folder}: {reasons}"
            )
        found = self.folder / str(steps[len(damaged)])
        self.check(json.loads((found / NOTES).read_text())["settings"])
        return found, damaged

    def check(self, found: dict[str, Any]) -> None:
        """Refuses a checkpoint of a run with other settings."""
        names = sorted({*found, *self.settings})
        other = [n for n in names if found.get(n) != self.settings.get(n)]
        if other:
            theirs = {name: found.get(name) for name in other}
            ours = {name: self.settings.get(name) for name in other}
            raise ValueError(
                f"`checkpoint` must be a folder of a run with {ours}, got one "
                f"with {theirs}: {self.folder}"
            )

    def put_aside(self, damaged: dict[int, str]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        if damaged and jax.process_count() > 1:  # all have looked
            multihost_utils.sync_global_devices("looked at checkpoints")
        for step, reason in damaged.items() if jax.process_index() == 0 else ():
            source, number = self.folder / str(step), 1
            while (aside := self.folder / f"{step}.damaged{number}").exists():
                number += 1
            source.rename(aside)
            print(f"skipped checkpoint {step}: {reason}; now {aside}", file=sys.stderr)
        if damaged and jax.process_count() > 1:
            multihost_utils.sync_global_devices("put checkpoints aside")

    def close(self) -> None:
        """Lets go of the folder."""
        if self.manager is not None:
            self.manager.close()


def steps_in(folder: Path) -> list[int]:
    """The steps of which the folder has something like a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir()]
    return sorted((int(n) for n in names if n.isdecimal()), reverse=True)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is as it was written."""
    try:
        expected = json.loads((checkpoint / DIGESTS).read_bytes())
        found = digests(checkpoint)
    except (OSError, ValueError):
        return f"its {DIGESTS} is missing or damaged"
    if not isinstance(expected, dict) or str(NOTES) not in expected:
        return f"its {DIGESTS} is missing or damaged"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if found[name] != expected.get(name):
            return f"{name} is not as it was written"
    return None


def digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint, by its path inside."""
    found = {}
    for path in sorted(checkpoint.rglob("*")):
        name = str(path.relative_to(checkpoint))
        if path.is_file() and name not in (DIGESTS, f".{DIGESTS}"):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_digests(checkpoint: Path) -> None:
    """Writes `digests.json`, wholly or not at all."""
    whole = checkpoint / f".{DIGESTS}"
    with whole.open("w") as file:
        json.dump(digests(checkpoint), file)
        file.flush()
        os.fsync(file.fileno())
    whole.replace(checkpoint / DIGESTS)


@contextmanager
def quietly() -> Iterator[None]:
    """Leaves it to the error to say what is wrong.

    Orbax logs it by hundreds of lines, and so do TensorStore's threads and tasks, which
    may come after it: these stay silent then.
    """
    orbax, tasks = logging.getLogger("absl"), logging.getLogger("asyncio")
    before, hook = (orbax.disabled, tasks.disabled), sys.unraisablehook

    def others(found: Any) -> None:
        if "Event loop is closed" not in str(found.exc_value):
            hook(found)

    orbax.disabled = tasks.disabled = True
    sys.unraisablehook = others
    try:
        yield
        tasks.disabled, sys.unraisablehook = before[1], hook
    finally:
        orbax.disabled = before[0]


def in_one_line(error: BaseException) -> str:
    """What is wrong in words: those of the system, if TensorStore has its number."""
    message = " ".join(str(error).split())
    number = re.search(r"os_error_code='(\d+)'", message)
    return os.strerror(int(number[1])) if number else message[:300]
