"""Random cases of norms, compressors and samplings, and what must come of each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import dropmuon_optax as dm
from dropmuon_optax import compressors, samplings
from tests.fuzz.oracles import NORMS, Known, check_step
from tests.fuzz.values import KINDS, NOT_FINITE, array, claim, lost, seen

FLOATS = (
    "float32",
    "bfloat16",
    "float16",
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
)
DTYPES = (*FLOATS[:3], *FLOATS, "int32", "bool", "complex64")
MATRICES = ((0, 3), (3, 0), (1, 1), (1, 5), (5, 1), (4, 4), (6, 3), (3, 7))
SHAPES = (*MATRICES, *MATRICES[3:], *MATRICES[3:], (), (3,), (2, 2, 2))
RADII = (1.0, 2.5, 0.0, 1e-3, 3000.0, 1e30)


def pick(*choices: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(choices)


@dataclasses.dataclass(frozen=True)
class Values:
    """An array by what it holds."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    seed: int

    def make(self) -> jax.Array:
        return jnp.asarray(array(self.kind, self.shape, self.dtype, self.seed))

    @property
    def is_finite(self) -> bool:
        whole = not jnp.issubdtype(self.dtype, jnp.inexact)
        return whole or self.kind not in NOT_FINITE or 0 in self.shape

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2 and jnp.issubdtype(self.dtype, jnp.floating)


def values(shapes: Any = SHAPES, dtypes: Any = DTYPES) -> st.SearchStrategy[Values]:
    seeds = st.integers(0, 2**16)
    return st.builds(Values, pick(*KINDS), pick(*shapes), pick(*dtypes), seeds)


@dataclasses.dataclass(frozen=True)
class OfNorm:
    """The oracle of one matrix."""

    number: int
    x: Values
    radius: float
    traced: bool

    family = "norms"

    def run(self) -> str:
        known = NORMS[self.number]
        x, t = self.x.make(), self.radius
        if not self.x.is_matrix:
            refuses(lambda: known.norm.lmo(x, t), "`g`")
            refuses(lambda: known.norm.norm(x), "`x`")
            refuses(lambda: known.norm.dual_norm(x), "`g`")
            return "refused"
        if _too_large(known, self.x, t):
            refuses(lambda: known.norm.lmo(x, t), "`radius`")
            return "refused"
        radius = jnp.asarray(t, x.dtype) if self.traced else t
        step = -known.norm.lmo(x, radius)
        claim((step.shape, step.dtype) == (x.shape, x.dtype), "another shape or dtype")
        found, g = np.asarray(step).astype(np.float64), seen(x)
        if not self.x.is_finite:
            claim(np.isnan(found).all(), "a plausible step of what is not finite")
            claim(not np.isfinite(known.norm.norm(x)), "a finite norm")
            claim(not np.isfinite(known.norm.dual_norm(x)), "a finite dual norm")
            return "not finite, and says so"
        if g.size:
            t = float(np.asarray(radius).astype(np.float64))
            check_step(known, g, found, t, 8 * float(jnp.finfo(x.dtype).eps), x.dtype)
            _check_lengths(known, x, g)
        return "agrees"


def _too_large(known: Known, x: Values, t: float) -> bool:
    """Whether the step has entries that its dtype has not."""
    unit = np.zeros(x.shape)
    if not unit.size:
        return False
    unit[0, 0] = 1.0
    return t * known.dual(unit) > 0.5 * float(jnp.finfo(x.dtype).max)


def _check_lengths(known: Known, x: Any, g: np.ndarray) -> None:
    """‖x‖ and ‖x‖⋆, unless they are beyond the dtype that they are computed in."""
    for name, function, wanted in (
        ("norm", known.norm.norm, known.value),
        ("dual norm", known.norm.dual_norm, known.dual),
    ):
        found = function(x)
        largest = np.abs(g).max(initial=0.0)
        with np.errstate(over="ignore"):
            expected = largest * wanted(g / largest) if largest else 0.0
        limits = jnp.finfo(found.dtype)
        if expected > float(limits.max):
            claim(np.isposinf(found), f"a {name} beyond its dtype is no infinity")
            continue
        room = 64 * g.size * 2.0**-23 * expected + float(limits.smallest_normal)
        claim(abs(float(found) - expected) <= room, f"the {name}: {found}, {expected}")


COMPRESSORS = (
    compressors.Identity(),
    compressors.BFloat16(),
    compressors.Natural(),
    compressors.Natural(stochastic=True),
    compressors.Natural(bits=8),
    compressors.TopK(0.4),
    compressors.TopK(0.1),
    compressors.TopK(0.5, block=4),
    compressors.ColumnTopK(0.5),
    compressors.RankK(0.5),
    compressors.RankK(0.5, num_steps=2),
    compressors.RankK(0.5, warm_start=True),
    compressors.RankK(0.5, exact=True),
    compressors.RandK(0.5),
    compressors.Damping(0.5),
    compressors.Damping(1.5),
    compressors.Dropout(0.5),
    compressors.ScaledSign(),
    compressors.Composed(compressors.TopK(0.5), compressors.Natural()),
    compressors.Composed(compressors.RankK(0.5), compressors.BFloat16()),
    compressors.Composed(compressors.ScaledSign(), compressors.Natural(bits=8)),
)


@dataclasses.dataclass(frozen=True)
class OfCompressor:
    """One matrix there and back."""

    compressor: compressors.Compressor
    x: Values
    key: int

    family = "compressors"

    def run(self) -> str:
        c, x, key = self.compressor, self.x.make(), jax.random.key(self.key)
        if not self.x.is_matrix:
            refuses(lambda: c.compress(x, key=key), "`x`")
            return "refused"
        if x.size and not _keeps_something(c, x.shape):
            refuses(lambda: c.compress(x, key=key), "`fraction`")
            refuses(lambda: c.check(x.shape, "a/b"), "'a/b'")
            return "refused"
        payload = c.compress(x, key=key)
        claim(
            c.num_bits(x.shape) == 8 * sum(a.nbytes for a in jax.tree.leaves(payload)),
            "other bits",
        )
        found = c.decompress(payload, x.shape)
        claim(
            (found.shape, found.dtype) == (x.shape, jnp.float32),
            "(found.shape, found.dtype) == (x.shape, jnp.float32)",
        )
        found = np.asarray(found, np.float64)
        with np.errstate(over="ignore"):
            g = seen(np.asarray(x).astype(np.float32))
        if not np.isfinite(g).all():
            claim(not np.isfinite(found).all(), "finite, of what is not")
            return "not finite, and says so"
        if not g.size:
            return "agrees"
        claim(np.isfinite(found).all(), "a finite matrix comes back as no finite one")
        return self._contracts(g, found)

    def _contracts(self, g: np.ndarray, found: np.ndarray) -> str:
        c, largest = self.compressor, np.abs(g).max()
        if largest == 0:
            claim(np.abs(found).max() < 2.0**-126, "zero does not go to zero")
            return "zero"
        alpha = c.alpha(g.shape)
        if largest > 2.5e38 and "Natural" in repr(c):
            alpha *= 0.75 / (8 / 9)  # no power of two above: an error of 1/2, not 1/3
        if c.random or "RankK" in repr(c):
            alpha = 0.0 if "Composed" not in repr(c) else -0.1
        unit = ((g / largest) ** 2).sum()
        loss = (((found - g) / largest) ** 2).sum()
        small = lost(np.float32) / largest
        room = 2 * small * np.sqrt(g.size * unit) + g.size * small**2
        claim(loss <= (1 - alpha + 1e-4) * unit + room, f"no contraction: {loss}")
        may_be_zero = isinstance(c, compressors.RandK | compressors.Dropout)
        if largest >= 1e-36 and not may_be_zero:
            claim(found.any(), "zero, of what is not")
        return "agrees"


def _keeps_something(c: Any, shape: tuple[int, ...]) -> bool:
    """Whether fractions of a shape's sides round to something, by arithmetic."""
    m, n = shape
    if isinstance(c, compressors.Composed):
        return _keeps_something(c.outer, shape)
    sizes = {
        compressors.TopK: _block(m * n, getattr(c, "block", None)),
        compressors.RandK: _block(m * n, getattr(c, "block", None)),
        compressors.ColumnTopK: n,
        compressors.RankK: min(m, n),
    }
    size = sizes.get(type(c))
    return size is None or round(c.fraction * size) >= 1


def _block(size: int, at_most: int | None) -> int:
    count = 1 if at_most is None else -(-size // at_most)
    while np.gcd(count, size) > 1:
        count += 1
    return -(-size // count)


SAMPLINGS = (
    samplings.Full(),
    samplings.Progressive(),
    samplings.Progressive((0.25, 0.25, 0.5)),
    samplings.Independent((0.5, 0.0, 1.0)),
    samplings.Nice(1),
    samplings.Nice(3),
    samplings.RoundRobin(),
    samplings.LinearShift(10),
    samplings.EpochShift(10),
    samplings.StochasticDepth((1.0, 0.5, 0.5)),
    samplings.Grown(((0, (True, False, True)), (5, (True, True, True)))),
)


@dataclasses.dataclass(frozen=True)
class OfSampling:
    """The set of a step, on the device and on the host."""

    sampling: samplings.Sampling
    num_layers: int
    step: int
    seed: int
    raw: bool

    family = "samplings"

    def run(self) -> str:
        key: Any = jax.random.key(self.seed)
        if self.raw:
            key = np.asarray(jax.random.key_data(key))
        b, sampling = self.num_layers, self.sampling
        try:
            sampling.check(b)
        except ValueError as error:
            claim("`" in str(error), "'`' in str(error)")
            refuses(lambda: dm.active_layers(sampling, b, key, self.step), "`")
            return "refused"
        if not 0 <= self.step < 2**31:
            refuses(lambda: dm.active_layers(sampling, b, key, self.step), "`step`")
            return "refused"
        host = dm.active_layers(sampling, b, key, self.step)
        typed = jax.random.wrap_key_data(
            jnp.asarray(jax.random.key_data(jax.random.key(self.seed))),
            impl="threefry2x32",
        )
        count = jnp.asarray(self.step, jnp.int32)
        drawn = sampling.sample(b, count, key=jax.random.fold_in(typed, count))
        claim(
            (drawn.shape, drawn.dtype) == ((b,), jnp.bool_),
            "(drawn.shape, drawn.dtype) == ((b,), jnp.bool_)",
        )
        claim(tuple(drawn.tolist()) == host, "host and device draw other sets")
        p = sampling.marginals(b, self.step)
        claim(((p >= 0) & (p <= 1)).all(), "no probabilities")
        claim(not drawn[p == 0].any(), "what has probability zero moves")
        claim(drawn[p == 1].all(), "what always moves does not")
        claim(any(host) or sampling.can_be_empty(b), "an empty set")
        return "agrees"


def refuses(call: Any, named: str) -> None:
    """Whether a call is refused by us, before anything is computed, by name."""
    try:
        call()
    except (ValueError, TypeError) as error:
        claim(is_ours(error), f"a bare {type(error).__name__}: {error}")
        claim(named in str(error), f"no {named} in the message: {error}")
        return
    raise AssertionError(f"{named} is not refused")


def is_ours(error: BaseException) -> bool:
    """Whether the package raised it itself."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename if trace else ""
    return "/dropmuon_optax/" in file


def norm_cases() -> Any:
    numbers = st.integers(0, len(NORMS) - 1)
    return st.builds(OfNorm, numbers, values(), pick(*RADII), st.booleans())


def compressor_cases() -> Any:
    return st.builds(OfCompressor, pick(*COMPRESSORS), values(), st.integers(0, 2**16))


def sampling_cases() -> Any:
    steps = st.one_of(
        st.integers(0, 50), pick(2**31 - 2, 2**31 - 1, 2**31, -1, 1023, 1024)
    )
    return st.builds(
        OfSampling,
        pick(*SAMPLINGS),
        pick(1, 2, 3, 3, 3, 7),
        steps,
        st.integers(0, 2**31 - 1),
        st.booleans(),
    )
