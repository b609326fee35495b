"""A decoder-only transformer in the style of modded-nanogpt.

Rotary positions, queries and keys normalized, squared ReLU, root-mean-square norms
without parameters, no biases; so every parameter is a matrix. Blocks are unrolled;
`nanogpt_scan` has the same network with its blocks stacked and scanned over.

References:
  Jordan et al., github.com/KellerJordan/modded-nanogpt, and the configuration in which
  Scion (arXiv:2502.07529) and Gluon (arXiv:2505.13416) train it: 12 blocks, 6 heads,
  width 768, a tied head. Su et al., RoFormer, arXiv:2104.09864 (rotary positions).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

import dropmuon_optax as dm
from benchmarks.models.depth import Active, Blocks, of_blocks


@dataclasses.dataclass(frozen=True)
class Config:
    """The size of a model.

    Attributes:
        num_layers: L, the number of blocks.
        num_heads: H; the width of a head is D = C / H, and even.
        width: C.
        vocab_size: V, the number of tokens.
        tied: Whether the logits are read off by the embedding.
    """

    num_layers: int
    num_heads: int
    width: int
    vocab_size: int
    tied: bool


PRESETS = {
    "nano": Config(num_layers=2, num_heads=2, width=16, vocab_size=32, tied=False),
    "micro": Config(num_layers=4, num_heads=4, width=64, vocab_size=65, tied=False),
    "tiny": Config(num_layers=4, num_heads=4, width=128, vocab_size=65, tied=False),
    "small": Config(num_layers=6, num_heads=4, width=256, vocab_size=1024, tied=False),
    "124m": Config(num_layers=12, num_heads=6, width=768, vocab_size=50304, tied=True),
}

EXPANSION = 4  # of the width inside a block's second half
ROTARY_BASE = 10_000.0  # wavelengths run from 2π to 2π times this (RoFormer, 3.2.2)
RELU_GAIN = math.sqrt(2.0)  # as in Gluon's code; modded-nanogpt has none
INITIAL_STD = 0.02  # of embeddings (GPT-2)
NORM_EPSILON = float(jnp.finfo(jnp.float32).eps)  # as PyTorch's rms_norm

# Radii at which Scion and Gluon train the 124M model, and 3.6e-4 their learning rate.
HIDDEN_RADIUS, SIGN_RADIUS = 50.0, 3000.0


class Attention(nnx.Module):
    """Causal self-attention; `query`, `key`, `value`, `out` are C × C."""

    def __init__(self, config: Config, dtype: DTypeLike, *, rngs: nnx.Rngs):
        """Draws the initial weights; `dtype` is that of the products."""
        self.num_heads = config.num_heads
        self.query = linear(config.width, config.width, dtype, rngs)
        self.key = linear(config.width, config.width, dtype, rngs)
        self.value = linear(config.width, config.width, dtype, rngs)
        self.out = linear(config.width, config.width, dtype, rngs)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Returns what each position gathers from itself and those before."""
        heads = (*x.shape[:2], self.num_heads, -1)
        q = self.query(x).reshape(heads)  # (B, T, H, D)
        k = self.key(x).reshape(heads)  # (B, T, H, D)
        v = self.value(x).reshape(heads)  # (B, T, H, D)
        q = rotate(rms_norm(q))  # (B, T, H, D)
        k = rotate(rms_norm(k))  # (B, T, H, D)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)  # (B, T, H, D)
        y = y.reshape(x.shape)  # (B, T, C)
        return self.out(y)  # (B, T, C)


class Block(nnx.Module):
    """Attention, then a perceptron, each beside a shortcut and after a norm."""

    def __init__(self, config: Config, dtype: DTypeLike, *, rngs: nnx.Rngs):
        """Draws the initial weights; `dtype` is that of the products."""
        hidden = EXPANSION * config.width
        self.attention = Attention(config, dtype, rngs=rngs)
        self.up = linear(config.width, hidden, dtype, rngs)
        self.down = linear(hidden, config.width, dtype, rngs)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Returns the stream after the block."""
        x = x + self.attention(rms_norm(x))  # (B, T, C)
        y = self.up(rms_norm(x))  # (B, T, 4C)
        y = jnp.square(RELU_GAIN * nnx.relu(y))  # (B, T, 4C)
        return x + self.down(y)  # (B, T, C)


class NanoGPT(nnx.Module):
    """Embedding, L blocks, and a head that is the embedding where they are tied.

    Parameters are `embed/embedding`, `block_0/attention/query/kernel`, …,
    `block_0/up/kernel`, `block_0/down/kernel`, …, `head/kernel`.
    """

    def __init__(
        self, config: Config, dtype: DTypeLike = jnp.float32, *, rngs: nnx.Rngs
    ):
        """Draws the initial weights, in float32.

        Args:
            config: The size.
            dtype: Of the activations and products; logits are float32.
            rngs: Flax random streams; `params` is used.

        Raises:
            ValueError: If the width can't be split into heads of an even width.
        """
        if config.width % (2 * config.num_heads):
            raise ValueError(
                "`config` must have a width divisible by twice the number of heads, "
                f"got {config}"
            )
        self.num_layers = config.num_layers
        self.embed = nnx.Embed(
            config.vocab_size,
            config.width,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(INITIAL_STD),
            rngs=rngs,
        )
        for i in range(config.num_layers):
            setattr(self, f"block_{i}", Block(config, dtype, rngs=rngs))
        width, vocab_size = config.width, config.vocab_size
        self.head = None if config.tied else linear(width, vocab_size, dtype, rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        present: Blocks | None = None,
        dropped: Blocks | None = None,
    ) -> Float[Array, "B T V"]:
        """Returns, at each position, the logits of the next token.

        Args:
            tokens: Their ids.
            present: Which blocks are run; static, None is all.
            dropped: Which blocks the backward pass goes around; static, None is none.
        """
        num = self.num_layers
        present, dropped = present or (True,) * num, dropped or (False,) * num
        x = self.read(tokens)  # (B, T, C)
        for i in range(num):
            if present[i]:
                block = getattr(self, f"block_{i}")
                run = lambda _, x, block=block: block(x)  # noqa: E731
                x = (dm.drop_backward(run) if dropped[i] else run)(None, x)  # (B, T, C)
        return self.write(x)  # (B, T, V)

    def read(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T C"]:
        """Returns the stream that enters the first block."""
        return rms_norm(self.embed(tokens))  # (B, T, C)

    def write(self, x: Float[Array, "B T C"]) -> Float[Array, "B T V"]:
        """Returns the logits of the stream that leaves the last block."""
        x = rms_norm(x)  # (B, T, C)
        head = self.embed.attend if self.head is None else self.head
        return head(x).astype(jnp.float32)  # (B, T, V)


def linear(fan_in: int, fan_out: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    """A matrix (fan_in, fan_out), kept in float32, without bias."""
    return nnx.Linear(fan_in, fan_out, use_bias=False, dtype=dtype, rngs=rngs)


def rms_norm(x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """Divides by √(mean x² + ε) over the last axis, computed in float32 or wider."""
    wide = x.astype(dm.linalg.wide_dtype(x))  # (…, C)
    square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)  # (…, 1)
    return (wide * jax.lax.rsqrt(square + NORM_EPSILON)).astype(x.dtype)  # (…, C)


def rotate(x: Float[Array, "B T H D"]) -> Float[Array, "B T H D"]:
    """Rotary positions: turns the pair (xᵢ, xᵢ₊D/2) at position t by −t·θᵢ.

    θᵢ = 10000^(−2i/D) for i = 0, …, D/2 − 1, so that products of queries and keys
    depend on the distance of their positions. The sign is modded-nanogpt's; turning
    both the other way gives the same products.
    """
    dtype = dm.linalg.wide_dtype(x)
    length, half = x.shape[1], x.shape[3] // 2
    theta = ROTARY_BASE ** -(jnp.arange(half, dtype=dtype) / half)  # (D/2,)
    angle = jnp.outer(jnp.arange(length, dtype=dtype), theta)  # (T, D/2)
    angle = angle[None, :, None]  # (1, T, 1, D/2)
    cos, sin = jnp.cos(angle), jnp.sin(angle)  # (1, T, 1, D/2)
    a, b = jnp.split(x.astype(dtype), 2, axis=-1)  # (B, T, H, D/2)
    turned = [a * cos + b * sin, b * cos - a * sin]  # (B, T, H, D/2) each
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)  # (B, T, H, D)


def config_of(size: str | Config) -> Config:
    """The size itself, or that of a preset."""
    return PRESETS[size] if isinstance(size, str) else size


def build(
    size: str | Config, *, seed: int, dtype: DTypeLike = jnp.float32
) -> tuple[Callable[..., jax.Array], Any]:
    """The network as a function, and its initial weights.

    Args:
        size: One of `PRESETS`, or a size of your own.
        seed: Of the initial weights.
        dtype: Of the activations and products; the weights are float32.

    Returns:
        (params, tokens (B, T), active=None, present=None, around=False) -> logits
        (B, T, V) in float32, and a tree of plain arrays. The static arguments say which
        layers of `layer_order` move and which are run, None being all, and whether the
        backward pass goes around blocks that don't move (DropBP) or through them.
    """
    config = config_of(size)
    model = NanoGPT(config, dtype, rngs=nnx.Rngs(seed))
    graphdef, params = nnx.split(model, nnx.Param)

    def apply(
        params: Any,
        tokens: Int[Array, "B T"],
        active: Active | None = None,
        present: Active | None = None,
        around: bool = False,
    ) -> Float[Array, "B T V"]:
        moves, here = of_blocks(layer_order(config), active, present)
        dropped = tuple(around and not move for move in moves)
        return nnx.merge(graphdef, params)(tokens, here, dropped)

    return apply, nnx.as_pure(params)


def layer_order(size: str | Config) -> list[str]:
    """The layers from the input on. A tied head is part of the embedding, layer 0."""
    config = config_of(size)
    blocks = [f"block_{i}" for i in range(config.num_layers)]
    return ["embed", *blocks, *([] if config.tied else ["head"])]


def layers(
    size: str | Config,
    *,
    scanned: bool = False,
    radius: float = HIDDEN_RADIUS,
    sign_radius: float = SIGN_RADIUS,
    norm: dm.norms.Norm | None = None,
):
    """Every leaf in the norms of Scion's and Gluon's language models.

    Matrices √(n_out/n_in)·spectral; the embedding and the head sign/n_in with n_in the
    width C of both. `scanned` is for `nanogpt_scan`, `norm` another one of the blocks'
    matrices.
    """
    sign, by_width = dm.norms.scion_sign(), dm.View((1,), (0,))
    head = [] if config_of(size).tied else ["head"]
    return dm.layers_by_path(
        order=["embed", "blocks" if scanned else r"block_(\d+)", *head],
        geometry=[
            ("embed", sign, sign_radius, by_width),
            *((name, sign, sign_radius) for name in head),
            ("kernel", norm or dm.norms.scion_spectral(), radius),
        ],
        stacked="blocks" if scanned else None,
    )
