"""EF21-Muon's losses against bytes: groups of runs, table and picture."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.common import report
from benchmarks.ef21_muon.compressors import all_reduce_bytes
from benchmarks.ef21_muon.losses import Plan, order
from benchmarks.language.sweep_report import reached

DENSE = "identity/dense"

Entries = Sequence[dict[str, Any]]


class Group(NamedTuple):
    """Runs that differ in rate and seed alone."""

    label: str
    entries: Entries  # at the best rate, one for each seed
    rates: list[float]

    def mean(self, key: str = "final_validation_loss") -> float | None:
        """Over the seeds; None if one is not finite."""
        losses = [entry[key] for entry in self.entries]
        return None if None in losses else statistics.fmean(losses)


SETTINGS = ("pair", *Plan._fields)


def groups_of(entries: Entries) -> list[Group]:
    """The runs by settings; labels name what differs from the default plan."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault(tuple(entry[name] for name in SETTINGS), []).append(entry)
    groups = []
    for key, runs in found.items():
        changed = [
            f"{name.removeprefix('num_')} {value}"
            for name, value in zip(SETTINGS[1:], key[1:], strict=True)
            if value != Plan._field_defaults[name]
        ]
        first = [run for run in runs if run["seed"] == runs[0]["seed"]]
        best = min(first, key=order)["learning_rate"]
        chosen = {run["seed"]: run for run in runs if run["learning_rate"] == best}
        rates = sorted({run["learning_rate"] for run in first})
        groups.append(Group(", ".join([key[0], *changed]), [*chosen.values()], rates))
    return groups


def reference(groups: Sequence[Group], group: Group) -> Group | None:
    """Uncompressed training of as many workers on as much text: the best there is."""
    alike = ("num_workers", "num_blocks", "width", "length", "batch_size")
    own = group.entries[0]
    found = [
        other
        for other in groups
        if other.entries[0]["pair"] == DENSE
        and all(other.entries[0][name] == own[name] for name in alike)
        and other.entries[0]["num_steps"] == Plan().num_steps
    ]
    return min(found, key=lambda other: other.mean() or 1e9, default=None)


def savings(group: Group, dense: Group) -> tuple[float, float, float, float | None]:
    """By step; to the end of both; of that to the server alone; to one loss.

    The loss is the higher one of both ends, and the median over the seeds that both
    have is taken. The all-reduce's bytes go by the dense run's steps.
    """
    own, base = group.entries[0], dense.entries[0]
    per_step = all_reduce_bytes(own["num_parameters"], own["num_workers"])
    end = own["history"][-1]
    dense_total = per_step * base["num_steps"]
    ratios = []
    for run in group.entries:
        for other in dense.entries:
            ends = run["final_validation_loss"], other["final_validation_loss"]
            if run["seed"] == other["seed"] and None not in ends:
                spent = reached(run["history"], "bytes_sent", max(ends))
                steps = reached(other["history"], "step", max(ends))
                ratios.append(per_step * steps / spent)
    return (
        per_step * end["step"] / end["bytes_sent"],
        dense_total / end["bytes_sent"],
        dense_total / 2 / end["bytes_to_server"],
        statistics.median(ratios) if ratios else None,
    )


def tables(entries: Entries) -> list[str]:
    """One row for each pair and setting."""
    groups = groups_of(entries)
    header = ["workers/server", "rates tried", "best", "seeds", "loss at X, mean"]
    header += ["range", "at W", "penalty", "saving at the end", "to server alone"]
    header += ["to one loss"]
    rows = []
    for group in groups:
        dense, mean = reference(groups, group), group.mean()
        if dense is None or mean is None:
            rows.append([group.label, *["—"] * (len(header) - 1)])
            continue
        losses = [run["final_validation_loss"] for run in group.entries]
        at_w = group.mean("final_validation_loss_of_w")
        _, total, up, to_loss = savings(group, dense)
        rows.append(
            [
                group.label,
                ", ".join(f"{rate:g}" for rate in group.rates),
                f"{group.entries[0]['learning_rate']:g}",
                f"{len(losses)}",
                f"{mean:.3f}",
                f"{min(losses):.3f} … {max(losses):.3f}",
                "—" if at_w is None else f"{at_w:.3f}",
                f"{penalty(group, dense):+.3f}",
                f"{total:.2f}",
                f"{up:.2f}",
                "—" if to_loss is None else f"{to_loss:.2f}",
            ]
        )
    return [report.format_table(header, rows)]


def penalty(group: Group, dense: Group) -> float:
    """How much higher a loss ends, the mean over the seeds that both have."""
    ends = {run["seed"]: order(run) for run in dense.entries}
    return statistics.fmean(
        order(run) - ends[run["seed"]] for run in group.entries if run["seed"] in ends
    )


def plot(entries: Entries) -> Figure:
    """Validation loss at X against bytes of both directions, to the server, tokens."""
    groups = groups_of(entries)
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for number, group in enumerate(groups):
        run = group.entries[0]
        history = run["history"][1:]
        at_x = [point["validation_loss"] for point in history]
        style = {"color": f"C{number % 10}", "marker": ".o^s"[number // 10]}
        for axes, key in zip(
            panels, ("bytes_sent", "bytes_to_server", "num_tokens"), strict=True
        ):
            x = [point[key] / 1e6 for point in history]
            axes.plot(x, at_x, **style, markersize=4, label=group.label)
    for axes, label in zip(
        panels,
        (
            "sent by each worker, both directions / MB",
            "sent by each worker to the server / MB",
            "characters, of all workers / millions",
        ),
        strict=True,
    ):
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_xscale("log")
    panels[1].set_xscale("log")
    panels[0].set_ylabel("validation loss at X / nats per character")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7)
    return figure
