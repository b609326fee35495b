"""What a step of a language model costs, by formula, and what a device could do.

Products of matrices alone, at two FLOPs for a multiplication and an addition;
attention counted in full, not its causal half (PaLM, arXiv:2204.02311, appendix B). The
compiler's own count would take the body of a loop once, however often it runs.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.models.nanogpt import EXPANSION, Config, layer_order
from dropmuon_optax.linalg.orthogonalize import plain_flops
from dropmuon_optax.norms import Spectral

# Dense bf16 products, FLOP/s of one device, from the vendors' data sheets; the first
# name that stands in the device's kind counts.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "T4": 65e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}


def peak_flops(device: Any) -> float | None:
    """FLOP/s of one device, or None where no figure is known (any CPU)."""
    if device.platform == "cpu":
        return None
    known = (peak for name, peak in PEAK_FLOPS.items() if name in device.device_kind)
    return next(known, None)


def model_flops(
    config: Config,
    length: int,
    active: Sequence[bool] | None = None,
    present: Sequence[bool] | None = None,
    around: bool = False,
) -> float:
    """Of the forward and the backward pass, per token.

    A layer that is absent costs nothing. Another's forward pass costs 2 for each weight
    in a product, and attention's 2·2TC. Its backward pass costs as much again for the
    gradient of its weights, if it moves, and of its input, if it or a layer below
    moves. With all layers active that is 6 for each weight and 12LTC, but for the
    embedding, which is no product.

    Args:
        config: The size.
        length: T, of the context.
        active: Which layers of `layer_order` move; None is all that are present.
        present: Which are run; None is all.
        around: Whether backpropagation goes around blocks that don't move.
    """
    c, v = config.width, config.vocab_size
    block = (4 + 2 * EXPANSION) * c * c
    weights = [0, *[block] * config.num_layers, c * v]  # embedding, blocks, head
    attention = [0, *[2 * length * c] * config.num_layers, 0]
    here = list(present or [True] * len(layer_order(config)))
    moves = list(active or here)
    if config.tied:
        moves.append(moves[0])
        here.append(True)
    total = 0
    for i, (products, scores) in enumerate(zip(weights, attention, strict=True)):
        if not here[i]:
            continue
        total += 2 * (products + scores)
        total += 2 * products if moves[i] else 0
        # The head is one product; a block that moves needs gradients inside itself.
        below = i if i == len(weights) - 1 else i + 1
        skipped = around and not moves[i] and 0 < i < len(weights) - 1
        if any(moves[:below]) and not skipped:
            total += 2 * products + 4 * scores
    return float(total)


def oracle_flops(
    config: Config, optimizer: str, active: Sequence[bool] | None = None
) -> float:
    """Of the Newton–Schulz iterations of a step; 0 for AdamW.

    Of the four square matrices and the two of the feed-forward network in each block
    that moves, in the form that the spectral norm takes for their sides; Optax's Muon
    takes the plain one.
    """
    if optimizer == "adamw":
        return 0.0
    c, hidden = config.width, EXPANSION * config.width
    plain = partial(plain_flops, num_steps=5)
    flops = plain if optimizer == "optax_muon" else Spectral().num_flops
    block = 4 * flops((c, c)) + 2 * flops((c, hidden))
    num_blocks = (
        config.num_layers if active is None else sum(active[1 : config.num_layers + 1])
    )
    return float(num_blocks * block)
