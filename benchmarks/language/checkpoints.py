"""Checkpoints of a run: weights, optimizer's state and history, by Orbax.

A step's batch, learning rate and set of layers are functions of (seed, step), so a run
that goes on from a checkpoint ends with the bits of one that was not interrupted.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

NUM_KEPT = 2  # the newest, and the one before it should that be damaged


class Store:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        """Opens a folder, or makes it.

        Args:
            folder: Of the checkpoints.
            settings: All that the run's numbers depend on, as JSON. A run goes on from
                a checkpoint with the same settings only.
        """
        self.settings = settings
        options = ocp.CheckpointManagerOptions(max_to_keep=NUM_KEPT)
        self.manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def save(self, step: int, state: Any, history: list[dict[str, Any]]) -> None:
        """Keeps the state after `step` steps; returns while it is being written."""
        notes = {"settings": self.settings, "history": history}
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes)
            ),
        )

    def restore(self, state: Any) -> tuple[Any, list[dict[str, Any]]] | None:
        """The newest state, laid out as `state` is, and the history; None if none is.

        Raises:
            ValueError: If it is a checkpoint of a run with other settings.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        notes = self.manager.restore(
            step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
        )["notes"]
        self.check(notes["settings"])
        layout = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self.manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(layout))
        )
        return restored["state"], notes["history"]

    def check(self, found: dict[str, Any]) -> None:
        """Refuses a checkpoint of a run with other settings."""
        names = sorted({*found, *self.settings})
        other = [n for n in names if found.get(n) != self.settings.get(n)]
        if other:
            theirs = {name: found.get(name) for name in other}
            ours = {name: self.settings.get(name) for name in other}
            raise ValueError(
                f"`checkpoint` must be a folder of a run with {ours}, got one "
                f"with {theirs}: {self.manager.directory}"
            )

    def close(self) -> None:
        """Waits until everything is written."""
        self.manager.wait_until_finished()
        self.manager.close()
