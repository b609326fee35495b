"""What crosses the wire, as a noun: a contractive compressor C and its payload.

C belongs to the class B(α) where E‖C(x) − x‖² ≤ (1 − α)‖x‖² for every x, in a norm that
the compressor names; error feedback needs nothing else. A compressor sees one matrix
(m, n), and stacks come by `jax.vmap`. To add one, write `_compress`, `_decompress` and
`alpha` for float32 matrices; dtypes, non-finite values, sizes and their checks are
dealt with here, once, for all of them.
"""

import abc
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, PyTree

from dropmuon_optax import checks
from dropmuon_optax.nouns import Noun

Shape = tuple[int, int]
Payload = PyTree[Array]
State = PyTree[Array]

MAX_ENTRIES = 2**31  # positions are 32-bit integers


class Compressor(Noun, abc.ABC):
    """A compressor C ∈ B(α) of matrices, with what it sends.

    A payload is a dictionary of arrays whose shapes depend on the matrix's shape alone:
    float32 matrices, and unsigned integers of 8, 16 or 32 bits. Of a matrix without
    entries nothing is sent, and the dictionary is empty.

    Attributes:
      stateful: whether `init` returns memory that `compress_with` carries on.
      random: whether a key is needed.
      alpha_norm: the norm in which `alpha` holds: "Frobenius", or "every".
      is_dense: whether a payload may be as large as the matrix, on purpose.
      holds_floats: whether the payload has float32 matrices for another compressor.
      symmetric: whether it treats rows and columns alike: on xᵀ it contracts as on x
        and sends as many bits, so that whoever batches matrices may transpose some.
    """

    stateful: ClassVar[bool] = False
    random: ClassVar[bool] = False
    alpha_norm: ClassVar[str] = "Frobenius"
    is_dense: ClassVar[bool] = False
    holds_floats: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    @abc.abstractmethod
    def _compress(
        self, x: Float32[Array, "m n"], state: State, key: Any, arrives: Callable
    ) -> tuple[Payload, State]:
        """Payload and next state; `arrives` as in `compress_with`."""

    @abc.abstractmethod
    def _decompress(self, payload: Payload, shape: Shape) -> Float32[Array, "m n"]:
        """C(x) from the payload of a matrix of that shape."""

    @abc.abstractmethod
    def alpha(self, shape: Shape) -> float:
        """The contraction α ∈ (0, 1] for matrices of a shape, in `alpha_norm`.

        Args:
          shape: the shape (m, n).

        Returns:
          α with E‖C(x) − x‖² ≤ (1 − α)‖x‖² for every matrix x of that shape, up to
          rounding; the expectation is over the key. Rounding to the smallest normal
          number included: subnormal entries, below 2⁻¹²⁶, may count as zero, as they
          do in XLA's arithmetic.

        Raises:
          ValueError: if the compressor keeps nothing of such a matrix.
        """

    def coded_alpha(self, shape: Shape, inner: float) -> float:
        """The contraction once the payload's floats have been through B(inner).

        Args:
          shape: the shape (m, n).
          inner: the inner compressor's own α.

        Returns:
          α of the composition. As it stands here it holds where C is an orthogonal
          projection and the floats are its coordinates in an orthogonal basis of equal
          lengths, as is true of what keeps entries or columns: the inner error lies in
          the projection's range, orthogonal to x − C(x), so that the error is
          ‖x‖² − ‖C(x)‖² + (1 − inner)‖C(x)‖² = ‖x‖² − inner·‖C(x)‖², and ‖C(x)‖² is
          at least α‖x‖² (both in expectation).
        """
        return self.alpha(shape) * inner

    def init(self, shape: Shape) -> State:
        """The memory before the first matrix of that shape; () where there is none."""
        del shape
        return ()

    def compress(self, x: Float[Array, "m n"], *, key: Any = None) -> Payload:
        """What to send instead of x, without memory of earlier matrices.

        Args:
          x: a matrix of shape (m, n), in any unit; computed with in float32.
          key: a key of `jax.random`, used by random compressors only.

        Returns:
          The payload. If any entry of `x` is not finite, it decompresses to no finite
          matrix.

        Raises:
          ValueError: if `x` is no matrix, if nothing of it would be kept, or if a
            random compressor has no key.
        """
        checks.is_matrix("x", x)
        m, n = x.shape
        state = self.init((m, n)) if x.size else ()
        return self.compress_with(x, state, key=key)[0]

    def compress_with(
        self,
        x: Float[Array, "m n"],
        state: State,
        *,
        key: Any = None,
        arrives: Callable[[Array], Array] = lambda sent: sent,
    ) -> tuple[Payload, State]:
        """`compress` with memory.

        Args:
          x: a matrix of shape (m, n).
          state: what `init` or the last call returned.
          key: a key of `jax.random`, used by random compressors only.
          arrives: what becomes on its way of the first float matrix of the payload, if
            another compressor is put on top (see `Composed`): the rest of the payload
            may be fitted to it.

        Returns:
          The payload and the next state.

        Raises:
          ValueError: as `compress`.
        """
        checks.is_matrix("x", x)
        if self.random and key is None:
            raise ValueError(
                f"`key` must be a key of jax.random for {self!r}, got None"
            )
        if x.size == 0:
            return {}, state
        x = x.astype(jnp.float32)
        payload, state = self._compress(x, state, key, arrives)
        return self._poison(payload, jnp.isfinite(x).all()), state

    def decompress(self, payload: Payload, shape: Shape) -> Float32[Array, "m n"]:
        """C(x) from its payload.

        Args:
          payload: what `compress` returned.
          shape: the shape (m, n) of x.

        Returns:
          C(x) in float32, of shape (m, n).

        Raises:
          ValueError: if no matrix of that shape has such a payload.
        """
        expected = self.payload_shapes(shape)
        found = jax.tree.map(lambda a: (a.shape, str(a.dtype)), payload)
        wanted = jax.tree.map(lambda a: (a.shape, str(a.dtype)), expected)
        if found != wanted:
            raise ValueError(
                f"`payload` must be one of {self!r} for shape {shape}, {wanted}, "
                f"got {found}"
            )
        if 0 in shape:
            return jnp.zeros(shape, jnp.float32)
        return self._decompress(payload, shape)

    def payload_shapes(self, shape: Shape) -> PyTree[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the payload of a matrix of a shape."""
        return _payload_shapes(self, tuple(shape))

    def num_bits(self, shape: Shape) -> int:
        """How many bits the payload of a matrix of a shape takes.

        Args:
          shape: the shape (m, n).

        Returns:
          8 times the bytes of the payload's arrays; no more, no less is sent.

        Raises:
          ValueError: if nothing of such a matrix would be kept.
        """
        leaves = jax.tree.leaves(self.payload_shapes(shape))
        return 8 * sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves)

    def check(self, shape: Shape, path: str = "") -> None:
        """Refuses a shape that this compressor does not compress.

        Args:
          shape: the shape (m, n).
          path: where the matrix is in its tree, for the message.

        Raises:
          ValueError: naming the path, the shape and the numbers, if the shape is no
            matrix's, is larger than positions of 32 bits reach, if nothing would be
            kept, or if the payload is not smaller than the matrix in float32.
        """
        where = f" at {path!r}" if path else ""
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(
                f"`shape` must be (m, n) of at least (1, 1) for {self!r}{where}, "
                f"got {shape}"
            )
        if math.prod(shape) > MAX_ENTRIES:
            raise ValueError(
                f"`shape` must have at most {MAX_ENTRIES} entries for {self!r}{where}, "
                f"got {shape}, which has {math.prod(shape)}"
            )
        try:
            bits, dense = self.num_bits(shape), 32 * math.prod(shape)
        except ValueError as error:
            raise ValueError(f"{self!r}{where}, shape {shape}: {error}") from None
        if bits > dense or (bits == dense and not self.is_dense):
            raise ValueError(
                f"the payload of {self!r}{where} must be smaller than the matrix "
                f"itself, whose shape {shape} takes {dense} bits in float32, got "
                f"{bits} bits"
            )

    def _poison(self, payload: Payload, finite: Bool[Array, ""]) -> Payload:
        """The payload, with NaN for its floats unless the matrix was finite."""
        return jax.tree.map(
            lambda a: jnp.where(finite, a, jnp.nan) if _is_float(a) else a, payload
        )


def num_kept(name: str, fraction: float, size: int, what: str) -> int:
    """fraction·size, rounded to a whole number.

    Args:
      name: the argument's name, for the message.
      fraction: the fraction.
      size: of how many.
      what: the unit of `size`, for the message.

    Raises:
      ValueError: if it rounds to nothing.

    >>> num_kept("fraction", 0.1, 4, "rows")
    Traceback (most recent call last):
    ...
    ValueError: `fraction` must keep at least one of 4 rows, got 0.1, which rounds to 0
    """
    kept = round(fraction * size)
    if kept < 1:
        raise ValueError(
            f"`{name}` must keep at least one of {size} {what}, got {fraction}, which "
            "rounds to 0"
        )
    return kept


def check_fraction(fraction: Any) -> None:
    """Refuses what is no Python number in (0, 1], for it decides shapes."""
    if not checks.is_concrete(fraction):
        raise ValueError(f"`fraction` must be a number in (0.0, 1.0], got {fraction!r}")
    checks.in_range("fraction", fraction, 0.0, 1.0, open_low=True)


def _is_float(a: Array) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


@functools.lru_cache(maxsize=4096)
def _payload_shapes(compressor: Compressor, shape: Shape) -> Any:
    if len(shape) != 2:
        raise ValueError(f"`shape` must be (m, n), got {shape}")

    def send(x: Array) -> Payload:
        return compressor.compress(x, key=jax.random.key(0))

    return jax.eval_shape(send, jax.ShapeDtypeStruct(shape, jnp.float32))
