"""Payloads as rows of bytes: what is compressed is what is sent.

Only unsigned integers go through the collectives: compilers widen narrow floats on
their way (XLA's CPU backend sends bfloat16 as float32), and leave bytes alone.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from dropmuon_optax.compressors import Compressor


def encode(
    compressor: Compressor, stack: Float[Array, "k m n"], memory: Any, keys: Any
) -> tuple[UInt8[Array, "k size"], Any]:
    """C of every matrix of a stack, as bytes; and what `compressor` remembers.

    Args:
      compressor: 𝒞.
      stack: k matrices.
      memory: the compressor's states, with a leading axis of length k.
      keys: k keys for random numbers.
    """
    payload, memory = jax.vmap(lambda x, s, k: compressor.compress_with(x, s, key=k))(
        stack, memory, keys
    )
    return to_bytes(payload), memory


def decode(
    compressor: Compressor, rows: UInt8[Array, "k size"], shape: tuple[int, int]
) -> Float[Array, "k m n"]:
    """The matrices that the payloads in `rows` stand for, float32."""
    struct = compressor.payload_shapes(shape)

    def one(row: UInt8[Array, " size"]) -> Float[Array, "m n"]:
        return compressor.decompress(from_bytes(row, struct), shape)

    return jax.vmap(one)(rows)


def to_bytes(payload: Any) -> UInt8[Array, "k size"]:
    """Payloads, stacked leaf by leaf, as rows of bytes.

    >>> to_bytes({"a": jnp.array([[1.0]]), "b": jnp.array([[7]], jnp.uint8)})
    Array([[  0,   0, 128,  63,   7]], dtype=uint8)
    """
    rows = []
    for leaf in jax.tree.leaves(payload):
        raw = jax.lax.bitcast_convert_type(leaf, jnp.uint8)
        rows.append(raw.reshape(leaf.shape[0], -1))
    return jnp.concatenate(rows, axis=1)


def from_bytes(row: UInt8[Array, " size"], struct: Any) -> Any:
    """The inverse of `to_bytes` for one row; `struct` holds shapes and dtypes."""
    leaves, structure = jax.tree.flatten(struct)
    found, start = [], 0
    for leaf in leaves:
        width = leaf.dtype.itemsize
        stop = start + math.prod(leaf.shape) * width
        shape = leaf.shape if width == 1 else (*leaf.shape, width)
        raw = row[start:stop].reshape(shape)
        found.append(jax.lax.bitcast_convert_type(raw, leaf.dtype))
        start = stop
    return jax.tree.unflatten(structure, found)
