"""Muon: Gluon's step in the spectral norm, and AdamW for what is no matrix.

    Keller Jordan's update of a matrix X with buffer M (github.com/KellerJordan/Muon):
      1. M ← M + (1 − β)(g − M)                      `buf.lerp_(g, 1 - beta)`
      2. U = g + β(M − g)                            `g.lerp(buf, beta)`, Nesterov
      3. O = NewtonSchulz₅(U)                        ≈ the polar factor of U
      4. X ← (1 − γλ)X
      5. X ← X − γ·√max(1, rows/columns)·O           rows/columns = fan_out/fan_in

Lines 1 and 2 are `scale_by_momentum(nesterov=True)`, 3 and 5 are −LMO of the norm
`muon_spectral()`, 4 is decoupled weight decay: Gluon with these constants. The sides in
line 5 are those of the matrix view. That is PyTorch's `torch.optim.Muon` and, for
matrices, Keller Jordan's; for convolutions his code reads the sides off the kernel.
"""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from dropmuon_optax import checks, linalg
from dropmuon_optax.algorithms.gluon import (
    Mask,
    add_weights,
    check_decay,
    descend,
    scale_by_momentum,
)
from dropmuon_optax.layers import LayersFn, layers_by_path
from dropmuon_optax.layers.geometry import muon_geometry
from dropmuon_optax.layers.leaves import join
from dropmuon_optax.layers.trees import checked, ranged
from dropmuon_optax.lmo import scale_by_lmo


def muon(
    learning_rate: optax.ScalarOrSchedule,
    layers: LayersFn | None = None,
    *,
    momentum: optax.ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = None,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: ArrayLike = 0.9,
    adam_b2: ArrayLike = 0.95,
    adam_eps: ArrayLike = 1e-10,
    adam_nesterov: bool = False,
    adam_weight_decay: optax.ScalarOrSchedule = 0.0,
    momentum_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon for matrices and kernels, AdamW (its moments in float32) for the rest.

    Args:
      learning_rate: γ, a number or a schedule, in units of spectral norm per step.
      layers: a function from the parameters to a tree of `Layer`s; leaves with
        `norm=None` go to AdamW. None is `layers_by_path(None, muon_geometry)`: vectors,
        embeddings, output heads and depthwise kernels by AdamW, the rest by the
        spectral norm (see `describe`).
      momentum: β in [0, 1), the weight of the old buffer.
      nesterov: whether the oracle sees g + β(M − g) in place of M.
      weight_decay: λ ≥ 0 of the matrices, decoupled and multiplied by the learning
        rate; a number or a schedule of the step count k. As in Optax's Muon, what goes
        to AdamW (biases, scales, embeddings, heads) has a decay of its own.
      weight_decay_mask: which leaves decay, Muon's and AdamW's: a tree of bools (or its
        top), or a function from the parameters to one; None is all.
      adam_learning_rate: AdamW's learning rate; None is `learning_rate`.
      adam_b1: AdamW's decay of the first moment.
      adam_b2: AdamW's decay of the second moment.
      adam_eps: AdamW's ε.
      adam_nesterov: whether AdamW's first moment is Nesterov's too (NAdam), as Optax's
        Muon has it.
      adam_weight_decay: AdamW's weight decay, a number or a schedule, multiplied by its
        learning rate; not `weight_decay`.
      momentum_dtype: dtype of Muon's buffer; None is the parameters', or float32 for
        float16.

    Returns:
      A transformation whose updates have the parameters' dtype.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.zeros((4, 16)), "bias": jnp.zeros(16)}
      >>> tx = muon(0.02)
      >>> grads = jax.tree.map(jnp.ones_like, params)
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["kernel"].shape
      (4, 16)

    References:
      Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, Muon, 2024.
    """
    decays = {"weight_decay": weight_decay, "adam_weight_decay": adam_weight_decay}
    check_decay(weight_decay_mask, **decays)
    for name, value in (("adam_b1", adam_b1), ("adam_b2", adam_b2)):
        checks.in_range(name, value, 0.0, 1.0, open_high=True)
    checks.in_range("adam_eps", adam_eps, 0.0, math.inf, open_high=True)
    checks.is_flag("adam_nesterov", adam_nesterov)
    if layers is None:
        layers = layers_by_path(None, muon_geometry)
    matrices = optax.chain(
        scale_by_momentum(momentum, nesterov=nesterov, momentum_dtype=momentum_dtype),
        scale_by_lmo(layers),
        add_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
    adam = optax.scale_by_adam(
        b1=adam_b1, b2=adam_b2, eps=adam_eps, nesterov=adam_nesterov
    )
    rest = optax.chain(
        _in_wide_dtype(adam),
        add_weights(adam_weight_decay, weight_decay_mask),
        descend(
            learning_rate if adam_learning_rate is None else adam_learning_rate,
            "learning_rate" if adam_learning_rate is None else "adam_learning_rate",
        ),
    )

    def labels(params: Any) -> Any:
        names = [
            "adam" if leaf.layer.norm is None else "muon"
            for leaf in join(layers, params)
        ]
        return jax.tree.unflatten(jax.tree.structure(params), names)

    parts: dict[Hashable, optax.GradientTransformation]
    parts = {"muon": ranged(matrices), "adam": ranged(rest)}
    return checked(optax.partition(parts, labels), moves_all=True)


def _in_wide_dtype(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Adam on float32 copies of narrower leaves: float16 has no ε = 1e-10."""

    def widened(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(linalg.wide_dtype(x)), tree)

    def init(params: Any) -> Any:
        zeros = lambda p: jnp.zeros_like(p, dtype=linalg.wide_dtype(p))  # noqa: E731
        return tx.init(jax.tree.map(zeros, params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del params, extra
        with jax.numpy_dtype_promotion("standard"):  # Adam raises β to an int32 power
            moved, state = tx.update(widened(updates), state)

        def told(x: Any, nu: Any, g: Any) -> Any:
            # Squares that overflow would make a step of zero.
            return (x + 0 * nu.astype(x.dtype)).astype(g.dtype)

        return jax.tree.map(told, moved, state.nu, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
