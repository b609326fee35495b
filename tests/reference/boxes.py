"""One step of each algorithm, written from its formulas, on a list of matrices."""

import numpy as np


def muon_step(x, m, g, *, lr, beta, decay, nesterov, orthogonalize):
    """Keller Jordan's update of one matrix (n_in, n_out) and its buffer."""
    m = m + (1 - beta) * (g - m)  # buf.lerp_(g, 1 - beta)
    u = g + beta * (m - g) if nesterov else m  # g.lerp(buf, beta)
    rows, columns = g.shape[1], g.shape[0]  # his matrices are (n_out, n_in)
    update = orthogonalize(u) * np.sqrt(max(1, rows / columns))
    x = x * (1 - lr * decay)
    return x - lr * update, m


def adamw_step(x, state, g, *, lr, b1, b2, eps, decay, nesterov=False):
    """AdamW with bias correction, or NAdam; `state` is (first, second moment, k)."""
    first, second, k = state
    k = k + 1
    first = b1 * first + (1 - b1) * g
    second = b2 * second + (1 - b2) * g**2
    mean = first / (1 - b1**k)
    if nesterov:  # Dozat, Incorporating Nesterov momentum into Adam, algorithm 8
        mean = b1 * first / (1 - b1 ** (k + 1)) + (1 - b1) * g / (1 - b1**k)
    direction = mean / (np.sqrt(second / (1 - b2**k)) + eps)
    return x - lr * (direction + decay * x), (first, second, k)


def scion_step(x, m, g, *, lr, alpha, radius, maximizer, constrained):
    """Algorithms 1 and 2; `alpha` is the weight of the new gradient."""
    m = (1 - alpha) * m + alpha * g
    lmo = -maximizer(m)
    if constrained:
        return (1 - lr) * x + lr * radius * lmo, m
    return x + lr * radius * lmo, m


def gluon_step(x, m, g, *, t, beta, maximizer):
    """Algorithm 1: a step of length t in the layer's norm."""
    m = beta * m + (1 - beta) * g
    return x - t * maximizer(m), m


def gluon_adaptive_radius(g, dual_norm, l0, l1):
    """Theorem 1: t = ‖g‖⋆/(L⁰ + L¹‖g‖⋆)."""
    return dual_norm(g) / (l0 + l1 * dual_norm(g))
