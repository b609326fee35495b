"""Part 3: full Muon against Drop-Muon on the paper's CNN, by both protocols.

Drop-Muon (arXiv:2510.02239) trains channels 64, 128, 256 on MNIST with batches of 8192
and uniform cutoffs, at a learning rate of 0.1. The methods, plans and runs are those of
`benchmarks.drop_muon.cnn`; the images lie on the device.

Same steps: each learning rate is a run; a method's best is the one of the highest final
validation accuracy. Same time, at that rate: the budgets are the time, by the table of
step times, that full Muon needs for all, a half and a quarter of those steps.
"""

import argparse
from functools import partial
from typing import Any, NamedTuple

import jax

from benchmarks.accelerator import pictures
from benchmarks.accelerator.figures import Figure, UnmeasuredError
from benchmarks.common import data, train
from benchmarks.drop_muon import cnn as drop_cnn
from benchmarks.drop_muon import methods as drop_methods
from benchmarks.drop_muon.methods import METHODS

NAMES = ["muon", "uniform", "freeze_out"]  # the last is a `Staged` sampling
DTYPE = "float32"


class Sizes(NamedTuple):
    """What to train, and how long."""

    datasets: tuple[str, ...]
    model: str
    batch_size: int
    rates: tuple[float, ...]
    num_steps: int  # of the same steps; 7 of batch 8192 are an epoch of MNIST
    shares: tuple[float, ...]  # of full Muon's time, by which budgets are set
    seeds: tuple[int, ...]  # all but the first on the first data set alone
    num_readings: int
    num_rounds: int  # to time a step


SIZES = {
    "full": Sizes(
        datasets=("mnist", "fashion_mnist", "cifar10"),
        model="paper",
        batch_size=8192,
        rates=(0.1, 0.03, 0.3),
        num_steps=140,
        shares=(1.0, 0.5, 0.25),
        seeds=(0, 1),
        num_readings=10,
        num_rounds=15,
    ),
    "tiny": Sizes(
        datasets=("digits", "cifar10"),
        model="small",
        batch_size=32,
        rates=(0.02, 0.01),
        num_steps=8,
        shares=(1.0, 0.5),
        seeds=(0,),
        num_readings=4,
        num_rounds=2,
    ),
}


def figures(scale: str) -> list[Figure]:
    """Programs, sweep, both protocols; the first data set first."""
    sizes, found = SIZES[scale], []
    for number, name in enumerate(sizes.datasets):
        runs = Runs(name, sizes)
        found.append(Figure(f"{name}: step times", DTYPE, runs.prepare))
        for seed in sizes.seeds if number == 0 else sizes.seeds[:1]:
            found += same_steps(runs, seed) + same_time(runs, seed)
    return found


def same_steps(runs: "Runs", seed: int) -> list[Figure]:
    """Of the first seed the sweep, of the others the best rate."""
    swept: tuple[float | None, ...] = runs.sizes.rates
    rates = swept if seed == runs.sizes.seeds[0] else (None,)
    return [
        Figure(
            f"{runs.name}: {method}, rate {rate or 'best'}, seed {seed}, same steps",
            DTYPE,
            partial(runs.train, method, rate, seed),
        )
        for rate in rates
        for method in NAMES
    ]


def same_time(runs: "Runs", seed: int) -> list[Figure]:
    """The methods take turns within each budget."""
    return [
        Figure(
            f"{runs.name}: {method}, rate best, seed {seed}, same time × {share:g}",
            DTYPE,
            partial(runs.train, method, None, seed, share),
        )
        for share in runs.sizes.shares
        for method in NAMES
    ]


class Runs:
    """What the figures of a data set share: images, programs, the best rates so far."""

    def __init__(self, name: str, sizes: Sizes):
        """Loads and compiles nothing yet."""
        self.name, self.sizes = name, sizes
        self.bench: drop_cnn.Bench | None = None
        self.best: dict[str, tuple[float, float]] = {}  # method -> accuracy, rate

    def prepare(self) -> dict[str, Any]:
        """Loads the images; compiles and times all programs, in turns."""
        sizes = self.sizes
        dataset, said = pictures.load(self.name)
        apply, params = drop_cnn.network(dataset, sizes.model, 0)
        programs = drop_methods.compile_all(
            [METHODS[name] for name in NAMES],
            apply,
            params,
            dataset,
            sizes.batch_size,
            sizes.num_rounds,
        )
        common = {
            "dataset": self.name,
            "images": said,
            "model": sizes.model,
            "batch_size": sizes.batch_size,
            "num_train_images": len(dataset.train_labels),
            "step_times_of_cutoffs_s": [*programs["muon", True].step_times_s.values()],
            "step_times_of_plain_s": {
                "muon": programs["muon", False].step_times_s[None]
            },
            "optimal_probabilities": [],
        }
        # Gathering a batch is compiled too; a run's clock is not to hold it.
        feed = data.batches(dataset, sizes.batch_size, 1, seed=0)
        jax.block_until_ready(next(feed))
        accuracy = train.build_accuracy(apply)
        self.bench = drop_cnn.Bench(dataset, apply, accuracy, programs, (), common)
        every = [p for found in programs.values() for p in found.by_active.values()]
        return {
            **common,
            "compile_time_s": sum(program.compile_time_s for program in every),
            "num_programs": len(every),
            "peak_memory_bytes": max(program.peak_memory_bytes for program in every),
        }

    def train(
        self, name: str, rate: float | None, seed: int, share: float | None = None
    ) -> dict[str, Any]:
        """One run.

        Args:
            name: Of the method.
            rate: At the start; None is the best of the sweep so far.
            seed: Of weights, batches and layers.
            share: Of full Muon's time, to be used up; None: the same steps for all.
        """
        if self.bench is None:
            raise UnmeasuredError(f"there are no step times of {self.name}")
        if rate is None and name not in self.best:
            raise UnmeasuredError(f"no run of {name} has ended that tells its rate")
        method = METHODS[name]._replace(learning_rate=rate or self.best[name][1])
        budget_s = None
        if share is None:
            plan = drop_methods.plan_steps(method, self.sizes.num_steps, (), seed)
        else:
            plain_s = self.bench.common["step_times_of_plain_s"]["muon"]
            budget_s = float(f"{share * self.sizes.num_steps * plain_s:.3g}")
            key = method.optimizer, method.sampling is not None
            times = self.bench.programs[key].step_times_s
            plan = drop_methods.plan_budget(method, budget_s, times, (), seed)
        found = drop_cnn.run(
            self.bench, method, plan, self.options, seed, self.readings(share)
        )
        if rate is not None:
            seen = found["final_validation_accuracy"], method.learning_rate
            self.best[name] = max(self.best.get(name, (0.0, 0.0)), seen)
        return {
            **self.bench.common,
            "method": name,
            "learning_rate": method.learning_rate,
            "seed": seed,
            "protocol": "same steps" if share is None else "same time",
            "budget_s": budget_s,
            **found,
        }

    def readings(self, share: float | None) -> int:
        """On the way: a run within a budget of time has its end alone."""
        return self.sizes.num_readings if share is None else 1

    @property
    def options(self) -> argparse.Namespace:
        """What `drop_muon.cnn` reads from its command line."""
        return argparse.Namespace(
            model=self.sizes.model, batch_size=self.sizes.batch_size
        )
