"""EF21-Muon (arXiv:2510.00643) in plain float64 NumPy: workers, a server, messages."""

import numpy as np


def identity(x):
    """No compression."""
    return x


def top_k(fraction):
    """The largest entries of the whole matrix, and zero elsewhere."""

    def compress(x):
        kept = round(fraction * x.size)
        out = np.zeros(x.size)
        largest = np.argsort(-np.abs(x.ravel()), kind="stable")[:kept]
        out[largest] = x.ravel()[largest]
        return out.reshape(x.shape)

    return compress


def rank_k(fraction):
    """The best approximation of a rank."""

    def compress(x):
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        r = round(fraction * min(x.shape))
        return (u[:, :r] * s[:r]) @ vt[:r]

    return compress


def natural(x):
    """Every entry to the nearest power of two, halfway up in linear distance."""
    mantissa, exponent = np.frexp(np.abs(x))  # |x| = mantissa·2^exponent, ½ ≤ mantissa
    power = np.where(mantissa >= 0.75, 1.0, 0.5)
    return np.sign(x) * np.ldexp(power, exponent)


def ef21_muon(
    x, gradient, num_workers, lmos, radius, beta, worker, server, sets, follow=None
):
    """(W, X) after each step; the box as it stands, step by step and layer by layer.

    Args:
      x: X⁰ = W⁰, matrices by name.
      gradient: (W, j, k) -> ∇f_j(W; ξ_jᵏ), by name.
      num_workers: n.
      lmos: the oracle (G, t) -> argmin of each name.
      radius: t of each name.
      beta: β, the weight of the new gradient.
      worker: 𝒞_j of each name.
      server: 𝒞 of each name; None is the identity.
      sets: the names that move at each step k.
      follow: (W, X) of another program after each step, from which the next goes on,
        so that differences of roundings are not carried on; None is the box's own.
    """
    X, W = dict(x), dict(x)
    zeros = {name: np.zeros_like(value) for name, value in x.items()}
    M = [dict(zeros) for _ in range(num_workers)]
    G_j = [dict(zeros) for _ in range(num_workers)]
    G = dict(zeros)
    trajectory = []
    for k, moving in enumerate(sets):
        gradients = [gradient(W, j, k) for j in range(num_workers)]
        X, W, G = dict(X), dict(W), dict(G)
        for name in moving:
            messages = []
            for j in range(num_workers):
                new = gradients[j][name]
                M[j][name] = (1 - beta) * M[j][name] + beta * new
                R = worker[name](M[j][name] - G_j[j][name])
                G_j[j][name] = G_j[j][name] + R
                messages.append(R)
            G[name] = G[name] + sum(messages) / num_workers
            X[name] = X[name] + lmos[name](G[name], radius[name])
            S = X[name] - W[name]
            W[name] = W[name] + (server[name](S) if server else S)
        trajectory.append((W, X))
        if follow is not None:
            W, X = follow[k]
    return trajectory
