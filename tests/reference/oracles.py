"""Maximizers of ⟨g, x⟩ over unit balls, matrix (n_in, n_out), and Newton–Schulz."""

import numpy as np


def polar(g):
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    rank = s > max(g.shape) * np.finfo(np.float64).eps * max(s[0], 1e-300)
    return (u * rank) @ vt


def newton_schulz(g, steps=5, abc=(3.4445, -4.7750, 2.0315)):
    """Keller Jordan's quintic, in the orientation of his code: transpose if tall."""
    a, b, c = abc
    x = g.T if g.shape[0] > g.shape[1] else g
    norm = np.linalg.norm(x)
    x = x / norm if norm > 0 else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def unit(v):
    norm = np.linalg.norm(v)
    return v / norm if norm > 0 else v


def scion_spectral(g, orthogonalize=polar):
    n_in, n_out = g.shape
    return np.sqrt(n_out / n_in) * orthogonalize(g)


def scion_conv(g, k, orthogonalize=polar):
    """g: (k·k·C_in, C_out)."""
    c_in, c_out = g.shape[0] / k**2, g.shape[1]
    return np.sqrt(c_out / c_in) / k**2 * orthogonalize(g)


def scion_sign(g):
    return np.sign(g) / g.shape[0]


def scion_bias(g):
    rms = np.sqrt(np.mean(g**2))
    return g / rms if rms > 0 else g


def scion_input_rows(g):
    """Every input unit's weights, a row, normalized: √n_out·g_i/‖g_i‖."""
    return np.stack([np.sqrt(g.shape[1]) * unit(row) for row in g])


def scion_output_columns(g):
    """Every output unit's weights, a column, normalized: g_j/(√n_in·‖g_j‖)."""
    return np.stack([unit(column) / np.sqrt(g.shape[0]) for column in g.T], axis=1)
