"""What compression costs: of single matrices, and beside a step of a small GPT.

In a step with n workers each compresses one message, reads its own, and takes part in
reading the others' and in the server's. `num_workers=1` does all of that on one device:
a step of it, less the same step with no compressor on either side, is the cost.
"""

import argparse
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dropmuon_optax as dm
from benchmarks.common import report, timing
from benchmarks.common.options import positive, seed
from benchmarks.ef21_muon.compressors import COMPRESSORS, pair, pair_name
from benchmarks.models import nanogpt
from dropmuon_optax.compressors import Compressor, TopK

SHAPES = ((768, 768), (768, 3072))
FRACTION = 0.1  # of the three ways of Top-K


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the part `cost`."""
    add = parser.add_argument
    pairs = ["natural/same", "natural/scaled_sign", "top20_natural/scaled_sign"]
    pairs += ["top10_natural/same", "scaled_sign/same"]
    both = ["matrix", "step"]
    add("--of", nargs="+", choices=both, default=both, help="what is timed")
    add("--pairs", nargs="+", type=pair_name, default=pairs, metavar="WORKER/SERVER")
    add("--preset", choices=list(nanogpt.PRESETS), default="small")
    add("--batch-size", type=positive, default=16, help="windows of a step")
    add("--length", type=positive, default=256, help="tokens of context")
    add("--rounds", type=positive, default=8)
    add("--seed", type=seed, default=0)


def measure_all(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One line for each matrix, one for the step."""
    for shape in SHAPES if "matrix" in options.of else ():
        yield {"of": "matrix", "shape": shape, **matrix(shape, options)}
    if "step" in options.of:
        yield {"of": "step", "preset": options.preset, **step(options)}


# ------------------------------------------------------------------------ one matrix


def matrix(shape: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Compress, and compress and decompress, in turns with one Newton–Schulz LMO."""
    x = jax.random.normal(jax.random.key(options.seed), shape)
    key = jax.random.key(1)
    ways: dict[str, Any] = {
        "lax_top_k": jax.jit(sorting),
        "lmo": jax.jit(dm.norms.scion_spectral().lmo),
    }
    names = dict.fromkeys(name.partition("/")[0] for name in options.pairs)
    compressors = {
        "top_k_block_256": TopK(FRACTION),
        "top_k_whole": TopK(FRACTION, block=None),
        **{name: COMPRESSORS[name] for name in names},
    }
    calls = {name: functools.partial(way, x) for name, way in ways.items()}
    for name, compressor in compressors.items():
        for both in (False, True):
            way = jax.jit(functools.partial(there, compressor, both))
            label = name if not both else f"{name}_and_back"
            calls[label] = functools.partial(way, x, key)
    times, ratios = timing.time_paired(calls, num_runs=options.rounds, num_warmup=2)
    return {
        "fraction": FRACTION,
        "time_s": {name: own._asdict() for name, own in times.items()},
        "of_lax_top_k": {name: own._asdict() for name, own in ratios.items()},
        "seed": options.seed,
    }


def sorting(x: jax.Array) -> Any:
    """Top-K of the whole matrix as `jax.lax` has it: values and positions."""
    flat = x.reshape(-1)
    _, index = jax.lax.top_k(jnp.abs(flat), round(FRACTION * x.size))
    return flat[index], index


def there(compressor: Compressor, both: bool, x: jax.Array, key: jax.Array) -> Any:
    """C of a matrix as a payload, or as what arrives."""
    payload = compressor.compress(x, key=key)
    m, n = x.shape
    return compressor.decompress(payload, (m, n)) if both else payload


# ------------------------------------------------------------------------------- step


def step(options: argparse.Namespace) -> dict[str, Any]:
    """Train steps of one worker, in turns; the first compresses nothing."""
    config = nanogpt.PRESETS[options.preset]
    apply, params = nanogpt.build(config, seed=options.seed)
    rng = np.random.default_rng(options.seed)
    shape = (options.batch_size, options.length + 1)
    windows = rng.integers(0, config.vocab_size, shape, np.int32)

    def loss_fn(params: Any, windows: Any) -> Any:
        logits = apply(params, windows[:, :-1])  # (B, T, V)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
        return losses.mean()

    calls = {}
    for name in ["identity/dense", *options.pairs]:
        tx = dm.ef21_muon(
            5e-4,
            nanogpt.layers(config),
            *pair(name),
            num_workers=1,
            key=jax.random.key(options.seed),
        )

        def train(params: Any, state: Any, windows: Any, tx: Any = tx) -> Any:
            loss, grads = jax.value_and_grad(loss_fn)(params, windows)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        state = jax.jit(tx.init)(params)
        call = timing.compile_program(
            jax.jit(train, donate_argnums=(0, 1)), params, state, windows
        ).call
        calls[name] = timing.repeat_step(
            call, params, timing.copied(state), batch=(windows,)
        )
    times, ratios = timing.time_paired(calls, num_runs=options.rounds, num_warmup=1)
    return {
        "num_parameters": sum(x.size for x in jax.tree.leaves(params)),
        "num_tokens_per_step": options.batch_size * options.length,
        "time_s": {name: own._asdict() for name, own in times.items()},
        "of_uncompressed": {name: own._asdict() for name, own in ratios.items()},
        "share_of_step": {
            name: 1 - 1 / own.median for name, own in ratios.items()
        },  # compression's
        "seed": options.seed,
    }


def summary(entry: dict[str, Any]) -> str:
    """A line to look at while it measures."""
    times = {name: own["median"] for name, own in entry["time_s"].items()}
    found = ", ".join(f"{name} {report.seconds(time)}" for name, time in times.items())
    return f"{entry.get('shape', entry.get('preset'))}: {found}"
