"""What runs of language models show at their end: table, pictures, a text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import report
from benchmarks.common.text import Corpus
from benchmarks.language.train import Run

PANELS = {
    "num_tokens": "tokens",
    "train_time_s": "training time / s (compilation and evaluation not counted)",
    "num_flops": "FLOPs (by formula, optimizer's included)",
}
TEMPERATURE = 0.8  # of the sampled text: logits are divided by it


def loss(value: float | None) -> str:
    """A loss in nats, or what it was in place of one.

    Examples:
        >>> loss(1.23456), loss(None)
        ('1.2346', 'not finite')
    """
    return "not finite" if value is None else f"{value:.4f}"


def amount(value: float | None) -> str:
    """A number with its prefix, to three digits.

    Examples:
        >>> amount(1536.0), amount(2.5e12), amount(None)
        ('1.54 k', '2.5 T', '—')
    """
    if value is None:
        return "—"
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def speed(run: Run) -> str:
    """FLOP/s so far, or MFU where the device's peak is known."""
    if not run.flop_rate:
        return ""
    if run.utilization is None:
        return f", {amount(run.flop_rate)}FLOP/s"
    return f", MFU {report.percent(run.utilization)}"


def table(entries: Sequence[dict[str, Any]]) -> str:
    """One row for each run."""
    header = ["optimizer", "learning rate", "tokens", "train loss", "validation loss"]
    header += ["time", "tokens/s", "FLOP/s", "MFU", "compile time"]
    rows = [
        [
            entry["optimizer"],
            f"{entry['learning_rate']:g}",
            amount(entry["num_tokens"]),
            loss(entry["final_train_loss"]),
            loss(entry["final_validation_loss"]),
            report.seconds(entry["train_time_s"]),
            amount(entry["tokens_per_second"]),
            amount(entry["flop_rate_per_second"]),
            report.percent(entry["mfu"]) if entry["mfu"] else "—",
            report.seconds(entry["compile_time_s"]),
        ]
        for entry in entries
    ]
    return report.format_table(header, rows)


def plot(path: Path, entries: Sequence[dict[str, Any]], title: str) -> None:
    """Draws validation loss against tokens, training time and FLOPs.

    Args:
        path: PNG to write.
        entries: Records of runs; those of one optimizer share a color.
        title: Stands over the panels.
    """
    names = list(dict.fromkeys(entry["optimizer"] for entry in entries))
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (key, label) in zip(panels, PANELS.items(), strict=True):
        seen = set()
        for entry in entries:
            name = entry["optimizer"]
            points = [p for p in entry["history"] if p["validation_loss"] is not None]
            axes.plot(
                [point[key] for point in points],
                [point["validation_loss"] for point in points],
                color=f"C{names.index(name)}",
                linewidth=1.0,
                label=None if name in seen else name,
            )
            seen.add(name)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss / nats per token")
    panels[0].set_ylim(*loss_limits(entries))
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def loss_limits(entries: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The axis of losses: from the lowest to what a quarter of the way left.

    The first losses are so much larger than the last that these could not be told
    apart on an axis that shows both.
    """
    histories = [
        [p["validation_loss"] for p in entry["history"] if p["validation_loss"]]
        for entry in entries
    ]
    lowest = min((min(h) for h in histories if h), default=0.0)
    quarter = [h[len(h) // 4] for h in histories if h]
    highest = max([*quarter, lowest + 0.1])
    margin = 0.05 * (highest - lowest)
    return lowest - margin, highest + margin


def sample(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    corpus: Corpus,
    *,
    prompt: str,
    num_tokens: int,
    length: int,
    seed: int,
) -> str:
    """A text that starts with `prompt`, goes on for `num_tokens`, and is random.

    Each token is drawn from the network's probabilities at `TEMPERATURE`, given up to
    `length` tokens before it.

    Raises:
        ValueError: If the prompt is empty.
    """
    tokens = corpus.encode(prompt)
    if not tokens:
        raise ValueError("`prompt` must have at least one token, got ''")

    @jax.jit
    def logits_at(params: Any, window: jax.Array, place: jax.Array) -> jax.Array:
        return apply(params, window[None])[0, place]  # (V,)

    random = np.random.default_rng(seed)
    for _ in range(num_tokens):
        seen = tokens[-length:]
        window = np.zeros(length, np.int32)
        window[: len(seen)] = seen
        logits = np.asarray(logits_at(params, window, np.int32(len(seen) - 1)))
        known = logits[: corpus.vocab_size].astype(np.float64) / TEMPERATURE
        tokens.append(int(np.argmax(known + random.gumbel(size=known.shape))))
    return corpus.decode(tokens)
