"""Eight virtual CPU devices, strict promotion, and one key for every test."""

import getpass
import itertools
import os
import pathlib
import tempfile

import jaxlib

# Before the first import of jax: the number of devices is fixed when it starts.
flags = ["--xla_force_host_platform_device_count=8"]
if jaxlib.__version__.startswith(("0.10.", "0.12.")):
    # XLA aborts on flags that it doesn't know, so only where they were tried.
    # Unoptimized code compiles five times faster, and tests run it once or twice.
    flags.append("--xla_backend_optimization_level=0")
if jaxlib.__version__.startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest

# Most of the tests' time is compilation; the two workers, and the next run, share it.
CACHE = pathlib.Path(tempfile.gettempdir(), f"dropmuon_optax_tests_{getpass.getuser()}")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Compiled programs are memory maps, some ten each, and Linux gives a process 65,530. A
# worker that runs half of these tests comes near that; with none left no thread starts,
# and a checkpointer's threads take the process down with them.
MAPS, MANY_MAPS = pathlib.Path("/proc/self/maps"), 20_000
finished = itertools.count(1)


def pytest_runtest_teardown():
    if next(finished) % 50 or not MAPS.exists():
        return
    if MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()


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
