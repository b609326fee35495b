"""ResNet-18 for 32×32 images: a 3×3 stem without pooling, eight basic blocks, a head.

Groups of channels are normalized within each image (GroupNorm), not over the batch as
in the original: so the network is a pure function of its parameters and one image, with
no running statistics that a frozen layer would have to keep still.

References:
  He, Zhang, Ren, Sun, Deep residual learning, arXiv:1512.03385. Wu, He, Group
  normalization, arXiv:1803.08494.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

import dropmuon_optax as dm
from benchmarks.models.cnn import BIAS_RADIUS, CONV_RADIUS, HEAD_RADIUS

PRESETS = {
    "tiny": (8, 8, 16, 16),  # for tests
    "resnet18": (64, 128, 256, 512),  # channels of the four stages of two blocks
}

# Blocks without a convolution in the shortcut: left out, they are the identity.
IDENTITY_BLOCKS = (0, 1, 3, 5, 7)

LAYER_ORDER = ["stem", *(f"block_{i}" for i in range(8)), "head"]  # from the input on

CHANNELS_PER_GROUP = 8  # divides the widths of all presets


class ConvNorm(nnx.Module):
    """A convolution without bias, then GroupNorm."""

    def __init__(
        self, depth: int, channels: int, kernel: int, stride: int, *, rngs: nnx.Rngs
    ):
        """Draws the initial weights; the kernel is square."""
        size, strides = (kernel, kernel), (stride, stride)
        self.conv = nnx.Conv(depth, channels, size, strides, use_bias=False, rngs=rngs)
        self.norm = nnx.GroupNorm(
            channels, num_groups=None, group_size=CHANNELS_PER_GROUP, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H/s W/s O"]:
        """Returns the normalized maps."""
        return self.norm(self.conv(x))  # (B, H/s, W/s, O)


class Block(nnx.Module):
    """Two 3×3 convolutions beside a shortcut: the basic block."""

    def __init__(self, depth: int, channels: int, stride: int, *, rngs: nnx.Rngs):
        """Draws the initial weights.

        Args:
            depth: Input channels.
            channels: Output channels; if they are more, the shortcut is a 1×1
                convolution.
            stride: Of the first convolution and of the shortcut.
            rngs: Flax random streams; `params` is used.
        """
        self.conv1 = ConvNorm(depth, channels, 3, stride, rngs=rngs)
        self.conv2 = ConvNorm(channels, channels, 3, 1, rngs=rngs)
        self.shortcut = (
            None
            if stride == 1 and depth == channels
            else ConvNorm(depth, channels, 1, stride, rngs=rngs)
        )

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H/s W/s O"]:
        """Returns the maps after the block."""
        y = nnx.relu(self.conv1(x))  # (B, H/s, W/s, O)
        y = self.conv2(y)  # (B, H/s, W/s, O)
        passed = x if self.shortcut is None else self.shortcut(x)  # (B, H/s, W/s, O)
        return nnx.relu(passed + y)  # (B, H/s, W/s, O)


class ResNet(nnx.Module):
    """Stem, four stages of two blocks, mean over the map, head.

    Parameters are `stem/conv/kernel`, `block_0/conv1/norm/scale`, …, `head/bias`.
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = PRESETS["resnet18"],
        num_classes: int = 10,
        *,
        rngs: nnx.Rngs,
    ):
        """Draws the initial weights.

        Args:
            depth: Channels of the images.
            widths: Channels of the four stages; all but the first halve the map.
            num_classes: Number of logits.
            rngs: Flax random streams; `params` is used.
        """
        self.stem = ConvNorm(depth, widths[0], 3, 1, rngs=rngs)
        inputs = [widths[0], *(width for width in widths for _ in range(2))]
        for i in range(8):
            stride = 2 if i in (2, 4, 6) else 1
            block = Block(inputs[i], widths[i // 2], stride, rngs=rngs)
            setattr(self, f"block_{i}", block)
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B H W C"], present: tuple[bool, ...] | None = None
    ) -> Float[Array, "B K"]:
        """Returns the logits of a batch of images.

        Args:
            images: (B, H, W, C).
            present: Of each of `LAYER_ORDER`, whether it is run; None is all. What a
                block reads is not negative, and so it is the identity without its
                branch.

        Raises:
            ValueError: If a layer is left out that isn't one of `IDENTITY_BLOCKS`.
        """
        absent = [] if present is None else [i for i, x in enumerate(present) if not x]
        blocks = [f"block_{i}" for i in IDENTITY_BLOCKS]
        for name in (LAYER_ORDER[i] for i in absent):
            if name not in blocks:
                raise ValueError(
                    f"`present` must hold all layers but some of {', '.join(blocks)}, "
                    f"for others are no identity when left out, got {name!r} absent"
                )
        x = nnx.relu(self.stem(images))  # (B, H, W, w1)
        for i in range(8):
            if i + 1 not in absent:
                x = getattr(self, f"block_{i}")(x)  # (B, H/s, W/s, w), s = 1, 2, 4, 8
        x = x.mean(axis=(1, 2))  # (B, w4)
        return self.head(x)  # (B, K)


def without_branches(params: Any, present: tuple[bool, ...]) -> Any:
    """Parameters whose absent blocks are the identity, if they are run nevertheless.

    The scale behind a block's last convolution is 0, so that it enters without a jump.
    """
    params = dict(params)
    for i in IDENTITY_BLOCKS:
        if not present[i + 1]:
            block = params[f"block_{i}"]
            norm = block["conv2"]["norm"]
            norm = {**norm, "scale": norm["scale"] * 0}
            block = {**block, "conv2": {**block["conv2"], "norm": norm}}
            params[f"block_{i}"] = block
    return params


def build(
    image_shape: tuple[int, int, int], preset: str, *, seed: int
) -> tuple[Callable[..., jax.Array], Any]:
    """The network as a function, and its initial weights.

    Args:
        image_shape: (height, width, depth).
        preset: One of `PRESETS`.
        seed: Of the initial weights.

    Returns:
        (params, images (B, H, W, C)) -> logits (B, K), with `present` of
        `ResNet.__call__` if some blocks are absent; and a tree of plain arrays.
    """
    model = ResNet(image_shape[-1], PRESETS[preset], rngs=nnx.Rngs(seed))
    graphdef, params = nnx.split(model, nnx.Param)

    def apply(params: Any, x: jax.Array, **present: Any) -> jax.Array:
        return nnx.merge(graphdef, params)(x, **present)

    return apply, nnx.as_pure(params)


def layers():
    """Ten layers, every leaf in Scion's norms, with the radii of the CNN."""
    return dm.layers_by_path(
        order=["stem", r"block_(\d)", "head"],
        geometry=[
            ("shortcut/conv/kernel", dm.norms.scion_conv(1, 1), CONV_RADIUS),
            ("conv/kernel", dm.norms.scion_conv(3, 3), CONV_RADIUS),
            ("head/kernel", dm.norms.scion_sign(), HEAD_RADIUS),
            ("scale|bias", dm.norms.scion_bias(), BIAS_RADIUS),
        ],
    )
