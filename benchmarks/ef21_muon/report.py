"""Tables and pictures of EF21-Muon's measurements."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import record, report
from benchmarks.ef21_muon import losses_report
from benchmarks.ef21_muon.bytes import ALL_AT, TOPOLOGIES, saving
from benchmarks.ef21_muon.compressors import SERVERS

# The rows of the table by number of workers.
PAIRS = ["natural/dense", "natural/same", "natural/scaled_sign"]
PAIRS += ["top50_natural/scaled_sign", "top20_natural/scaled_sign"]
PAIRS += ["top10_natural/natural", "top10_natural/same", "top10_natural/dense"]
PAIRS += ["top50_sign/scaled_sign", "rank20_warm_natural/scaled_sign"]
DRAWN = ["natural/dense", "natural/scaled_sign", "top20_natural/scaled_sign"]
DRAWN += ["top10_natural/same", "top50_sign/scaled_sign"]
IDEAL_BAR = 1.25
BAR = 7.0  # times fewer bytes than a float32 all-reduce; twice that of a bfloat16 one

Entries = Sequence[dict[str, Any]]


def show(folder: Path, parts: Sequence[str]) -> None:
    """Prints the tables and draws the pictures of these parts."""
    for part in parts:
        entries = record.read(folder / f"ef21_muon_{part}.jsonl")
        if entries and part in SHOWN:
            tables, plot = SHOWN[part]
            if part == "losses":
                sent = losses_report.Sent(record.read(folder / losses_report.SENT))
                tables, plot = (functools.partial(f, sent=sent) for f in SHOWN[part])
            print("\n" + "\n\n".join(tables(entries)) + "\n")
            if plot is not None:
                figure = plot(entries)
                figure.savefig(folder / f"ef21_muon_{part}.png", dpi=100)


# ------------------------------------------------------------------------------ bytes


def tables_of_bytes(entries: Entries) -> list[str]:
    """Savings of all compressors with `ALL_AT` workers, then by number of workers."""
    tables = []
    for tree in dict.fromkeys(entry["tree"] for entry in entries):
        own = [entry for entry in entries if entry["tree"] == tree]
        tables += [f"{tree}, {ALL_AT} workers", by_compressor(own)]
        tables += [f"{tree}, by number of workers", by_workers(own)]
        tables += [f"{tree}, all pairs, of the ideal", of_the_ideal(own)]
    tables.append(agreement(entries))
    return tables


def savings_of(entries: Entries) -> dict[Any, float]:
    """(pair, topology, workers) -> saving, of traced counts; the last line counts."""
    return {
        (entry["pair"], entry["topology"], entry["num_workers"]): saving(entry)
        for entry in entries
        if not entry["compiled"] and entry.get("node_size", 1) == 1
    }


def by_compressor(entries: Entries) -> str:
    """What goes to the server, of a dense message; and savings by topology."""
    found = savings_of(entries)
    header = ["workers compress by", "to the server", "model of the paper's"]
    header += ["server dense", "natural", "scaled sign", "the same", "gather"]
    rows = []
    for entry in entries:
        worker, _, server = entry["pair"].partition("/")
        n = entry["num_workers"]
        if entry["compiled"] or n != ALL_AT or (server, entry["topology"]) != FIRST:
            continue
        own = entry["bytes_per_step_by_kind"]["all-to-all"]
        share = own / (entry["all_reduce_bytes_per_step"] / 2)
        guess = entry["paper_model"]
        pairs = [(f"{worker}/{server}", "owner") for server in SERVERS[:-1]]
        same = "dense" if worker == "identity" else "same"
        pairs += [(f"{worker}/{same}", "owner"), (f"{worker}/dense", "gather")]
        if worker in SERVERS:
            pairs[SERVERS.index(worker)] = pairs[-2]
        times = [found.get((*pair, n)) for pair in pairs]
        rows.append(
            [
                worker,
                f"{share:.4f}",
                "—" if guess is None else f"{guess:.4f}",
                *("—" if time is None else f"{time:.2f}" for time in times),
            ]
        )
    return report.format_table(header, rows)


FIRST = ("dense", "owner")


def by_workers(entries: Entries) -> str:
    """Savings by number of workers, and bytes of the ideal where that is known.

    Of the pairs in `PAIRS`: the others are in `of_the_ideal`.
    """
    found: dict[Any, Any] = {key: f"{v:.2f}" for key, v in savings_of(entries).items()}
    for entry in entries:
        key = (entry["pair"], entry["topology"], entry["num_workers"])
        if key in found and "ideal_bytes_per_step" in entry:
            found[key] = f"{saving(entry):.2f} / {of_ideal(entry):.2f}"
    counts = sorted({n for _, _, n in found})
    ways = itertools.product(PAIRS, TOPOLOGIES)
    names = [way for way in ways if any(way == key[:2] for key in found)]
    rows = []
    for pair, topology in names:
        cells = [found.get((pair, topology, n)) for n in counts]
        if len(cells) - cells.count(None) > 1:  # one is in the other table
            shown = ("—" if cell is None else cell for cell in cells)
            rows.append([f"{pair}, {topology}", *shown])
    return report.format_table(["", *(f"n = {n}" for n in counts)], rows)


def of_ideal(entry: dict[str, Any]) -> float:
    return entry["bytes_per_step"] / entry["ideal_bytes_per_step"]


def of_the_ideal(entries: Entries) -> str:
    """Least and most bytes of the ideal over all pairs, by topology and workers."""
    newest = {
        (
            entry["topology"],
            (entry["num_workers"], entry.get("node_size", 1)),
            entry["pair"],
        ): entry
        for entry in entries
        if not entry["compiled"] and "ideal_bytes_per_step" in entry
    }
    groups: dict[Any, list[tuple[float, str]]] = {}
    for (topology, n, pair), entry in newest.items():
        groups.setdefault((topology, n), []).append((of_ideal(entry), pair))
    rows = []
    for (topology, (n, devices)), found in sorted(groups.items()):
        high = [pair for ratio, pair in sorted(found) if ratio > IDEAL_BAR]
        rows.append(
            [
                topology,
                f"{n}" if devices == 1 else f"{n} × {devices}",
                f"{len(found)}",
                f"{min(found)[0]:.2f} ({min(found)[1]})",
                f"{max(found)[0]:.2f} ({max(found)[1]})",
                f"{len(high)}",
            ]
        )
    header = ["", "workers", "pairs", "least", "most", f"above {IDEAL_BAR}"]
    return report.format_table(header, rows)


def agreement(entries: Entries) -> str:
    """Whether traced and compiled counts agree, wherever both are known."""
    keys = ("tree", "pair", "topology", "num_workers")
    counts: dict[Any, dict[bool, float]] = {}
    for entry in entries:
        key = tuple(entry[name] for name in keys)
        counts.setdefault(key, {})[entry["compiled"]] = entry["bytes_per_step"]
    both = {key: own for key, own in counts.items() if len(own) == 2}
    other = [key for key, own in both.items() if own[False] != own[True]]
    return f"traced and compiled: {len(both)} counts of both, {len(other)} differ" + (
        f": {other}" if other else ""
    )


def plot_bytes(entries: Entries) -> Figure:
    """Savings against the number of workers, a panel for each tree."""
    checked = {entry["tree"] for entry in entries if entry["compiled"]}
    trees = list(dict.fromkeys(entry["tree"] for entry in entries))
    trees = [tree for tree in trees if tree not in checked] or trees
    figure = Figure(figsize=(1.5 + 5.5 * len(trees), 4.5), layout="constrained")
    panels = figure.subplots(1, len(trees), sharey=True, squeeze=False)[0]
    for axes, tree in zip(panels, trees, strict=True):
        own = [entry for entry in entries if entry["tree"] == tree]
        found = savings_of(own)
        for number, pair in enumerate(DRAWN):
            for topology, style in (("owner", "-"), ("relays", ":"), ("gather", "--")):
                points = [
                    (n, v) for (*key, n), v in found.items() if key == [pair, topology]
                ]
                if points:
                    x, y = zip(*sorted(points), strict=True)
                    label = pair if style == "-" else None
                    axes.plot(x, y, style, color=f"C{number}", marker=".", label=label)
        axes.axhline(BAR, color="black", linewidth=0.8)
        axes.axhline(2 * BAR, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("workers")
        axes.set_title(f"GPT {tree}, {own[0]['num_parameters'] / 1e6:.1f} M parameters")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("times fewer bytes than a float32 all-reduce")
    title = "solid: owners\ndotted: with relays\ndashed: gather"
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, title=title, loc="outside right upper", fontsize=8)
    return figure


# -------------------------------------------------------------------------------- cost


def tables_of_cost(entries: Entries) -> list[str]:
    """One table for each matrix, and one for the step; of each the newest line."""
    newest = {str(entry.get("shape", entry.get("preset"))): entry for entry in entries}
    return [table_of_cost(name, entry) for name, entry in newest.items()]


def table_of_cost(name: str, entry: dict[str, Any]) -> str:
    """Times, and ratios inside each round to the first."""
    ratios = entry["of_lax_top_k" if "of_lax_top_k" in entry else "of_uncompressed"]
    shares = entry.get("share_of_step", {})
    rows = []
    for way, time in entry["time_s"].items():
        ratio = ratios[way]
        rows.append(
            [
                way,
                report.seconds(time["median"]),
                f"{ratio['median']:.2f} ({ratio['first']:.2f} … {ratio['third']:.2f})",
                *([report.percent(shares[way])] if shares else []),
            ]
        )
    header = [name, "time", "of the first's"] + (["compression"] if shares else [])
    return report.format_table(header, rows)


SHOWN: dict[str, tuple[Any, Any]] = {
    "bytes": (tables_of_bytes, plot_bytes),
    "losses": (losses_report.tables, losses_report.plot),
    "cost": (tables_of_cost, None),
}
