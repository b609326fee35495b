"""Drop-Muon beside the other optimizers: fewer layers move, and only they are paid for.

Both methods are those of `benchmarks.drop_muon.recipe`: Muon inside `dm.drop_layers`,
in as many steps as everyone else.
"""

from itertools import combinations
from statistics import fmean
from time import perf_counter
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from benchmarks.common import data, train
from benchmarks.drop_muon import recipe_steps, recipes
from benchmarks.models import cnn

# Name in the table -> method. Their learning rate is Muon's.
METHODS = {
    "drop_muon": recipes.METHODS["uniform"],
    "freeze_and_keep": recipes.METHODS["freeze_and_keep"],
}
# Every step costs 1, and keeping outputs nothing: the budget is a number of steps.
STEPS = recipes.Costs(
    {
        kind._replace(batch_size=0): 1.0
        for method in METHODS.values()
        for kind in recipes.kinds(method)
    },
    dict.fromkeys(combinations(range(len(cnn.LAYER_ORDER)), 2), 0.0),
    0,
)


class DropRun(NamedTuple):
    """A run, and what of the network moved in it."""

    run: train.Run
    share_of_layers_moved: float


def planned(
    method: recipes.Method, dataset: data.Dataset, schedule: train.Schedule
) -> recipes.Plan:
    """The plan of a run of as many steps as the schedule has."""
    costs = STEPS._replace(
        step={
            kind._replace(batch_size=schedule.batch_size): cost
            for kind, cost in STEPS.step.items()
        }
    )
    num_steps = train.num_steps(dataset, schedule)
    return recipes.plan(
        method, num_steps, costs, len(dataset.train_labels), schedule.seed
    )


def train_drop(
    name: str,
    learning_rate: float,
    preset: str,
    params: Any,
    accuracy: Any,
    dataset: data.Dataset,
    schedule: train.Schedule,
) -> DropRun:
    """Trains by one of `METHODS`; evaluates outside the clock, as `train.train` does.

    Keeping outputs is on the clock; compiling train steps is not.
    """
    method = METHODS[name]._replace(
        learning_rate=learning_rate, batch_size=schedule.batch_size
    )
    plan = planned(method, dataset, schedule)
    network = recipe_steps.new_network(preset, dataset.train_images.shape[1:])
    programs = recipe_steps.compile_all(network, plan)
    steps = recipe_steps.training(network, dataset, params, method, plan, schedule.seed)
    history, elapsed_s, step_times_s = (
        [train.evaluate(accuracy, params, dataset)],
        0.0,
        [],
    )
    kinds = [kind for part in plan.parts for kind in part.kinds]
    with tqdm(
        total=len(kinds) * schedule.batch_size,
        unit=" images",
        unit_scale=True,
        desc=name,
    ) as bar:
        for start, stop in train.stretches(len(kinds), schedule.num_evaluations):
            clock, losses = perf_counter(), []
            for _ in range(start, stop):
                params, loss = next(steps)
                losses.append(loss)
                bar.update(schedule.batch_size)
            jax.block_until_ready((params, losses))
            stretch_s = perf_counter() - clock
            elapsed_s += stretch_s
            step_times_s.append(stretch_s / (stop - start))
            seen = train.evaluate(accuracy, params, dataset)._replace(
                step=stop,
                epoch=stop * schedule.batch_size / len(dataset.train_labels),
                train_time_s=elapsed_s,
                loss=train.mean_loss(losses),
            )
            history.append(seen)
            bar.set_postfix(loss=seen.loss, accuracy=seen.validation_accuracy)
    run = train.summarize(history, step_times_s, dict(enumerate(programs)))
    return DropRun(run, fmean(fmean(kind.active or (True,)) for kind in kinds))
