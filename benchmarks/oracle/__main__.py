"""What an update of Muon costs, without a model around it.

Claim: four steps from the Schatten norm are at least 2.5 times as fast as
`optax.contrib.muon` on both transformer trees, at no larger orthogonality error, and
the default is more than twice as fast at the same one; it compiles in at most a third
of the time for 48 blocks, and takes less than a third of the temporary memory. Where a
bar is missed, by either, that is printed.

Command: python -m benchmarks.oracle [--trees "width 64 × 48"] [--rounds 11]
    [--optimizers ours]
Device: a CPU with two cores; any JAX device does.
Expected: the README beside this file.

All optimizers see the same Gaussian gradients and take turns; a ratio is taken inside
each round. An update has momentum, oracle, rate and the addition to the weights, whose
memory and the state's it may use again (donated).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.common import record, report, timing
from benchmarks.common.options import new_parser, positive, seed
from benchmarks.oracle import trees
from benchmarks.oracle.trees import BASE, FAST, OPTIMIZERS, OURS, Tree

PEAK_SIDE = 1024  # of the matrices whose product is timed for the device's peak
BARS = {"speed": 2.5, "compile": 3.0, "memory": 1.0, "error": 1.001}
TRANSFORMERS = ("width 256 × 6", "width 64 × 48")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = new_parser(
        "benchmarks.oracle", "Times updates of Muon, ours and Optax's, in paired runs."
    )
    names = [name for name in trees.SHAPES if not name.startswith("tiny")]
    add = parser.add_argument
    add("--trees", nargs="+", choices=list(trees.SHAPES), default=names, metavar="TREE")
    add("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    add("--rounds", type=positive, help="timed rounds; the default is each tree's own")
    add("--seed", type=seed, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    path = options.output / "oracle.jsonl"
    jax.block_until_ready(jax.jit(jnp.sin)(1.0))  # what the first compilation sets up
    for name in options.trees:
        tree = trees.build(name, options.seed)
        chosen = {
            n: OPTIMIZERS[n] for n in OPTIMIZERS if n in (BASE, *options.optimizers)
        }
        rounds = options.rounds or tree.num_rounds
        entry = {
            "benchmark": "oracle",
            "tree": name,
            "num_parameters": sum(x.size for x in jax.tree.leaves(tree.params)),
            "optimizers": measure(tree, rounds, name, chosen),
            "product_flops_per_s": product_rate(),
            **record.provenance(seed=options.seed),
        }
        record.append(path, entry)
        print(f"\n{table([entry])}", flush=True)
        for own in (OURS, FAST):
            for bar in misses(entry, own):
                print(f"missed by {own}: {bar}, bar {BARS[bar]}", flush=True)
    plot(options.output / "oracle.png", latest(record.read(path)))
    return 0


def measure(
    tree: Tree, num_rounds: int, name: str, optimizers: Any = OPTIMIZERS
) -> dict[str, Any]:
    """All optimizers on one tree, in turns."""
    # Equal scales, so that no optimizer's ε matters.
    grads = jax.tree.map(lambda x: x * 0.1 + 0.01, tree.params)
    programs, calls, errors, sizes = {}, {}, {}, {}
    for optimizer, make in tqdm(optimizers.items(), desc=name, leave=False):
        tx = make(tree)

        def step(params: Any, state: Any, grads: Any, tx: Any = tx) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, jnp.zeros(())

        state = tx.init(tree.params)
        program = timing.compile_program(
            jax.jit(step, donate_argnums=(0, 1)), tree.params, state, grads
        )
        after = program.call(*timing.copied((tree.params, state)), grads)[0]
        sizes[optimizer] = sum(x.nbytes for x in jax.tree.leaves(state))
        errors[optimizer] = orthogonality_error(tree, after)
        programs[optimizer] = program
        calls[optimizer] = timing.repeat_step(
            program.call, tree.params, state, batch=(grads,)
        )
    # Each has run once already; a single round of the largest is long enough.
    warmup = int(num_rounds > 1)
    times, ratios = timing.time_paired(calls, num_runs=num_rounds, num_warmup=warmup)
    return {
        optimizer: {
            "update_time_s": times[optimizer]._asdict(),
            "update_time_ratio": ratios[optimizer]._asdict(),
            "compile_time_s": program.compile_time_s,
            **program_size(program.call),
            "state_bytes": sizes[optimizer],
            "product_flops": trees.num_flops(tree, optimizer),
            "orthogonality_error": errors[optimizer],
        }
        for optimizer, program in programs.items()
    }


def product_rate() -> float:
    """FLOP/s of the fastest product of two large float32 matrices: the peak."""
    x = jnp.ones((PEAK_SIDE, PEAK_SIDE))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    seconds = min(timing.timed(lambda: product(x, x))[1] for _ in range(50))
    return 2 * PEAK_SIDE**3 / seconds


def program_size(compiled: Any) -> dict[str, int]:
    """Temporary memory and the number of instructions of a compiled program."""
    return {
        "temporary_memory_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "num_instructions": compiled.as_text().count(" = "),
    }


def orthogonality_error(tree: Tree, after: Any) -> float:
    """Root mean square of |σ² − 1|, over the singular values of one matrix a shape.

    σ² are the eigenvalues of the step's Gram matrix, in units of Muon's scale.
    """
    squares = {}
    before, moved = jax.tree.leaves(tree.params), jax.tree.leaves(after)
    for i, shape in trees.matrices(tree):
        if before[i].shape in squares:
            continue
        step = np.asarray(moved[i] - before[i], np.float64) / trees.LEARNING_RATE
        step = step.reshape(shape)[0]
        step /= max(1, step.shape[1] / step.shape[0]) ** 0.5
        step = step if step.shape[0] <= step.shape[1] else step.T
        squares[before[i].shape] = (np.linalg.eigvalsh(step @ step.T) - 1) ** 2
    return float(np.sqrt(np.mean(np.concatenate(list(squares.values())))))


def latest(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each tree and version of JAX."""
    return list({(e["tree"], e["jax_version"]): e for e in entries}.values())


def speed(entry: dict[str, Any], name: str) -> timing.Quartiles:
    """How many times faster than Optax's Muon, from the ratios inside rounds."""
    ratio = timing.Quartiles(**entry["optimizers"][name]["update_time_ratio"])
    first, median, third = (1 / x for x in (ratio.third, ratio.median, ratio.first))
    return timing.Quartiles(median, first, third, ratio.num_runs)


def table(entries: list[dict[str, Any]]) -> str:
    """One row for each tree and optimizer; AdamW orthogonalizes nothing."""
    header = ["tree", "optimizer", "jax", "update", "times faster", "compile"]
    header += ["temporaries", "state", "instructions", "of peak", "error"]
    rows = []
    for entry in entries:
        for name, found in entry["optimizers"].items():
            faster = speed(entry, name)
            flops, peak = found["product_flops"], entry["product_flops_per_s"]
            seconds = found["update_time_s"]["median"]
            rows.append(
                [
                    entry["tree"],
                    name,
                    entry["jax_version"],
                    report.seconds(seconds),
                    f"{faster.median:.2f} ({faster.first:.2f} … {faster.third:.2f})",
                    report.seconds(found["compile_time_s"]),
                    f"{found['temporary_memory_bytes'] / 1e6:.1f} MB",
                    f"{found['state_bytes'] / 1e6:.1f} MB",
                    f"{found['num_instructions']}",
                    f"{flops / seconds / peak:.0%}" if flops else "—",
                    f"{found['orthogonality_error']:.3f}" if flops else "—",
                ]
            )
    return report.format_table(header, rows)


def tables(entries: list[dict[str, Any]]) -> list[str]:
    """What the page shows."""
    return [table(latest(entries))]


def misses(entry: dict[str, Any], name: str) -> list[str]:
    """Where ours of this name misses a bar; nowhere, if it wasn't measured."""
    if name not in entry["optimizers"]:
        return []
    base, own = entry["optimizers"][BASE], entry["optimizers"][name]
    found = []
    if entry["tree"] in TRANSFORMERS and speed(entry, name).median < BARS["speed"]:
        found.append("speed")
    compiles = base["compile_time_s"] / own["compile_time_s"]
    if entry["tree"] == TRANSFORMERS[1] and compiles < BARS["compile"]:
        found.append("compile")
    for bar, key in (
        ("memory", "temporary_memory_bytes"),
        ("error", "orthogonality_error"),
    ):
        if own[key] > BARS[bar] * base[key]:
            found.append(bar)
    return found


def plot(path: Path, entries: list[dict[str, Any]]) -> None:
    """Draws how many times faster than Optax's Muon each is, tree by tree."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    names = [name for name in OPTIMIZERS if name not in (BASE, "optax.adamw")]
    width = 0.84 / len(names)
    for number, name in enumerate(names):
        have = [i for i, entry in enumerate(entries) if name in entry["optimizers"]]
        faster = [speed(entries[i], name) for i in have]
        at = [i + width * number for i in have]
        middle = [x.median for x in faster]
        spread = [
            [x.median - x.first for x in faster],
            [x.third - x.median for x in faster],
        ]
        axes.bar(at, middle, width, yerr=spread, color=f"C{number}", label=name)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.axhline(BARS["speed"], color="black", linestyle=":", linewidth=0.8)
    labels = [f"{entry['tree']}\njax {entry['jax_version']}" for entry in entries]
    axes.set_xticks([i + 0.36 for i in range(len(entries))], labels, fontsize=7)
    axes.set_ylabel("times faster than optax.contrib.muon")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3, axis="y")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
