"""EF21-Muon in several processes: bytes counted, bytes seen, loss against both.

Claim: what the compiled program is counted to send is what the interface sees, within
ten percent; and it is a small part of what an all-reduce of the gradients sends.

Command: python -m benchmarks.ef21_workers --processes 4
Device: a CPU; one process for each worker, over loopback. On a cluster of any devices,
start the same module without --processes by what starts processes there.
Expected: the README beside this file.

A small GPT, by characters, on Shakespeare: every worker on its own piece of the text.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from matplotlib import ticker
from matplotlib.figure import Figure

from benchmarks.common import record, report, timing, workers
from benchmarks.common.options import (
    folder,
    momentum,
    new_parser,
    positive,
    rate,
    refusing,
    seed,
)
from benchmarks.ef21_muon import loop
from benchmarks.ef21_muon.steps import METHODS, Plan
from benchmarks.language.checkpoints import Store, steps_in
from benchmarks.models import nanogpt

NAME = "ef21_workers"


def work(options: argparse.Namespace) -> None:
    """What each worker does; the first one writes the records."""
    with refusing(NAME):
        join()
    total = options.steps * len(options.methods)
    with workers.Progress(total, label=NAME) as progress:
        for number, method in enumerate(options.methods):
            try:
                entry = one_run(options, method, progress, number * options.steps)
            except OSError as error:  # a full disk, say
                workers.leave(f"{NAME}: {error}")
            if jax.process_index() == 0:
                record.append(options.output / f"{NAME}.jsonl", entry)


def join() -> None:
    """Joins the other workers; says how to have some where there are none."""
    try:
        workers.join()
    except ValueError as error:
        raise ValueError(f"{error}, or start it here with --processes") from None


def one_run(
    options: argparse.Namespace, method: str, progress: workers.Progress, done: int
) -> dict[str, Any]:
    """Trains by one method; returns its record."""
    plan = plan_of(options, method, jax.device_count())
    task = loop.build(plan)
    store = store_of(options, plan) if options.checkpoints else None
    history, times, resumed = loop.run(task, store, options.resume, progress, done)
    if store is not None:
        store.close()
    return {
        "benchmark": NAME,
        **plan._asdict(),
        "num_processes": jax.process_count(),
        "resumed_from_step": resumed,
        **measurements(task, history, times),
        "history": [point._asdict() for point in history],
        **record.provenance(seed=plan.seed),
        "command": os.environ.get(workers.COMMAND) or record.command(),
    }


def store_of(options: argparse.Namespace, plan: Plan) -> Store:
    """The checkpoints of a method's run."""
    return Store(options.checkpoints / plan.method, plan._asdict())


def plan_of(options: argparse.Namespace, method: str, num_workers: int = 1) -> Plan:
    """A method's run, as the command line says."""
    return Plan(
        method=method,
        preset=options.preset,
        dataset=options.dataset,
        num_steps=options.steps,
        every=options.every,
        batch_size=options.batch_size,
        length=options.length,
        learning_rate=options.learning_rate,
        momentum=options.momentum,
        seed=options.seed,
        num_workers=num_workers,
    )


def measurements(task: Any, history: Any, times: list[float]) -> dict[str, Any]:
    """What the record says of a run, beside its history."""
    n, end = task.plan.num_workers, history[-1]
    num_parameters = sum(x.size for x in jax.tree.leaves(task.params))
    seen = end.loopback_bytes / end.step if end.loopback_bytes else None
    step_time_s = timing.quartiles(times)._asdict() if times else None
    return {
        "num_parameters": num_parameters,
        "sent_bytes_per_step": task.sent.total,  # by each worker
        "sent_bytes_per_step_by_kind": task.sent.by_kind,
        "unattributed": list(task.sent.unattributed),
        "all_reduce_bytes_per_step": 2 * (n - 1) / n * 4 * num_parameters,  # float32
        "counted_bytes_per_step_of_all": n * task.sent.total,
        "loopback_bytes_per_step_of_all": seen,
        "step_time_s": step_time_s,  # over stretches between looks
        "compile_time_s": task.program.compile_time_s,
        "final_train_loss": end.train_loss,
        "final_validation_loss": end.validation_loss,
        "final_validation_loss_of_w": end.validation_loss_of_w,
    }


# ---------------------------------------------------------------------------- showing


def table(entries: list[dict[str, Any]]) -> str:
    """One row for each method."""
    header = ["method", "sent per step and worker", "of an all-reduce", "to the server"]
    header += ["counted, all", "seen on loopback", "ratio", "step time"]
    header += ["validation loss at X", "at W"]
    rows = []
    for entry in entries:
        sent = entry["sent_bytes_per_step"]
        counted = entry["counted_bytes_per_step_of_all"]
        seen, time_s = entry["loopback_bytes_per_step_of_all"], entry["step_time_s"]
        up = entry["sent_bytes_per_step_by_kind"].get("all-to-all")
        rows.append(
            [
                entry["method"],
                kilobytes(sent),
                f"1 / {entry['all_reduce_bytes_per_step'] / sent:.2f}" if sent else "—",
                kilobytes(up),
                kilobytes(counted),
                kilobytes(seen),
                f"{seen / counted:.3f}" if seen and counted else "—",
                report.seconds(time_s["median"] if time_s else None),
                *(
                    "not finite" if loss is None else f"{loss:.3f}"
                    for loss in (
                        entry["final_validation_loss"],
                        entry["final_validation_loss_of_w"],
                    )
                ),
            ]
        )
    return report.format_table(header, rows)


def kilobytes(value: float | None) -> str:
    return "—" if value is None else f"{value / 1e3:,.1f} kB"


def plot(path: Path, entries: list[dict[str, Any]]) -> None:
    """Draws validation loss against bytes sent, and against tokens.

    Args:
        path: PNG to write.
        entries: Records, one for each curve.
    """
    first = entries[0]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(
        f"GPT ({first['num_parameters'] / 1e6:.2f} M parameters) on "
        f"{first['dataset']}, {first['num_workers']} workers in "
        f"{first['num_processes']} processes"
    )
    left, right = figure.subplots(1, 2, sharey=True)
    for number, entry in enumerate(entries):
        history = entry["history"]
        style = {"color": f"C{number}", "marker": ".", "label": entry["method"]}
        at_x = [point["validation_loss"] for point in history]
        left.plot([p["sent_bytes"] / 1e6 for p in history[1:]], at_x[1:], **style)
        right.plot([p["num_tokens"] for p in history], at_x, **style)
    if any(entry["sent_bytes_per_step"] for entry in entries):  # none by one worker
        left.set_xscale("log")
        left.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        left.xaxis.set_major_formatter("{x:g}")
        left.xaxis.set_minor_formatter(ticker.NullFormatter())
    left.set_xlabel("sent by each worker, both directions / MB")
    left.set_ylabel("validation loss at X / nats per character")
    right.set_xlabel("tokens, of all workers")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def show(options: argparse.Namespace) -> None:
    """Prints and draws the newest run of each method."""
    entries = record.read(options.output / f"{NAME}.jsonl")
    newest = {entry["method"]: entry for entry in entries}
    chosen = [newest[method] for method in options.methods]
    print(f"\n{table(chosen)}\n")
    plot(options.output / f"{NAME}.png", chosen)


# ------------------------------------------------------------------- the command line


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = new_parser(
        f"benchmarks.{NAME}", "Trains a small GPT by EF21-Muon in several processes."
    )
    add = parser.add_argument
    add("--processes", type=positive, help="start so many here; none: join a cluster")
    methods = ["dense", "natural", "top10_natural"]
    add("--methods", nargs="+", choices=list(METHODS), default=methods)
    add("--preset", choices=list(nanogpt.PRESETS), default="tiny")
    add(
        "--dataset",
        choices=("shakespeare", "text", "wiki", "c4"),
        default="shakespeare",
    )
    add("--steps", type=positive, default=200)
    add("--every", type=positive, default=20, help="steps between looks and saves")
    add("--batch-size", type=positive, default=8, help="windows of each worker")
    add("--length", type=positive, default=64, help="characters of context")
    add("--learning-rate", type=rate, default=5e-4)
    add("--momentum", type=momentum, default=0.9)
    add("--seed", type=seed, default=0)
    add(
        "--checkpoints",
        type=folder,
        help="folder that all workers share; none: no saves",
    )
    add("--resume", action="store_true", help="go on from the newest checkpoint")
    add("--deadline", type=rate, default=3600.0, help="seconds until workers are ended")
    options = parser.parse_args(arguments)
    if options.resume and not options.checkpoints:
        parser.error("--resume needs the folder of --checkpoints")
    for method in options.methods if options.checkpoints else ():
        used = options.checkpoints / method
        if not options.resume and steps_in(used):
            parser.error(
                f"--checkpoints {options.checkpoints} holds a run of {method}: go on "
                "from it with --resume, or choose another folder"
            )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    with refusing(NAME):  # here, and not by each of the workers
        loop.check(plan_of(options, options.methods[0]), options.processes)
        for method in options.methods if options.checkpoints else ():
            store = store_of(options, plan_of(options, method, options.processes or 1))
            if options.resume and options.processes and not workers.is_launched():
                store.newest()
    if options.processes is None or workers.is_launched():
        work(options)
        if jax.process_index() == 0 and not workers.is_launched():
            show(options)
        return 0
    logs = Path(tempfile.mkdtemp(prefix=f"{NAME}_"))
    try:
        workers.launch(
            f"benchmarks.{NAME}",
            sys.argv[1:] if arguments is None else arguments,
            options.processes,
            logs=logs,
            label=NAME,
            deadline_s=options.deadline,
        )
    except workers.WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "; --resume goes on from the last save" if options.checkpoints else ""
        print(f"\ninterrupted{kept}; logs: {logs}", file=sys.stderr)
        return workers.INTERRUPTED
    shutil.rmtree(logs)  # they stay where something went wrong
    show(options)
    return 0
