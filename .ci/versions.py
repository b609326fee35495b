"""Prints which versions this environment has."""

import importlib.metadata
import platform

NAMES = ("jax", "jaxlib", "optax", "flax", "numpy", "orbax-checkpoint", "equinox")

print("Python", platform.python_version())
for name in NAMES:
    print(name, importlib.metadata.version(name))
