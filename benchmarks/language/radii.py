"""Radii of Gluon's Theorem 1 for a language model, measured along a short first run.

Gluon on its usual radii takes some steps; along one step in `PILOT_EVERY` two gradients
on one batch are compared; and L⁰ and L¹ of each matrix are fitted to what is seen. The
two lie a tenth of the step apart, so that L̂ can be no echo of its length.
"""

from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

import dropmuon_optax as dm
from benchmarks.common import timing
from benchmarks.language.methods import OPTIMIZERS
from benchmarks.language.steps import Model, accumulate, build_loss, replicate
from benchmarks.language.train import Plan, Task, batch_of

PILOT = "gluon"  # of OPTIMIZERS
PILOT_STEPS, PILOT_EVERY, PILOT_SHARE = 100, 4, 0.1


def with_radii(task: Task, plan: Plan) -> tuple[Model, dict[str, Any]]:
    """The task's model with measured radii, and what a record says of them.

    Args:
        task: The network and its text.
        plan: Whose batches are used; its learning rate and length are not.

    Raises:
        ValueError: If L̂ of a matrix is an echo of the step and no curvature.
    """
    entry, model = OPTIMIZERS[PILOT], task.model
    method = entry.build(model)
    loss_and_gradient = jax.value_and_grad(build_loss(model))

    def gradient(params: Any, tokens: Any) -> Any:
        return accumulate(loss_and_gradient, params, tokens)[1]

    @jax.jit
    def compare(before: Any, after: Any, tokens: Any) -> dm.SmoothnessPoints:
        return dm.measure_smoothness(
            gradient, model.layers, before, after, tokens, shares=(PILOT_SHARE,)
        )

    params = replicate(task.draw(plan.seed), model.mesh)
    state, rows = method.init(params, plan.seed), []
    rate = jnp.float32(entry.learning_rate)
    for number in tqdm(range(PILOT_STEPS), desc="measuring radii", unit=" steps"):
        measured = number % PILOT_EVERY == PILOT_EVERY - 1
        tokens = batch_of(task, plan, number)
        before = timing.copied(params) if measured else None  # steps overwrite them
        params, state, _ = method.step(params, state, rate, tokens)
        if measured:
            rows.append(compare(before, params, tokens))
    points = jax.tree.map(lambda *row: jnp.concatenate(row), *rows)
    fits = dm.fit_smoothness(points, model.layers, params)
    layers = dm.estimated_layers(model.layers, fits)
    note = {
        "pilot_steps": PILOT_STEPS,
        "pilot_learning_rate": entry.learning_rate,
        "pilot_share": PILOT_SHARE,
        "fits": [
            {
                "path": fit.name,
                "l0": fit.l0,
                "l1": fit.l1,
                "honesty": fit.honesty,
                "radius": fit.radius,
                "pilot_radius": fit.step / PILOT_SHARE,
            }
            for fit in fits
        ],
    }
    return model._replace(estimated=layers), note
