"""The train steps of `drop_muon.recipe`, compiled, and a run of them as planned."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import dropmuon_optax as dm
from benchmarks.common import data, timing, train
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.drop_muon.recipes import NUM_LAYERS, Kind, Method, Part, Plan, rates
from benchmarks.models import cnn

KEPT_BATCH = 64  # samples at once, where outputs are kept


class Network(NamedTuple):
    """A network, its first weights by seed, and its train steps by kind."""

    preset: str
    image_shape: tuple[int, int, int]
    apply: Any
    programs: dict[Kind, timing.Program]


def new_network(preset: str, image_shape: tuple[int, int, int]) -> Network:
    """Nothing is compiled yet."""
    apply, _ = cnn.build(image_shape, preset, seed=0)
    return Network(preset, image_shape, apply, {})


def first_params(network: Network, seed: int) -> dict[str, Any]:
    """The weights of a seed."""
    _, params = cnn.build(network.image_shape, network.preset, seed=seed)
    return nnx.to_pure_dict(params)


def optimizer(kind: Kind, rate: Any) -> optax.GradientTransformationExtraArgs:
    """Muon at a rate; inside `dm.drop_layers`, if layers are to be dropped."""
    tx = OPTIMIZERS["muon"].build(lambda count: rate)
    if kind.active is not None:  # the sets are given, so that any sampling serves
        sampling, key = dm.samplings.Progressive(), jax.random.key(0)
        return dm.drop_layers(tx, cnn.muon_layers(), sampling, key=key)
    return optax.with_extra_args_support(tx)


def init_state(kind: Kind, params: Any) -> Any:
    """The optimizer's first state."""
    return optimizer(kind, 0.0).init(params)


def program(network: Network, kind: Kind) -> timing.Program:
    """The compiled train step; compiled when asked for the first time.

    Returns:
        (params, opt_state, rates (b,), x, y) -> (params, opt_state, loss), the first
        two donated. Unless `kind.scaled`, the head's rate is that of all layers.
    """
    if kind not in network.programs:
        params, (x, y) = first_params(network, 0), batch(network, kind, kind.batch_size)
        rates = np.ones(NUM_LAYERS, np.float32)
        state = params, init_state(kind, params)
        step = jax.jit(partial(train_step, network, kind), donate_argnums=(0, 1))
        network.programs[kind] = timing.compile_program(step, *state, rates, x, y)
    return network.programs[kind]


def train_step(
    network: Network,
    kind: Kind,
    params: Any,
    opt_state: Any,
    rates: Any,
    x: Any,
    y: Any,
) -> tuple[Any, Any, jax.Array]:
    """From images, or from the kept outputs of the layers before `kind.start`."""
    apply = partial(network.apply, start=kind.start)
    gradient = dm.value_and_grad(partial(train.cross_entropy, apply), cnn.muon_layers())
    loss, grads = gradient(params, x, y, active=kind.active)
    sets = {} if kind.active is None else {"active": kind.active}
    tx = optimizer(kind, rates[-1])
    updates: Any
    updates, opt_state = tx.update(grads, opt_state, params, **sets)
    if kind.scaled:
        shares = dict(zip(cnn.LAYER_ORDER, rates / rates[-1], strict=True))
        updates = {
            name: jax.tree.map(lambda u, share=share: share * u, updates[name])
            for name, share in shares.items()
        }
    return optax.apply_updates(params, updates), opt_state, loss


def batch(network: Network, kind: Kind, num_samples: int) -> tuple[Any, Any]:
    """Noise, or its outputs where the step starts; labels."""
    shape = (num_samples, *network.image_shape)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    if kind.start:
        x = np.asarray(network.apply(first_params(network, 0), x, stop=kind.start))
    return x, np.arange(num_samples, dtype=np.int32) % 10


def prefix(network: Network, start: int, stop: int) -> Any:
    """(params, x) -> outputs of the layers `start`, …, `stop` − 1."""
    return partial(network.apply, start=start, stop=stop)


def compile_all(network: Network, plan: Plan) -> list[timing.Program]:
    """The programs of a run."""
    kinds = dict.fromkeys(kind for part in plan.parts for kind in part.kinds)
    return [program(network, kind) for kind in kinds]


def sample_order(num_samples: int, seed: int) -> Iterator[int]:
    """Each epoch is shuffled by (seed, epoch) alone, as in `data.batches`."""
    for epoch in itertools.count():
        yield from np.random.default_rng([seed, epoch]).permutation(num_samples)


def training(
    network: Network,
    dataset: data.Dataset,
    params: Any,
    method: Method,
    plan: Plan,
    seed: int,
) -> Iterator[tuple[Any, jax.Array]]:
    """Trains as planned; yields the parameters and the loss after each step.

    The parameters are donated to the next step: they are to be read before it.
    """
    state = [params, init_state(plan.parts[0].kinds[0], params)]
    state = timing.copied(state)
    order = sample_order(len(dataset.train_labels), seed)
    pool, kept = np.zeros(0, np.int64), np.zeros(0)
    for part in plan.parts:
        images, labels, ids = dataset.train_images, dataset.train_labels, order
        if part.num_kept:
            count = part.num_kept - part.num_known
            new = np.fromiter(itertools.islice(order, count), np.int64)
            inputs = [kept[: part.num_known], images[new]]
            kept = keep(network, plan, part, state[0], inputs)
            pool = np.concatenate([pool[: part.num_known], new])
            images, labels = kept, labels[pool]
            ids = sample_order(part.num_kept, seed)
        for step, kind in enumerate(part.kinds, part.first_step):
            chosen = list(itertools.islice(ids, kind.batch_size))
            own = np.array(rates(method, plan.progress[step]), np.float32)
            own *= np.float32(method.learning_rate)
            call = program(network, kind).call
            *state, loss = call(*state, own, images[chosen], labels[chosen])
            yield state[0], loss


def keep(
    network: Network, plan: Plan, part: Part, params: Any, inputs: list[np.ndarray]
) -> np.ndarray:
    """The settled layers' outputs of the samples that a part reads.

    Args:
        network: Its layers up to `part.stop` have settled.
        plan: Which says so.
        part: Of the plan.
        params: The weights.
        inputs: What each of `part.sources()` begins with: outputs that were kept
            before, and images; there may be none of either.
    """
    inputs = [x for x in inputs if len(x)]
    parts = [
        dm.cache_features(
            prefix(network, start, stop),
            params,
            x,
            layers=cnn.muon_layers(),
            sampling=plan.sampling,
            step=part.first_step,
            batch_size=KEPT_BATCH,
        )
        for ((start, stop), _), x in zip(part.sources(), inputs, strict=True)
    ]
    return np.concatenate(parts)
