"""The table and the picture of the lines, made again from them at any time.

A figure counts once for each device, version of JAX and scale: the newest line that
measures it, or, if none does, the newest that says why not.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accelerator import plots
from benchmarks.common import report
from benchmarks.common.timing import Quartiles
from benchmarks.drop_muon import report as drop_report

Line = dict[str, Any]
HEADER = ["part", "figure", "dtype", "of", "time", "compared", "besides", "compile"]
ABSENT = "—"
MUON = "optax.contrib.muon"


class Row(NamedTuple):
    """One row of the table, beside part, figure and dtype."""

    what: str
    time: str = ABSENT
    compared: str = ABSENT
    besides: str = ABSENT
    compile: str = ABSENT


def show(path: Path, lines: Sequence[Line]) -> None:
    """Prints the tables, and draws the picture of the newest line's group."""
    groups = grouped(lines)
    for title, chosen in groups.items():
        print(f"\n{title}\n\n{table(chosen)}")
        for more in image_tables(chosen):
            print(f"\n{more}")
    if groups:
        newest = title_of(lines[-1])
        picture = path.with_suffix(".png")
        plots.plot(picture, newest, groups[newest])
        print(f"\npicture: {picture}")


def title_of(line: Line) -> str:
    """What figures of one table have in common."""
    device = line["device_kind"] or "device not known"
    scale = "" if line["scale"] == "full" else f", scale {line['scale']}"
    return f"{device}, jax {line['jax_version']}{scale}"


def grouped(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Title -> the line of each figure, in the order of the parts."""
    found: dict[str, dict[Any, Line]] = {}
    for line in lines:
        group = found.setdefault(title_of(line), {})
        key = line["part"], line["figure"], line["dtype"]
        if line["status"] == "measured" or not is_measured(group.get(key)):
            group[key] = line
    return {title: list(group.values()) for title, group in found.items()}


def is_measured(line: Line | None) -> bool:
    return line is not None and line["status"] == "measured"


def table(lines: Sequence[Line]) -> str:
    """All rows of all figures; neighbours left out for one reason share theirs."""
    rows = []
    for _, group in itertools.groupby(enumerate(lines), why):
        (_, line), *others = group
        figure = line["figure"] + (f" (and {len(others)} more)" if others else "")
        for row in rows_of(line):
            rows.append([line["part"], figure, line["dtype"], *row])
    return report.format_table(HEADER, rows)


def why(place: tuple[int, Line]) -> tuple[Any, ...]:
    """What neighbours in the table have in common if they are one row."""
    number, line = place
    if line["status"] == "skipped":
        return line["part"], line["reason"]
    return (number,)


def headline(line: Line) -> str:
    """What is printed as soon as a figure is known."""
    name = f"{line['part']}: {line['figure']}, {line['dtype']}"
    if line["status"] != "measured":
        return f"{name}: {line['status']}: {line['reason']}"
    told = "; ".join(
        " ".join(cell for cell in row[:4] if cell != ABSENT) for row in rows_of(line)
    )
    return f"{name}: {told} [{report.seconds(line['time_s'])}]"


def rows_of(line: Line) -> list[Row]:
    """A line's rows; one that isn't measured says why."""
    if line["status"] != "measured":
        reason = " ".join(line["reason"].split())[:80]
        return [Row(f"{line['status']}: {reason}".replace("|", "/"))]
    return list(ROWS[line["part"]](line["measured"]))


def spread(values: dict[str, Any], digits: int = 2) -> str:
    """Median and quartiles of a ratio."""
    shown = (f"{values[key]:.{digits}f}" for key in ("median", "first", "third"))
    return "{} ({} … {})".format(*shown)


def inverse(ratio: dict[str, Any]) -> dict[str, Any]:
    """Of a ratio's quartiles: how many times faster."""
    found = {key: 1 / ratio[key] for key in ("median", "first", "third")}
    return Quartiles(
        found["median"], found["third"], found["first"], ratio["num_runs"]
    )._asdict()


def of_updates(measured: Line) -> Iterator[Row]:
    for name, found in measured["optimizers"].items():
        error = found.get("orthogonality_error")
        orthogonal = error is not None and name != "optax.adamw"
        yield Row(
            name,
            report.seconds(found["update_time_s"]["median"]),
            f"{spread(inverse(found['update_time_ratio']))} times faster",
            f"error {error:.4f}" if orthogonal else ABSENT,
            report.seconds(found["compile_time_s"]),
        )


def of_cutoffs(measured: Line) -> Iterator[Row]:
    hand = measured.get("step_time_of_by_hand")
    yield Row(
        f"batch {measured['batch_size']}",
        report.seconds(measured["step_time_s"]["median"]),
        f"{spread(measured['step_time_ratio'])} of full's",
        f"{spread(hand)} of by hand's" if hand else ABSENT,
        report.seconds(measured["compile_time_s"]),
    )


def of_images(measured: Line) -> Iterator[Row]:
    if "method" not in measured:
        plain = measured["step_times_of_plain_s"]["muon"]
        for cutoff, time_s in enumerate(measured["step_times_of_cutoffs_s"]):
            share = f"{time_s / plain:.2f} of full Muon's"
            yield Row(f"cutoff {cutoff}", report.seconds(time_s), share)
        compile_time = report.seconds(measured["compile_time_s"])
        said = measured["images"]
        yield Row("full Muon", report.seconds(plain), ABSENT, said, compile_time)
        return
    yield Row(
        f"{measured['num_steps']} steps at {measured['learning_rate']:g}",
        report.seconds(measured["train_time_s"]),
        f"{report.percent(measured['final_validation_accuracy'])} of validation",
        f"planned {report.seconds(measured['planned_time_s'])}",
    )


def of_tokens(measured: Line) -> Iterator[Row]:
    mfu = "" if measured["mfu"] is None else f", MFU {report.percent(measured['mfu'])}"
    share = report.percent(measured["optimizer_share"])
    yield Row(
        f"batch {measured['batch_size']} × {measured['length']}",
        report.seconds(measured["step_time_s"]["median"]),
        f"{spread(measured['step_time_of_sgd'])} of SGD's, share {share}",
        f"{measured['tokens_per_second']:,.0f} tokens/s{mfu}",
        report.seconds(measured["compile_time_s"]),
    )


def of_compression(measured: Line) -> Iterator[Row]:
    base = "of_lax_top_k" if "of_lax_top_k" in measured else "of_uncompressed"
    words = {"of_lax_top_k": "of lax.top_k's"}.get(base, "of uncompressed")
    compile_time = report.seconds(measured.get("compile_time_s"))
    for name, time_s in measured["time_s"].items():
        share = measured.get("share_of_step", {}).get(name)
        yield Row(
            name,
            report.seconds(time_s["median"]),
            f"{spread(measured[base][name])} {words}",
            ABSENT if share is None else f"share {report.percent(share)}",
            compile_time,
        )


ROWS: dict[str, Callable[[Line], Iterator[Row]]] = {
    "updates": of_updates,
    "cutoffs": of_cutoffs,
    "images": of_images,
    "tokens": of_tokens,
    "compression": of_compression,
}


def image_tables(lines: Sequence[Line]) -> list[str]:
    """Times to accuracies by both protocols, as `drop_muon.report` has them."""
    runs = plots.best_runs(lines)
    tables = drop_report.tables(runs) if runs else ""
    return [tables] if tables else []
