"""What comparisons at equal FLOPs show: tables from their result lines."""

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.common import report
from benchmarks.language import report as lm_report
from benchmarks.language.plan import Sets

BASE = "gluon"
KNOBS = ("growth", "keep", "outside_share")  # of which a method has one at most
OF = {  # by optimizer
    "drop_muon_grown": "growth",
    "drop_muon_depth": "keep",
    "drop_bp": "keep",
    "sign_muon": "outside_share",
}


def name_of(sets: Sets | None, num_blocks: int) -> str:
    """Blocks as digits: 1 for one that moves, 0 for an absent one, else what it does.

    That is f for frozen, b for one that gradients go around, s for a sign step.
    """
    if sets is None:
        return "all"
    layers = list(zip(sets.present, sets.active, sets.oracle, strict=True))
    layers = layers[1 : 1 + num_blocks]  # but for embedding and head
    still = "b" if sets.around else "f"
    marks = [
        ("1" if oracle else "s") if moves else (still if here else "0")
        for here, moves, oracle in layers
    ]
    return "".join(marks)


def recipe(entry: dict[str, Any]) -> str:
    """The optimizer, and the knob that it has."""
    knob = OF.get(entry["optimizer"])
    return entry["optimizer"] + (f" {entry[knob]}" if knob else "")


def grouped(entries: Iterable[dict[str, Any]], *keys: Any) -> dict[Any, list[Any]]:
    """Entries by the values of some keys, or functions of them."""
    groups: dict[Any, list[Any]] = {}
    for entry in entries:
        key = tuple(k(entry) if callable(k) else entry[k] for k in keys)
        groups.setdefault(key, []).append(entry)
    return groups


def tables(entries: list[dict[str, Any]]) -> str:
    """Those of each task: by learning rate at one seed, then over the seeds."""
    texts = []
    for (data, preset), own in grouped(entries, "data", "preset").items():
        texts += [f"{data}, {preset}", rates_table(own), seeds_table(own)]
    return "\n\n".join(texts)


def rates_table(entries: list[dict[str, Any]]) -> str:
    """Final validation loss by learning rate, seed 0."""
    rows = []
    first = [entry for entry in entries if entry["seed"] == 0]
    for (name, budget), own in grouped(first, recipe, "budget").items():
        losses = sorted(
            (entry["learning_rate"], entry["final_validation_loss"]) for entry in own
        )
        tried = ", ".join(f"{lr:g}: {lm_report.loss(loss)}" for lr, loss in losses)
        steps = " + ".join(f"{n} of {blocks}" for blocks, n in own[0]["stages"][:3])
        rows.append([name, f"{budget:g}", steps, tried])
    return report.format_table(
        ["method", "FLOPs of full steps", "steps", "learning rate: validation loss"],
        rows,
    )


def seeds_table(entries: list[dict[str, Any]]) -> str:
    """Final validation losses over seeds, for what has three of them at least."""
    rows = []
    groups = grouped(entries, recipe, "budget", "learning_rate").items()
    for (name, budget, lr), own in groups:
        losses = {entry["seed"]: entry["final_validation_loss"] for entry in own}
        if len(losses) < 3 or None in losses.values():
            continue
        rows.append(
            [
                name,
                f"{budget:g}",
                f"{lr:g}",
                f"{len(losses)}",
                lm_report.loss(statistics.fmean(losses.values())),
                f"{min(losses.values()):.4f} … {max(losses.values()):.4f}",
            ]
        )
    header = ["method", "FLOPs of full steps", "learning rate", "seeds", "loss, mean"]
    return report.format_table([*header, "range"], rows)


def full_runs(*sources: list[dict[str, Any]]) -> dict[Any, dict[int, float]]:
    """Final losses of Gluon on all layers: (data, preset, steps, rate) -> by seed."""
    found: dict[Any, dict[int, float]] = {}
    for entry in (entry for entries in sources for entry in entries):
        if entry["optimizer"] == BASE:
            keys = ("data", "preset", "num_steps", "learning_rate", "sign_radius")
            losses = found.setdefault(tuple(entry[key] for key in keys), {})
            losses.setdefault(entry["seed"], entry["final_validation_loss"])
    return found


def compared(entries: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    """Against Gluon on all layers at a larger budget, seed by seed.

    Args:
        entries: Lines of this comparison.
        others: Lines of runs of a fixed number of steps, of which Gluon's count, too.
    """
    rows = []
    groups = grouped(entries, "data", "preset", recipe, "budget", "learning_rate")
    for (data, preset, name, budget, lr), own in groups.items():
        for (*task, steps, rate, sign), full in full_runs(others, entries).items():
            losses = {e["seed"]: e["final_validation_loss"] for e in own}
            shared = sorted(losses.keys() & full.keys())
            wanted = [data, preset, own[0]["sign_radius"], lr]
            if len(shared) < 3 or [*task, sign, rate] != wanted or budget >= steps:
                continue
            pairs = [(losses[number], full[number]) for number in shared]
            ours, theirs = zip(*pairs, strict=True)
            lower = sum(mine <= other for mine, other in pairs)
            rows.append(
                [
                    name,
                    f"{steps / budget:.2f}",
                    f"{statistics.fmean(ours):.4f}",
                    f"{min(ours):.4f} … {max(ours):.4f}",
                    f"{statistics.fmean(theirs):.4f}",
                    f"{min(theirs):.4f} … {max(theirs):.4f}",
                    f"{lower} of {len(pairs)}",
                ]
            )
    header = ["method", "times fewer FLOPs", "loss, mean", "range"]
    header += ["gluon, all layers", "range of that", "not above it"]
    return report.format_table(header, rows)


def times_table(entries: list[dict[str, Any]]) -> str:
    """One row for each program: a step's time."""
    rows = [
        [
            entry["preset"],
            entry["program"],
            f"{1e3 * entry['step_time_s']['median']:.1f} ms",
            "{median:.2f} ({first:.2f} … {third:.2f})".format(**entry["ratio"]),
            f"{entry['compile_time_s']:.1f} s",
        ]
        for entry in entries
    ]
    header = ["preset", "program", "step", "of the first one's", "compilation"]
    return report.format_table(header, rows)
