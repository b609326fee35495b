"""A GPT trained by Muon, Scion, Gluon, Drop-Muon, EF21-Muon, Optax's Muon or AdamW.

Claim: what the README beside this file says of the runs of `sweep`; this script makes
one run.

Command: python -m benchmarks.nanogpt [--optimizer muon] [--data shakespeare]
    [--preset tiny|small|124m]
Device: any; over all devices, and with --distributed over all hosts. `tiny` takes
1 min 47 s on two cores of a CPU, all in all.
Expected: `tiny` with Muon on Shakespeare's characters ends near 1.67 nats per character
on the last tenth of the text, which it does not train on.

Ctrl-C ends a run. With --checkpoint it goes on, by the same command, from the last
evaluation, to the bits that an uninterrupted run ends with.
"""

import argparse
import dataclasses
import sys
from contextlib import closing, nullcontext
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from benchmarks.common import record, text, workers
from benchmarks.common.options import refusing
from benchmarks.language import radii as lm_radii
from benchmarks.language import report, train
from benchmarks.language.checkpoints import Store
from benchmarks.language.methods import OPTIMIZERS
from benchmarks.language.options import parse
from benchmarks.language.plan import within as budgeted
from benchmarks.language.steps import Method, Model
from benchmarks.models import nanogpt, nanogpt_scan

INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT
PADDING = 64  # a vocabulary of tokens is padded to a multiple: 50257 to 50304


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    with refusing("nanogpt"):
        if options.distributed:
            workers.join()
        task = build_task(options)
        rate = options.lr or OPTIMIZERS[options.optimizer].learning_rate
        plan = plan_of(options, rate, options.seeds[0])
        check(task, plan)
        task.corpus.encode(options.prompt)  # which may have characters of its own
    origin = record.provenance(seed=options.seeds[0])
    method, plan = within(options, task, options.optimizer, plan)
    with open_store(options, plan) as store:
        with refusing("nanogpt"):
            run = train.Run(task, options.optimizer, method, plan, store)
        if run.num_restored:
            tell(f"going on from step {run.step}")
        try:
            advance(run, options.stop_at)
        except KeyboardInterrupt:
            tell("\ninterrupted; --checkpoint has all up to the last evaluation")
            return INTERRUPTED
        except OSError as error:  # a full disk, say
            tell(f"\nnanogpt: {error}")
            return 1
    return conclude(options, run, origin)


def conclude(
    options: argparse.Namespace, run: train.Run, origin: dict[str, Any]
) -> int:
    """Writes the line, then all else; the exit status."""
    entry = entry_of(options, run, origin)
    try:
        if jax.process_index() == 0:
            record.append(options.output / "nanogpt.jsonl", entry)
        sampled = sample(options, run)
        if jax.process_index() == 0:
            finish(options, entry, sampled)
    except OSError as error:
        tell(f"\nnanogpt: {error}")
        return 1
    return 0


def sample(options: argparse.Namespace, run: train.Run) -> str:
    """A text by the trained network."""
    return report.sample(
        run.task.model.apply,
        run.evaluated,
        run.task.corpus,
        prompt=options.prompt,
        num_tokens=options.sample,
        length=run.plan.length,
        seed=options.seeds[0],
    )


def build_task(options: argparse.Namespace) -> train.Task:
    """Loads the text, and builds the network for it."""
    if options.data is None:  # of several hosts all are to read one text
        alone = not getattr(options, "distributed", False)
        options.data = text.at_hand() if alone else "shakespeare"
    corpus = text.load(options.data, options.tokens)
    config = dataclasses.replace(
        nanogpt.PRESETS[options.preset], vocab_size=padded_vocabulary(corpus)
    )
    scanned, dtype = options.scan, jnp.dtype(options.dtype)
    source = nanogpt_scan if scanned else nanogpt
    build = cache(lambda seed: source.build(config, seed=seed, dtype=dtype))
    apply, _ = build(options.seeds[0])
    mesh = train.mesh_of(jax.devices())
    radii = (options.radius, options.sign_radius)
    model = Model(config, apply, scanned, mesh, *radii, options.adam_share)
    model = model._replace(growth=options.growth, keep=options.keep)
    model = model._replace(outside_share=options.outside_share)
    return train.Task(model, corpus, draw=lambda seed: build(seed)[1])


def build_method(task: train.Task, name: str, plan: train.Plan) -> Method:
    """The optimizer of that name; if it runs on measured radii, these first."""
    entry, model, radii = OPTIMIZERS[name], task.model, None
    if entry.on_estimates:
        model, radii = lm_radii.with_radii(task, plan)
    return entry.build(model)._replace(radii=radii)


def padded_vocabulary(corpus: text.Corpus) -> int:
    """The rows of the embedding: characters as they are, tokens padded."""
    if corpus.tokenizer == "char":
        return corpus.vocab_size
    return -(-corpus.vocab_size // PADDING) * PADDING


def plan_of(options: argparse.Namespace, learning_rate: float, seed: int) -> train.Plan:
    """How long to train, as the command line says."""
    return train.Plan(
        num_steps=options.steps,
        batch_size=options.batch,
        length=options.length,
        learning_rate=learning_rate,
        num_accumulation=options.accumulation,
        warm_down=options.warm_down,
        seed=seed,
        num_evaluations=options.evaluations,
        num_validation=options.validation_windows,
    )


def within(
    options: argparse.Namespace, task: train.Task, name: str, plan: train.Plan
) -> tuple[Method, train.Plan]:
    """The method, and the plan with as many steps as the budget allows, if any."""
    with refusing("nanogpt"):
        method = build_method(task, name, plan)
        if options.budget is not None:
            config = task.model.config
            plan = budgeted(config, name, plan, method.sets_at, options.budget)
    return method, plan


def check(task: train.Task, plan: train.Plan) -> None:
    """ValueError if devices can't share a batch, or the text is shorter than one."""
    plan.check(task.model.mesh.size)
    for part in (task.corpus.train, task.corpus.validation):
        text.num_starts(part, plan.length)


def open_store(options: argparse.Namespace, plan: train.Plan) -> Any:
    """The run's checkpoints, to be closed; None where there are to be none."""
    if options.checkpoint is None:
        return nullcontext()
    return closing(
        Store(options.checkpoint, settings(options, options.optimizer, plan))
    )


def settings(
    options: argparse.Namespace, optimizer: str, plan: train.Plan
) -> dict[str, Any]:
    """All that the numbers of a run depend on, beside code and device."""
    names = ("data", "tokens", "preset", "scan", "dtype")
    names += ("budget", "radius", "sign_radius", "adam_share")
    names += ("growth", "keep", "outside_share")
    chosen = {name: getattr(options, name) for name in names}
    return {"optimizer": optimizer, **chosen, **plan._asdict()}


def advance(run: train.Run, stop_at: int | None) -> None:
    """Trains under a progress bar, to the end or the first evaluation after a step."""
    plan = run.plan
    per_step = plan.batch_size * plan.length
    with tqdm(
        total=plan.num_steps * per_step,
        initial=run.step * per_step,
        unit=" tokens",
        unit_scale=True,
        desc=run.name,
        disable=jax.process_index() > 0,
    ) as bar:
        for point in run.advance(bar):
            seen = f"validation loss {report.loss(point.validation_loss)}"
            bar.set_postfix_str(f"{seen}{report.speed(run)}")
            if stop_at is not None and point.step >= stop_at:
                return


def entry_of(
    options: argparse.Namespace, run: train.Run, origin: dict[str, Any]
) -> dict[str, Any]:
    """The run's line."""
    return {
        "benchmark": "nanogpt",
        **settings(options, run.name, run.plan),
        **train.measurements(run),
        **origin,
    }


def finish(options: argparse.Namespace, entry: dict[str, Any], sampled: str) -> None:
    """Shows table, picture and text."""
    lines = options.output / "nanogpt.jsonl"
    name = f"nanogpt_{options.data}_{options.preset}_{options.optimizer}"
    picture = options.output / f"{name}_seed{options.seeds[0]}.png"
    title = f"{options.data}, {options.preset}, seed {options.seeds[0]}"
    report.plot(picture, [entry], title)
    print(f"\n{title}\n\n{report.table([entry])}\n")
    print(f"{'-' * 88}\n{sampled}\n{'-' * 88}\n")
    print(f"lines: {lines}\npicture: {picture}")


def tell(message: str) -> None:
    """Prints on one host only."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr)
