"""What a comparison of language models shows: one table, from its result lines."""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.common import report, timing
from benchmarks.language import report as lm_report

BASE = "optax_muon"  # whose time the others' is compared with, if it runs


def table(entries: list[dict[str, Any]]) -> str:
    """One row for each optimizer: loss over the seeds, time and FLOPs beside BASE's."""
    groups = by_optimizer(entries)
    base = groups.get(BASE, next(iter(groups.values())))
    header = ["optimizer", "rates tried", "best", "validation loss, mean", "range"]
    header += [f"time of {base[0]['optimizer']}'s", "FLOPs", "to its loss: tokens"]
    header += ["time", "FLOPs"]
    rows = []
    for name, group in groups.items():
        losses = [entry["final_validation_loss"] for entry in group]
        finite = [loss for loss in losses if loss is not None]
        mean = statistics.fmean(finite) if len(finite) == len(losses) else None
        ratio = time_ratio(group, base)
        rows.append(
            [
                name,
                ", ".join(f"{rate:g}" for rate, _ in group[0]["rates_tried"]),
                f"{group[0]['learning_rate']:g}",
                lm_report.loss(mean),
                f"{min(finite):.4f} … {max(finite):.4f}" if finite else "—",
                f"{ratio.median:.2f} ({ratio.first:.2f} … {ratio.third:.2f})",
                f"{group[0]['num_flops'] / base[0]['num_flops']:.2f}",
                *(
                    share(to_loss(group, base, key))
                    for key in ("num_tokens", "train_time_s", "num_flops")
                ),
            ]
        )
    return report.format_table(header, rows)


def rates_table(entries: list[dict[str, Any]]) -> str:
    """One row for each optimizer: final validation losses of the sweep, by rate."""
    rows = []
    for name, (first, *_) in by_optimizer(entries).items():
        tried = [
            f"{rate:g}: {lm_report.loss(loss)}" for rate, loss in first["rates_tried"]
        ]
        rows.append([name, ", ".join(tried), f"{first['learning_rate']:g}"])
    return report.format_table(["optimizer", "learning rate: loss", "best"], rows)


def by_optimizer(entries: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each optimizer, one for each seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(entry["optimizer"], []).append(entry)
    return groups


def time_ratio(
    group: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]
) -> timing.Quartiles:
    """A step's time over that of the base in the same turn; all turns, all seeds."""
    key = "stretch_step_times_s"
    pairs = [
        pair
        for own, other in zip(group, base, strict=True)
        for pair in zip(own[key], other[key], strict=True)
    ]
    return timing.quartiles([own / other for own, other in pairs])


def to_loss(
    group: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], key: str
) -> float | None:
    """What an optimizer spends to reach the base's final loss, over what the base does.

    The loss is the higher one of the two ends, so that both reach it; between two
    evaluations it is taken to fall on a line. The median over the seeds.
    """
    ratios = []
    for own, other in zip(group, base, strict=True):
        ends = [own["final_validation_loss"], other["final_validation_loss"]]
        if None in ends:
            return None
        spent = [reached(run["history"], key, max(ends)) for run in (own, other)]
        ratios.append(spent[0] / spent[1])
    return statistics.median(ratios)


def reached(history: Sequence[dict[str, Any]], key: str, loss: float) -> float:
    """`history[…][key]` where the validation loss first falls to `loss`.

    Examples:
        >>> losses = enumerate([4.0, 3.0, 1.0])
        >>> history = [{"step": i, "validation_loss": loss} for i, loss in losses]
        >>> reached(history, "step", 2.0)
        1.5
    """
    for before, after in pairwise(history):
        if after["validation_loss"] <= loss:
            high, low = before["validation_loss"], after["validation_loss"]
            part = min(1.0, (high - loss) / (high - low)) if high > low else 1.0
            return before[key] + part * (after[key] - before[key])
    return float(np.nan)


def share(value: float | None) -> str:
    """A ratio to two digits behind the point."""
    return "—" if value is None else f"{value:.2f}"
