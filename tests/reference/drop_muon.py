"""Drop-Muon (arXiv:2510.02239) in plain float64 NumPy, as its box has it."""

import numpy as np


def spectral(m, t):
    """argmin {⟨m, x⟩ : ‖x‖₂ ≤ t}, without arbitrary parts."""
    u, s, vt = np.linalg.svd(m, full_matrices=False)
    rank = np.sum(s > s.max() * 1e-12)
    return -t * u[:, :rank] @ vt[:rank]


def frobenius(m, t):
    """argmin {⟨m, x⟩ : ‖x‖_F ≤ t}."""
    return -t * m / np.linalg.norm(m)


def max_entry(m, t):
    """argmin {⟨m, x⟩ : max |x| ≤ t}."""
    return -t * np.sign(m)


def drop_muon(x, gradient, layer_of, sets, lmos, radii, beta, outside=None):
    """X after each step.

    Args:
      x: X⁰, matrices by name.
      gradient: (X, k) -> ∇f(X; ξᵏ), by name.
      layer_of: the layer i of each name.
      sets: Sᵏ for each step k, sets of layers.
      lmos: the oracle (M, t) -> argmin of each name.
      radii: (name, k) -> tᵢᵏ.
      beta: β, the weight of the new gradient.
      outside: by name, the step (M, k) -> x of layers outside Sᵏ, whose momenta move
        then too, as in Algorithm 1 of LionMuon (arXiv:2605.19811) with β₁ = β₂; None
        freezes them.
    """
    m = {name: np.zeros_like(value) for name, value in x.items()}
    trajectory = []
    for k, active in enumerate(sets):
        g = gradient(x, k)
        x, m = dict(x), dict(m)
        for name, i in layer_of.items():
            if i not in active and outside is None:
                continue  # Mᵢᵏ = Mᵢᵏ⁻¹, Xᵢᵏ⁺¹ = Xᵢᵏ
            m[name] = (1 - beta) * m[name] + beta * g[name]
            if i in active:
                x[name] = x[name] + lmos[name](m[name], radii(name, k))
            else:
                x[name] = x[name] + outside[name](m[name], k)
        trajectory.append(x)
    return trajectory
