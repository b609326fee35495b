"""A run goes on over another number of devices: 8, then 4, then 8 again.

Three processes, by Orbax: weights and states that are sharded, raw and typed keys,
plain loops and `nnx.Optimizer`. Sums over devices are taken in another order, so the
numbers are the uninterrupted run's up to 16 roundings of each leaf's largest entry; the
sets that are drawn, the counters and the keys are the same.
"""

import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import restores

COUNT = re.compile(r"(--xla_force_host_platform_device_count)=\d+")
ROUNDINGS = 16


def start(folder: pathlib.Path, num_devices: int, *arguments: str) -> subprocess.Popen:
    flags = COUNT.sub(rf"\1={num_devices}", os.environ["XLA_FLAGS"])
    cache = str(jax.config.jax_compilation_cache_dir)
    variables = {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": cache}
    variables |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        [sys.executable, restores.__file__, str(folder), *arguments],
        env={**os.environ, **variables},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What the three processes have left."""
    folder = tmp_path_factory.mktemp("restores")
    for num_devices, *arguments in (
        (8, "0", "6", "--save-at", "2"),  # the uninterrupted one, too
        (4, "2", "4", "--save-at", "4"),
        (8, "4", "6"),
    ):
        process = start(folder, num_devices, *arguments)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("name", restores.CASES)
def test_another_number_of_devices(folder: pathlib.Path, name: str):
    whole = np.load(folder / f"{name}.0.6.npz")
    found = np.load(folder / f"{name}.4.6.npz")
    middle = np.load(folder / f"{name}.2.4.npz")
    assert found.files == whole.files
    assert sum(whole[leaf].ndim == 2 for leaf in whole.files) == 6  # and momentum
    moved = []
    for leaf in whole.files:
        expected = whole[leaf]
        assert found[leaf].dtype == expected.dtype
        if expected.dtype != np.float32:
            np.testing.assert_array_equal(found[leaf], expected, err_msg=leaf)
            continue
        atol = ROUNDINGS * np.finfo(np.float32).eps * np.abs(expected).max()
        np.testing.assert_allclose(
            found[leaf], expected, rtol=0, atol=atol, err_msg=leaf
        )
        moved.append(np.abs(found[leaf] - middle[leaf]).max() > 100 * atol)
    assert all(moved)  # or the bound would say nothing
