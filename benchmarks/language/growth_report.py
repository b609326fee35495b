"""What comparisons at equal FLOPs show: tables from their result lines."""

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.common import report
from benchmarks.language import report as lm_report
from benchmarks.language.plan import Sets

BASE = "gluon"
KNOBS = ("growth", "keep", "outside_share")  # a method's recipe is its first of these
OF = {  # by optimizer
    "drop_muon_grown": "growth",
    "sign_muon_grown": "growth",
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
        steps = " + ".join(f"{n} of {blocks}" for blocks, n in own[0]["stages"][:4])
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


def base_runs(entries: list[Any], others: list[Any]) -> list[dict[str, Any]]:
    """Gluon's on all layers, one of each task, length, rate and seed.

    Args:
        entries: Lines of this comparison, which count first.
        others: Lines of runs of a fixed number of steps.
    """
    found: dict[Any, dict[str, Any]] = {}
    for entry in [*entries, *others]:
        if entry["optimizer"] == BASE:
            keys = (entry["num_steps"], entry["learning_rate"], entry["seed"])
            found.setdefault((task_of(entry), *keys), entry)
    return list(found.values())


def full_runs(entries: list[Any], others: list[Any]) -> dict[Any, Any]:
    """Final losses of `base_runs`: (task, steps), rate -> by seed."""
    found: dict[Any, dict[Any, dict[int, float]]] = {}
    for entry in base_runs(entries, others):
        rates = found.setdefault((task_of(entry), entry["num_steps"]), {})
        losses = rates.setdefault(entry["learning_rate"], {})
        losses[entry["seed"]] = entry["final_validation_loss"]
    return found


def finite(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of runs that ended at a number."""
    return [e for e in entries if e["final_validation_loss"] is not None]


def task_of(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What runs that are compared have in common."""
    return tuple(entry[key] for key in ("data", "preset", "sign_radius", "warm_down"))


def best_of(
    rates: dict[float, dict[int, float]], seeds: Iterable[int]
) -> dict[int, float]:
    """Losses of the seeds at the rate that has the least mean, if any has three."""
    means, wanted = {}, set(seeds)
    for lr, losses in rates.items():
        shared = [losses[number] for number in wanted & losses.keys()]
        if len(shared) >= 3:
            means[lr] = statistics.fmean(shared)
    return rates[min(means, key=lambda lr: means[lr])] if means else {}


def compared(
    entries: list[dict[str, Any]],
    others: list[dict[str, Any]],
    times: list[dict[str, Any]],
) -> str:
    """Against Gluon on all layers at a budget no smaller, seed by seed.

    Args:
        entries: Lines of this comparison.
        others: Lines of runs of a fixed number of steps, of which Gluon's count, too.
        times: Lines of step times, by which the runs are valued.
    """
    others, entries = finite(others), finite(entries)
    rows, full = [], full_runs(entries, others)
    groups = grouped(entries, task_of, recipe, "budget", "learning_rate")
    for (task, name, budget, lr), own in groups.items():
        losses = {e["seed"]: e["final_validation_loss"] for e in own}
        for (other, steps), rates in full.items():
            theirs = best_of(rates, losses)
            shared = sorted(losses.keys() & theirs.keys())
            if task != other or budget > steps or not shared or name == BASE:
                continue
            mine = [losses[number] for number in shared]
            full_ends = [theirs[number] for number in shared]
            lower = sum(a <= b for a, b in zip(mine, full_ends, strict=True))
            rows.append(
                [
                    f"{name}, {task[0]}, {task[1]}",
                    f"{lr:g}",
                    f"{steps / budget:.2f}",
                    saved_time(own[0], steps, times),
                    *mean_and_range(mine),
                    *mean_and_range(full_ends),
                    f"{lower} of {len(shared)}",
                ]
            )
    header = ["method", "rate", "times fewer FLOPs", "times less time", "loss, mean"]
    header += ["range", "gluon, all layers", "range of that", "not above it"]
    return report.format_table(header, rows)


def mean_and_range(losses: list[float]) -> tuple[str, str]:
    """Of final losses, as the tables have them."""
    return f"{statistics.fmean(losses):.4f}", f"{min(losses):.4f} … {max(losses):.4f}"


def saved_time(entry: dict[str, Any], steps: int, times: list[dict[str, Any]]) -> str:
    """By what a run's time is less than that of Gluon's steps on all layers."""
    known = times_of(entry, times)
    base = known.get(f"{BASE} all")
    own = train_times(entry, known)
    return "—" if base is None or own is None else f"{steps * base / own[-1]:.2f}"


def times_of(entry: dict[str, Any], times: list[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of a step by program, of a run's task; the newest line counts."""
    keys = ("data", "preset", "batch_size", "length")
    task = [entry[key] for key in keys]
    return {
        line["program"]: line["step_time_s"]["median"]
        for line in times
        if [line["data"], line["preset"], line["batch"], line["length"]] == task
    }


def train_times(entry: dict[str, Any], known: dict[str, float]) -> list[float] | None:
    """Seconds after 0, 1, … steps of a run, by the table; None: not all were timed."""
    stages = entry.get("stages", [("all", entry["num_steps"])])
    mixed: dict[
        str, list[tuple[float, int]]
    ] = {}  # sign steps, with those they are between
    for blocks, count in stages:
        step = known.get(f"{entry['optimizer']} {blocks}")
        if step is None:
            return None
        mixed.setdefault(blocks.replace("s", "1"), []).append((step, count))
    found = [0.0]
    for own in mixed.values():
        total = sum(count for _, count in own)
        mean = sum(step * count for step, count in own) / total
        found += [found[-1] + mean * (i + 1) for i in range(total)]
    return found


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
