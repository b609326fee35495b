"""Default geometries: the norm and radius of a leaf by its name and shape.

A geometry is a function of (path, shape) that returns a norm (None where no oracle is
to move the leaf) and a radius. `layers_by_path` takes one in place of a list of rules.
"""

import re
from typing import Literal

from dropmuon_optax import norms
from dropmuon_optax.layers import views

Role = Literal["hidden", "conv", "depthwise", "vector", "embedding", "head"]

_EMBEDDING = re.compile(
    r"(?i)(^|/)(\w*embed(ding|dings|der|s)?|\w+_emb|emb|wte|wpe|lookup(_table)?)(_\d+)?/"
    r"|(^|/)(embedding|embedding_table|pos(ition)?_emb\w*|cls(_token)?|wte|wpe)$"
)
_HEAD = re.compile(
    r"(?i)(^|/)((?!multi)\w+_)?(head|logits(_dense)?|unembed\w*|classifier|lm_head)(_\d+)?/"
    r"|(^|/)(lm_head|head|unembed\w*|logits)$"
    r"|^(params/)?output(_layer|_projection|_proj)?(/|$)"
)

# One step of an output head is sign(g)/n_in times this, one of a hidden layer
# √(n_out/n_in)·UVᵀ: the ratio of the Scion paper's image models (128 to 8).
HEAD_RADIUS = 16.0

# A vector's normalized step has no small directions to average over; at the hidden
# layers' own length it overshoots narrow valleys (Rosenbrock's, at momentum 0.9).
VECTOR_RADIUS = 0.25

# Radius of the ball for hidden layers where weights are constrained to it, and 128 for
# heads: those of the Scion paper's image models.
BALL_RADIUS = 8.0


def is_embedding(path: str) -> bool:
    """Whether the path says that the leaf is a table of embeddings."""
    return bool(_EMBEDDING.search(path))


def role(path: str, shape: tuple[int, ...]) -> Role:
    """What a leaf is, by its path and shape.

    - `embedding` and `head`: the path says so (`embed`, `wte`, …; `head`, `lm_head`,
      `logits`, `classifier`, …; `multi_head_attention` does not);
    - `vector`: at most one axis, or a vector's name such as `bias` or `scale` (with the
      layers stacked in front of it, say);
    - `depthwise`: a convolution kernel whose input channels are 1, as in a depthwise
      convolution. A first convolution over one-channel images looks the same;
    - `conv`: other kernels of three or more axes;
    - `hidden`: other matrices.

    >>> role("block/multi_head_attention/query/kernel", (64, 4, 16))
    'hidden'
    >>> role("lm_head/kernel", (64, 512))
    'head'
    """
    if views.is_vector_name(path) or len(shape) <= 1:
        return "vector"
    if is_embedding(path):
        return "embedding"
    if _HEAD.search(path):
        return "head"
    if len(shape) == 2 or views.is_attention(path):
        return "hidden"
    return "depthwise" if shape[-2] == 1 else "conv"


def scion_geometry(path: str, shape: tuple[int, ...]) -> tuple[norms.Norm, float]:
    """Scion's norms: every leaf has one. The default of `gluon` and `scion`.

    Hidden matrices √(n_out/n_in)·spectral, convolutions (1/k²)√(C_out/C_in)·spectral,
    heads sign/n_in, embeddings one normalized row per token, depthwise kernels one
    normalized column per channel, vectors by their root mean square.

    Args:
      path: the leaf's path, keys joined by "/".
      shape: the leaf's shape in Flax's order, spatial axes, fan_in, fan_out.

    Returns:
      The norm, and the radius relative to hidden layers, which have 1.

    Examples:
      >>> scion_geometry("dense/bias", (8,))
      (RMS(), 0.25)
    """
    kind = role(path, shape)
    if kind == "vector":
        return norms.scion_bias(), VECTOR_RADIUS
    if kind == "head":
        return norms.scion_sign(), HEAD_RADIUS
    if kind == "embedding":
        return norms.scion_row(), 1.0
    if kind == "depthwise":
        return norms.scion_column(), 1.0
    if kind == "conv" and 0 not in shape:  # without entries, any norm
        return norms.scion_conv(*shape[:-2]), 1.0
    return norms.scion_spectral(), 1.0


def ball_geometry(path: str, shape: tuple[int, ...]) -> tuple[norms.Norm, float]:
    """Scion's norms with radii that constrain: 8 times those of `scion_geometry`.

    The default where weights are to stay in the balls. A step at learning rate γ is 8
    times as long as one of `scion_geometry`.

    Args:
      path: the leaf's path, keys joined by "/".
      shape: the leaf's shape in Flax's order, spatial axes, fan_in, fan_out.

    Returns:
      The norm and the radius: 8 for hidden layers, 128 for heads, 2 for vectors.

    Examples:
      >>> ball_geometry("dense/bias", (8,))
      (RMS(), 2.0)
    """
    norm, radius = scion_geometry(path, shape)
    return norm, BALL_RADIUS * radius


def muon_geometry(path: str, shape: tuple[int, ...]) -> tuple[norms.Norm | None, float]:
    """Muon's split: matrices and kernels by the spectral norm, the rest by AdamW.

    Args:
      path: the leaf's path, keys joined by "/".
      shape: the leaf's shape in Flax's order, spatial axes, fan_in, fan_out.

    Returns:
      `muon_spectral()` for hidden matrices and convolutions, None for vectors,
      embeddings, heads and depthwise kernels; the radius 1.

    Examples:
      >>> muon_geometry("embed/embedding", (512, 64))
      (None, 1.0)
    """
    kind = role(path, shape)
    return (norms.muon_spectral() if kind in ("hidden", "conv") else None), 1.0
