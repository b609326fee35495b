"""Eight virtual CPU devices, strict promotion, and one key for every test."""

import os

# Before the first import of jax: the number of devices is fixed when it starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def without_type_checks():
    """Lets bad input through to the package's own checks, as users meet them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def standard_promotion():
    """For programs with Optax's own Adam and schedules, which mix ints and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield
