"""Norms, their duals and what an oracle must attain, in NumPy's float64."""

import math
from typing import Any, NamedTuple

import numpy as np

from dropmuon_optax import norms
from tests.fuzz.values import claim, lost
from tests.reference import oracles


class Known(NamedTuple):
    """A norm and its transcription."""

    norm: norms.Norm
    value: Any  # ‖x‖
    dual: Any  # ‖g‖⋆
    scale: Any = lambda m, n: 1.0  # of the step, where the oracle is inexact


def _column(x):
    return np.linalg.norm(x, axis=0).max()


def _columns(g):
    return np.linalg.norm(g, axis=0).sum()


def _spectral(x):
    return np.linalg.norm(x, 2)


def _nuclear(g):
    return np.linalg.norm(g, "nuc")


def _frobenius(x):
    return np.linalg.norm(x)


def _muon(m, n):
    return math.sqrt(max(1, n / m))


def _scion(m, n):
    return math.sqrt(n / m)


NORMS = [
    Known(norms.Spectral(num_steps=None), _spectral, _nuclear),
    Known(norms.Spectral(), _spectral, _nuclear),
    Known(
        norms.muon_spectral(),
        lambda x: _spectral(x) / _muon(*x.shape),
        lambda g: _nuclear(g) * _muon(*g.shape),
        _muon,
    ),
    Known(
        norms.scion_spectral(),
        lambda x: _spectral(x) / _scion(*x.shape),
        lambda g: _nuclear(g) * _scion(*g.shape),
        _scion,
    ),
    Known(norms.Frobenius(), _frobenius, _frobenius),
    Known(norms.Column(), _column, _columns),
    Known(norms.Row(), lambda x: _column(x.T), lambda g: _columns(g.T)),
    Known(norms.MaxEntry(), lambda x: np.abs(x).max(), lambda g: np.abs(g).sum()),
    Known(
        norms.RMS(),
        lambda x: _frobenius(x) / math.sqrt(x.size),
        lambda g: _frobenius(g) * math.sqrt(g.size),
    ),
    Known(
        norms.scion_sign(),
        lambda x: len(x) * np.abs(x).max(),
        lambda g: np.abs(g).sum() / len(g),
    ),
    Known(
        norms.Scaled(norms.Frobenius(), 3.0),
        lambda x: 3 * _frobenius(x),
        lambda g: _frobenius(g) / 3,
    ),
]


def inexact(known: Known) -> bool:
    """Whether Newton–Schulz stands for the oracle."""
    norm, _ = norms.unscaled(known.norm, (1, 1))
    return isinstance(norm, norms.Spectral) and norm.num_steps is not None


def check_step(
    known: Known, g: np.ndarray, step: np.ndarray, t: float, eps: float, dtype: Any
) -> None:
    """Whether `step` is −LMO(g) of radius t: the argmax of ⟨g, x⟩ over the ball.

    Args:
      known: the norm.
      g: a finite matrix in float64, without entries too small for its dtype.
      step: in float64.
      t: the radius.
      eps: relative roundings of the step's entries.
      dtype: of the step, for what it loses at the bottom of its range.
    """
    claim(np.isfinite(step).all(), "a finite matrix has no finite step")
    largest = np.abs(g).max(initial=0.0)
    if largest == 0 or t == 0:
        claim(not step.any(), "zero does not go to zero")
        return
    unit, small = g / largest, lost(dtype)
    if inexact(known):
        expected = t * known.scale(*g.shape) * oracles.newton_schulz(unit)
        room = t * known.scale(*g.shape) * (eps + 2e-3) + small
        claim(np.abs(step - expected).max() <= room, "not Newton–Schulz's polynomial")
        return
    room = eps + 64 * g.size * 2.0**-24
    length = known.value(step) if step.any() else 0.0
    claim(
        length <= t * (1 + room) + known.value(np.full(g.shape, small)),
        "outside the ball",
    )
    reached, best = (unit * step).sum(), t * known.dual(unit)
    claim(
        reached >= best * (1 - room) - small * np.abs(unit).sum(),
        f"no minimum: {reached} of {best}",
    )
