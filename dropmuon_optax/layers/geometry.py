"""Default geometries: the norm and radius of a leaf by its name and shape.

A geometry is a function of (path, shape) that returns a norm (None where no oracle is
to move the leaf) and a radius. `layers_by_path` takes one in place of a list of rules,
or at its end; if it has an argument `reading`, it is given what the leaf was read as.
"""

from dropmuon_optax import norms
from dropmuon_optax.layers.readings import AmbiguousError, Reading, read

# One step of an output head is sign(g)/n_in times this, one of a hidden layer
# √(n_out/n_in)·UVᵀ: the ratio of the Scion paper's image models (128 to 8).
HEAD_RADIUS = 16.0

# A vector's normalized step has no small directions to average over; at the hidden
# layers' own length it overshoots narrow valleys (Rosenbrock's, at momentum 0.9).
VECTOR_RADIUS = 0.25

# Radius of the ball for hidden layers where weights are constrained to it, and 128 for
# heads: those of the Scion paper's image models.
BALL_RADIUS = 8.0


def scion_geometry(
    path: str, shape: tuple[int, ...], reading: Reading | None = None
) -> tuple[norms.Norm, float]:
    """Scion's norms: every leaf has one. The default of `gluon` and `scion`.

    Hidden matrices √(n_out/n_in)·spectral, convolutions (1/k²)√(C_out/C_in)·spectral,
    heads sign/n_in, embeddings one normalized row per token, depthwise kernels one
    normalized column per channel, vectors by their root mean square.

    Args:
      path: the leaf's path, keys joined by "/".
      shape: the leaf's shape in Flax's order, spatial axes, fan_in, fan_out.
      reading: what the leaf is; None reads its path and shape.

    Returns:
      The norm, and the radius relative to hidden layers, which have 1.

    Raises:
      ValueError: if it can't be told what the leaf is, with the rules that settle it.

    Examples:
      >>> scion_geometry("dense/bias", (8,))
      (RMS(), 0.25)
    """
    reading = read(path, shape) if reading is None else reading
    match reading.role:
        case "vector":
            return norms.scion_bias(), VECTOR_RADIUS
        case "head":
            return norms.scion_sign(), HEAD_RADIUS
        case "embedding":
            return norms.scion_row(), 1.0
        case "depthwise":
            return norms.scion_column(), 1.0
        case "conv" if 0 not in shape:  # without entries, any norm
            return norms.scion_conv(*reading.spatial), 1.0
        case "conv" | "hidden":
            return norms.scion_spectral(), 1.0
        case None:
            norm = norms.scion_spectral()
            raise AmbiguousError(path, shape, reading.view, norm, 1.0, "scion_geometry")


def ball_geometry(
    path: str, shape: tuple[int, ...], reading: Reading | None = None
) -> tuple[norms.Norm, float]:
    """Scion's norms with radii that constrain: 8 times those of `scion_geometry`.

    The default where weights are to stay in the balls. A step at learning rate γ is 8
    times as long as one of `scion_geometry`.

    Args:
      path: the leaf's path, keys joined by "/".
      shape: the leaf's shape in Flax's order, spatial axes, fan_in, fan_out.
      reading: what the leaf is; None reads its path and shape.

    Returns:
      The norm and the radius: 8 for hidden layers, 128 for heads, 2 for vectors.

    Raises:
      ValueError: if it can't be told what the leaf is, with the rules that settle it.

    Examples:
      >>> ball_geometry("dense/bias", (8,))
      (RMS(), 2.0)
    """
    reading = read(path, shape) if reading is None else reading
    if reading.role is None:
        norm = norms.scion_spectral()
        raise AmbiguousError(
            path, shape, reading.view, norm, BALL_RADIUS, "ball_geometry"
        )
    norm, radius = scion_geometry(path, shape, reading)
    return norm, BALL_RADIUS * radius


def muon_geometry(
    path: str, shape: tuple[int, ...], reading: Reading | None = None
) -> tuple[norms.Norm | None, float]:
    """Muon's split: matrices and kernels by the spectral norm, the rest by AdamW.

    Args:
      path: the leaf's path, keys joined by "/".
      shape: the leaf's shape in Flax's order, spatial axes, fan_in, fan_out.
      reading: what the leaf is; None reads its path and shape.

    Returns:
      `muon_spectral()` for hidden matrices and convolutions, None for vectors,
      embeddings, heads and depthwise kernels; the radius 1.

    Raises:
      ValueError: if it can't be told what the leaf is, with the rules that settle it.

    Examples:
      >>> muon_geometry("embed/embedding", (512, 64))
      (None, 1.0)
    """
    reading = read(path, shape) if reading is None else reading
    if reading.role is None:
        norm = norms.muon_spectral()
        raise AmbiguousError(path, shape, reading.view, norm, 1.0, "muon_geometry")
    moved = reading.role in ("hidden", "conv")
    return (norms.muon_spectral() if moved else None), 1.0
