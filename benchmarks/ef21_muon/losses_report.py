"""EF21-Muon's losses against bytes: groups of runs, tables and picture."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.common import record, report
from benchmarks.ef21_muon.compressors import all_reduce_bytes
from benchmarks.ef21_muon.losses import Plan, order
from benchmarks.ef21_muon.sent import ALIKE
from benchmarks.language.sweep_report import reached

DENSE = "identity/dense"
SENT = "ef21_muon_sent.jsonl"
SHOWN = 6  # curves in the picture, at most

Entries = Sequence[dict[str, Any]]


class Group(NamedTuple):
    """Runs that differ in rate, momentum and seed alone."""

    label: str
    entries: Entries  # at the best rate and momentum, one for each seed
    tried: list[tuple[float, float]]  # rates and momenta, with the first seed

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
        best = settings_of(min(first, key=order))
        # Of a run that was made twice, the first line counts.
        own = [run for run in reversed(runs) if settings_of(run) == best]
        by_seed = {run["seed"]: run for run in own}
        chosen = {seed: by_seed[seed] for seed in sorted(by_seed)}
        tried = sorted({settings_of(run) for run in first})
        groups.append(Group(", ".join([key[0], *changed]), [*chosen.values()], tried))
    return groups


def settings_of(run: dict[str, Any]) -> tuple[float, float]:
    return run["learning_rate"], run["momentum"]


def reference(groups: Sequence[Group], group: Group) -> Group | None:
    """Uncompressed training of all layers, of as many workers on as much text a step.

    For as many steps, if there is such a run, else for those of the default plan.
    """
    alike = ("num_workers", "num_blocks", "width", "length", "batch_size")
    own = group.entries[0]
    found = [
        other
        for other in groups
        if (other.entries[0]["pair"], other.entries[0]["sampling"]) == (DENSE, "full")
        and all(other.entries[0][name] == own[name] for name in alike)
    ]
    for num_steps in (own["num_steps"], Plan().num_steps):
        those = [g for g in found if g.entries[0]["num_steps"] == num_steps]
        if those:
            return min(those, key=lambda other: other.mean() or 1e9)
    return None


# ------------------------------------------------------------------------------- bytes


def key_of(entry: dict[str, Any]) -> tuple[Any, ...]:
    return (entry["pair"], *(entry[name] for name in ALIKE))


class Sent:
    """What each step sends, by the newest counts."""

    def __init__(self, entries: Entries):
        """Takes the lines of the part `sent`."""
        self.newest = {key_of(entry): entry for entry in entries}

    def knows(self, run: dict[str, Any]) -> bool:
        """Whether the run's steps were counted."""
        return key_of(run) in self.newest

    def history(
        self, run: dict[str, Any], name: str = "bytes_from"
    ) -> list[dict[str, Any]]:
        """The run's history with the bytes that each worker has `sent`.

        Uncompressed training sends an all-reduce of the float32 gradients that move.
        """
        count = self.newest[key_of(run)]
        each = count[name]
        if run["pair"] == DENSE:
            n, half = run["num_workers"], 2 if name == "to_server_from" else 1
            sizes = count["num_parameters_from"]
            each = [all_reduce_bytes(size, n) / half for size in sizes]
        return [
            {
                **point,
                "sent": sum(
                    a * b for a, b in zip(each, point["steps_from"], strict=False)
                ),
            }
            for point in run["history"]
        ]


def saving(sent: Sent, group: Group, dense: Group, name: str = "bytes_from") -> float:
    """Times fewer bytes to the end than uncompressed training's."""
    own = sent.history(group.entries[0], name)[-1]["sent"]
    return sent.history(dense.entries[0], name)[-1]["sent"] / own


def saving_to_one_loss(sent: Sent, group: Group, dense: Group) -> float | None:
    """Times fewer bytes to the higher of both final losses; median over the seeds."""
    ratios = []
    for run in group.entries:
        for other in dense.entries:
            ends = run["final_validation_loss"], other["final_validation_loss"]
            if run["seed"] == other["seed"] and None not in ends:
                mine, its = (
                    reached(sent.history(x), "sent", max(ends)) for x in (run, other)
                )
                ratios.append(its / mine)
    return statistics.median(ratios) if ratios else None


# ------------------------------------------------------------------------------ tables


def known_sent() -> Sent:
    """The counts that are committed."""
    return Sent(record.read(record.COMMITTED / SENT))


def tables(entries: Entries, sent: Sent | None = None) -> list[str]:
    """One row for each pair and setting."""
    sent = known_sent() if sent is None else sent
    groups = groups_of(entries)
    header = ["workers/server", "tried", "rate", "momentum", "seeds", "loss at X"]
    header += ["range", "at W", "penalty", "bytes, of float32's", "of bfloat16's"]
    header += ["to server alone", "to one loss"]
    rows = []
    for group in groups:
        dense, mean = reference(groups, group), group.mean()
        if dense is None or mean is None or not sent.knows(group.entries[0]):
            rows.append([group.label, *["—"] * (len(header) - 1)])
            continue
        losses = [run["final_validation_loss"] for run in group.entries]
        at_w = group.mean("final_validation_loss_of_w")
        total = saving(sent, group, dense)
        to_loss = saving_to_one_loss(sent, group, dense)
        first = group.entries[0]
        rows.append(
            [
                group.label,
                f"{len(group.tried)}",
                f"{first['learning_rate']:g}",
                f"{first['momentum']:g}",
                f"{len(losses)}",
                f"{mean:.3f}",
                f"{min(losses):.3f} … {max(losses):.3f}",
                "—" if at_w is None else f"{at_w:.3f}",
                f"{penalty(group, dense):+.3f}",
                f"{total:.2f}",
                f"{total / 2:.2f}",
                f"{saving(sent, group, dense, 'to_server_from'):.2f}",
                "—" if to_loss is None else f"{to_loss:.2f}",
            ]
        )
    return [report.format_table(header, rows), grid(entries)]


def grid(entries: Entries) -> str:
    """The loss at every rate and momentum, of the first seed."""
    cells: dict[str, dict[tuple[float, float], float]] = {}
    for group in groups_of(entries):
        if len(group.tried) > 1:
            own = [run for run in entries if same(run, group.entries[0])]
            found = {settings_of(run): order(run) for run in reversed(own)}
            cells[group.label] = found
    columns = sorted({key for own in cells.values() for key in own})
    header = ["", *(f"{rate:g}, {momentum:g}" for rate, momentum in columns)]
    rows = [
        [name, *(f"{own[key]:.3f}" if key in own else "—" for key in columns)]
        for name, own in cells.items()
    ]
    return report.format_table(header, rows)


def same(run: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(run[name] == other[name] for name in (*SETTINGS, "seed"))


def penalty(group: Group, dense: Group) -> float:
    """How much higher a loss ends, the mean over the seeds that both have."""
    ends = {run["seed"]: order(run) for run in dense.entries}
    return statistics.fmean(
        order(run) - ends[run["seed"]] for run in group.entries if run["seed"] in ends
    )


# ----------------------------------------------------------------------------- picture


def plot(entries: Entries, sent: Sent | None = None) -> Figure:
    """Loss at X against bytes, and every pair's end: penalty against saving.

    Without runs that begin at the first gradient, which lie on the others.
    """
    sent = sent or known_sent()
    entries = [run for run in entries if run["initial"] == "zeros"]
    groups = [g for g in groups_of(entries) if sent.knows(g.entries[0])]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = []
    for group in groups:
        dense = reference(groups, group)
        if dense is not None and group.mean() is not None:
            times = saving(sent, group, dense) / 2
            ends.append((times, penalty(group, dense), group))
    for number, (_, _, group) in enumerate(chosen(ends)):
        history = sent.history(group.entries[0])[1:]
        at_x = [point["validation_loss"] for point in history]
        x = [point["sent"] / 1e6 for point in history]
        left.plot(x, at_x, color=f"C{number}", marker=".", label=group.label)
    _plot_ends(right, ends)
    left.set_xscale("log")
    left.set_xlabel("sent by each worker, both directions / MB")
    left.set_ylabel("validation loss at X / nats per character")
    left.grid(alpha=0.3)
    if left.lines:
        left.legend(fontsize=8)
    return figure


def _plot_ends(axes: Any, ends: Sequence[tuple[float, float, Group]]) -> None:
    """Penalty against saving: those of the curves in their colors, with names."""
    for times, more, _ in ends:
        axes.plot([times], [more], ".", color="grey", zorder=0)
    for number, (times, more, group) in enumerate(chosen(ends)):
        axes.plot([times], [more], "o", color=f"C{number}")
        if group.label != DENSE:
            axes.annotate(group.label, (times, more), fontsize=7, xytext=(-5, 4),
                          textcoords="offset points", ha="right")  # fmt: skip
    axes.set_xscale("log")
    axes.axhline(0.02, color="black", linewidth=0.8)
    axes.axvline(7, color="black", linewidth=0.8)
    axes.set_xlabel("times fewer bytes than a bfloat16 all-reduce")
    axes.set_ylabel("loss at the end, less uncompressed training's")
    axes.grid(alpha=0.3)


def chosen(ends: Sequence[tuple[float, float, Group]]) -> list[Any]:
    """Those that none of as many steps beats in saving and loss; at most `SHOWN`."""

    def settings(end: tuple[float, float, Group]) -> dict[str, Any]:
        return end[2].entries[0]

    def beats(one: Any, other: Any) -> bool:
        steps, its = (settings(end)["num_steps"] for end in (one, other))
        return steps == its and one[0] >= other[0] and one[1] < other[1]

    usual = [e for e in ends if settings(e)["num_workers"] == Plan().num_workers]
    best = [end for end in usual if not any(beats(o, end) for o in usual)]
    return sorted(best, key=lambda end: end[0])[:SHOWN]
