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
    config: Config, length: int, active: Sequence[bool] | None = None
) -> float:
    """Of the forward and the backward pass, per token.

    A layer's forward pass costs 2 for each weight in a product, and attention's
    2·2TC. Its backward pass costs as much again for the gradient of its weights, if it
    moves, and of its input, if it or a layer below moves. With all layers active that
    is 6 for each weight and 12LTC, but for the embedding, which is no product.

    Args:
        config: The size.
        length: T, of the context.
        active: Which layers of `layer_order` move; None is all.
    """
    c, v = config.width, config.vocab_size
    block = (4 + 2 * EXPANSION) * c * c
    weights = [0, *[block] * config.num_layers, c * v]  # embedding, blocks, head
    attention = [0, *[2 * length * c] * config.num_layers, 0]
    moves = list(active or [True] * len(layer_order(config)))
    if config.tied:
        moves.append(moves[0])
    total = 0
    for i, (products, scores) in enumerate(zip(weights, attention, strict=True)):
        total += 2 * (products + scores)
        total += 2 * products if moves[i] else 0
        # The head is one product; a block that moves needs gradients inside itself.
        below = i if i == len(weights) - 1 else i + 1
        total += 2 * products + 4 * scores if any(moves[:below]) else 0
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
