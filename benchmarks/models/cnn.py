"""A CNN of three convolutional layers for small square images."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

import dropmuon_optax as dm

PRESETS = {
    "small": (16, 32, 64),  # the default on a CPU
    "medium": (32, 64, 128),
    "paper": (64, 128, 256),  # Drop-Muon, arXiv:2510.02239, experiments
}

LAYER_ORDER = ["conv1", "conv2", "conv3", "head"]  # from the input on

# Radii of the Scion paper's CNN (arXiv:2502.07529): 8 for convolutions, 128 for the
# head. They matter to a constrained step, whose weights stay inside the balls; an
# unconstrained one sees only their product with the learning rate.
CONV_RADIUS, HEAD_RADIUS, BIAS_RADIUS = 8.0, 128.0, 4.0


class CNN(nnx.Module):
    """Three 3×3 convolutions with ReLU, 2×2 max-pooling after two, a dense head.

    The third convolution is not pooled, so that 8×8 images still reach the head as
    2×2 maps. Parameters are `conv1/kernel`, `conv1/bias`, …, `head/kernel`,
    `head/bias`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: tuple[int, int, int] = PRESETS["small"],
        num_classes: int = 10,
        *,
        rngs: nnx.Rngs,
    ):
        """Draws the initial weights.

        Args:
            image_shape: (height, width, depth); height and width divisible by 4.
            channels: Output channels of the three convolutions.
            num_classes: Number of logits.
            rngs: Flax random streams; `params` is used.

        Raises:
            ValueError: If the image cannot be pooled twice without a remainder.
        """
        height, width, depth = image_shape
        if height % 4 or width % 4:
            raise ValueError(
                "`image_shape` must have height and width divisible by 4, "
                f"got {image_shape}"
            )
        first, second, third = channels
        self.conv1 = nnx.Conv(depth, first, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (3, 3), rngs=rngs)
        self.conv3 = nnx.Conv(second, third, (3, 3), rngs=rngs)
        self.head = nnx.Linear(
            (height // 4) * (width // 4) * third, num_classes, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "B ..."], start: int = 0, stop: int | None = None
    ) -> Float[Array, "B ..."]:
        """Runs the layers `start`, …, `stop` − 1, all of them unless told.

        So `model(model(images, 0, 2), 2)` is `model(images)`: the prefix's outputs, the
        features, are (B, H/4, W/4, c2) where it ends after two layers.

        Args:
            x: Images (B, H, W, C), or the features that layer `start` reads.
            start: The first layer to run, counted from the input.
            stop: The layer to stop in front of; None is behind the head.

        Returns:
            Logits (B, K), or features.
        """
        stages = [self.first, self.second, self.third, self.logits]
        for stage in stages[start:stop]:
            x = stage(x)
        return x

    def first(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 c1"]:
        """Images to pooled maps."""
        return max_pool(nnx.relu(self.conv1(x)))

    def second(self, x: Float[Array, "B H/2 W/2 c1"]) -> Float[Array, "B H/4 W/4 c2"]:
        """Maps to pooled maps."""
        return max_pool(nnx.relu(self.conv2(x)))

    def third(self, x: Float[Array, "B H/4 W/4 c2"]) -> Float[Array, "B H/4 W/4 c3"]:
        """Maps to maps."""
        return nnx.relu(self.conv3(x))

    def logits(self, x: Float[Array, "B H/4 W/4 c3"]) -> Float[Array, "B K"]:
        """Maps to logits."""
        return self.head(x.reshape(x.shape[0], -1))


def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
    """2×2 max-pooling, written as a reshape.

    The gradient of the windowed form (`nnx.max_pool`) is a scatter, which makes the
    whole train step about twice as slow on a CPU.
    """
    batch, height, width, channels = x.shape
    windows = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return windows.max(axis=(2, 4))


def build(
    image_shape: tuple[int, int, int], preset: str, *, seed: int
) -> tuple[Callable[..., jax.Array], nnx.State]:
    """The network as a function, and its initial weights.

    Args:
        image_shape: (height, width, depth).
        preset: One of `PRESETS`.
        seed: Of the initial weights.

    Returns:
        (params, images (B, H, W, C)) -> logits (B, K), with `start` and `stop` of
        `CNN.__call__` if only some layers are to run; and a tree of plain arrays.
    """
    model = CNN(image_shape, PRESETS[preset], rngs=nnx.Rngs(seed))
    graphdef, params = nnx.split(model, nnx.Param)

    def apply(params: Any, x: jax.Array, **span: Any) -> jax.Array:
        return nnx.merge(graphdef, params)(x, **span)

    return apply, nnx.as_pure(params)


def scion_layers():
    """Every leaf in Scion's norms, for Scion and Gluon.

    Named leaf by leaf: by its shape alone the first kernel, (3, 3, 1, c1) where images
    have one channel, could as well be depthwise.
    """
    return dm.layers_by_path(
        order=LAYER_ORDER,
        geometry=[
            (r"conv\d/kernel", dm.norms.scion_conv(3, 3), CONV_RADIUS),
            ("head/kernel", dm.norms.scion_sign(), HEAD_RADIUS),
            ("bias", dm.norms.scion_bias(), BIAS_RADIUS),
        ],
    )


def muon_layers():
    """Kernels of convolutions in Muon's norm; biases and the head by AdamW."""
    return dm.layers_by_path(
        order=LAYER_ORDER,
        geometry=[
            (r"conv\d/kernel", dm.norms.muon_spectral(), 1.0),
            ("head|bias", None, 1.0),
        ],
    )
