"""Named geometries of published optimizers, each a composition of norms.

A matrix is (n_in, n_out) here, so what the Scion paper's PyTorch code calls a row (the
weights into one output unit) is a column, and the other way round.
"""

import math

from dropmuon_optax import checks
from dropmuon_optax.norms.base import Norm
from dropmuon_optax.norms.column import Column
from dropmuon_optax.norms.max_entry import MaxEntry
from dropmuon_optax.norms.rms import RMS
from dropmuon_optax.norms.row import Row
from dropmuon_optax.norms.scaled import LongSide, Monomial, Scaled
from dropmuon_optax.norms.spectral import Spectral


def _call(name: str, inner: Norm, *arguments: int) -> str:
    """The call as it is written, without what is the default."""
    given = [
        *map(str, arguments),
        *([f"inner={inner!r}"] if inner != Spectral() else []),
    ]
    return f"{name}({', '.join(given)})"


def muon_spectral(inner: Norm = Spectral()) -> Scaled:  # noqa: B008 (frozen)
    """Muon's geometry: a unit step is √max(1, n_out/n_in)·UVᵀ.

    The sides are those of the matrix view. (Keller Jordan's code takes the last two
    axes of the tensor instead, which for square convolution kernels gives 1.)

    Examples:
      >>> import jax.numpy as jnp
      >>> muon_spectral().norm(jnp.eye(2, 8)).item()
      0.5

    References:
      Keller Jordan, github.com/KellerJordan/Muon; `torch.optim.Muon`, "original".
    """
    factor = Monomial(fan_in=0.5, fan_out=-0.5, at_most=1.0)
    return Scaled(inner, factor).named(_call("muon_spectral", inner))


def consistent_rms(rms: float = 0.2, inner: Norm = Spectral()) -> Scaled:  # noqa: B008
    """Moonlight's geometry: a unit step is rms·√max(n_in, n_out)·UVᵀ.

    The root mean square of its entries is `rms` for a matrix of full rank and any
    sides, so that learning rates and weight decay of AdamW serve.

    Args:
      rms: root mean square of a unit step's entries; AdamW's is about 0.2.
      inner: the norm to scale.

    Raises:
      ValueError: if `rms` is not positive.

    >>> import jax.numpy as jnp
    >>> exact = Spectral(num_steps=None)
    >>> consistent_rms(0.5, exact).lmo(jnp.ones((1, 4))).round(3).tolist()
    [[-0.5, -0.5, -0.5, -0.5]]

    References:
      Liu et al., Muon is Scalable for LLM Training, arXiv:2502.16982;
      `consistent_rms` in Optax, `adjust_lr_fn="match_rms_adamw"` in PyTorch.
    """
    checks.in_range("rms", rms, 0.0, math.inf, open_low=True, open_high=True)
    arguments = [str(rms)] if rms != 0.2 else []
    if inner != Spectral():
        arguments.append(f"inner={inner!r}")
    scaled = Scaled(inner, LongSide(-0.5, 1.0 / rms))
    return scaled.named(f"consistent_rms({', '.join(arguments)})")


def scion_spectral(inner: Norm = Spectral()) -> Scaled:  # noqa: B008 (frozen)
    """Scion's hidden layers: a unit step is √(n_out/n_in)·UVᵀ.

    Examples:
      >>> import jax.numpy as jnp
      >>> scion_spectral().norm(jnp.eye(8, 2)).item()
      2.0

    References:
      Pethick et al., arXiv:2502.07529 (Spectral).
    """
    factor = Monomial(fan_in=0.5, fan_out=-0.5)
    return Scaled(inner, factor).named(_call("scion_spectral", inner))


def scion_conv(*kernel_size: int, inner: Norm = Spectral()) -> Scaled:  # noqa: B008
    """Scion's convolutions: a unit step is (1/k²)√(C_out/C_in)·UVᵀ of (k²C_in, C_out).

    Args:
      *kernel_size: the kernel's spatial extents, (3, 3) for a 3×3 kernel. Their product
        stands for the formula's k², in one to three dimensions.
      inner: the norm to scale.

    Raises:
      ValueError: if an extent is no positive whole number.

    Examples:
      >>> import jax.numpy as jnp
      >>> round(scion_conv(3, 3).norm(jnp.eye(9, 4)).item(), 6)  # k²√(C_in/C_out)
      4.5

    References:
      Pethick et al., arXiv:2502.07529 (SpectralConv).
    """
    for extent in kernel_size:
        checks.positive_int("kernel_size", extent)
    # √(n_in/n_out) = √(k²C_in/C_out) already holds one of the two factors of k.
    root = math.sqrt(math.prod(kernel_size))
    factor = Monomial(fan_in=0.5, fan_out=-0.5, constant=root)
    return Scaled(inner, factor).named(_call("scion_conv", inner, *kernel_size))


def scion_sign() -> Scaled:
    """Scion's embeddings and heads: a unit step is sign(g)/n_in.

    n_in is the number of rows. Of a table of embeddings (vocabulary, width) it is to be
    the width: give it the view `View((1,), (0,))`.

    Examples:
      >>> import jax.numpy as jnp
      >>> scion_sign().lmo(jnp.ones((2, 1))).tolist()
      [[-0.5], [-0.5]]

    References:
      Pethick et al., arXiv:2502.07529 (Sign).
    """
    return Scaled(MaxEntry(), Monomial(fan_in=1.0)).named("scion_sign()")


def scion_column() -> Scaled:
    """Scion's norm over output units: a unit step is g_·j/(√n_in·‖g_·j‖₂).

    Examples:
      >>> import jax.numpy as jnp
      >>> scion_column().lmo(jnp.ones((4, 1))).tolist()
      [[-0.25], [-0.25], [-0.25], [-0.25]]

    References:
      Pethick et al., arXiv:2502.07529 (RowNorm, normalized).
    """
    return Scaled(Column(), Monomial(fan_in=0.5)).named("scion_column()")


def scion_row() -> Scaled:
    """Scion's norm over input units: a unit step is √n_out·g_i·/‖g_i·‖₂.

    Examples:
      >>> import jax.numpy as jnp
      >>> scion_row().lmo(jnp.ones((1, 4))).tolist()
      [[-1.0, -1.0, -1.0, -1.0]]

    References:
      Pethick et al., arXiv:2502.07529 (ColNorm).
    """
    return Scaled(Row(), Monomial(fan_out=-0.5)).named("scion_row()")


def scion_bias() -> RMS:
    """Scion's biases: a unit step is √n·g/‖g‖₂.

    Examples:
      >>> scion_bias()
      RMS()

    References:
      Pethick et al., arXiv:2502.07529 (BiasRMS).
    """
    return RMS()
