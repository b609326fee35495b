"""Trees of public models, each leaf with what an expert says it is.

A line is a path, a shape, a role and the matrices of its view (number x fan_in x
fan_out). `{a,b}` stands for a line each. A role with "?" is what may be guessed, but
has to be shown as a guess. The role of a convolution has its extents in space.
"""

import itertools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Expected(NamedTuple):
    shape: tuple[int, ...]
    role: str
    spatial: tuple[int, ...]
    guessed: bool
    matrices: tuple[int, ...]


def read_table(table: str) -> dict[str, Expected]:
    found = {}
    for row in table.strip().splitlines():
        path, shape, role, matrices = row.split()
        name, extents, mark = re.fullmatch(r"(\w+)(?:\((.*)\))?(\??)", role).groups()
        for choice in expand(path):
            assert choice not in found, choice
            found[choice] = Expected(
                numbers(shape, ","), name, numbers(extents, ","), bool(mark),
                numbers(matrices, "x"),
            )  # fmt: skip
    return found


def numbers(text: str | None, separator: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(separator))) if text and text != "()" else ()


def expand(path: str) -> list[str]:
    parts = re.split(r"\{(.*?)\}", path)
    choices = [p.split(",") if i % 2 else [p] for i, p in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def as_dict(table: str) -> Any:
    """The tree as linen and nnx have it: dictionaries."""
    tree: dict[str, Any] = {}
    for path, leaf in read_table(table).items():
        *modules, last = path.split("/")
        node = tree
        for key in modules:
            node = node.setdefault(key, {})
        node[last] = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    return tree


@jax.tree_util.register_pytree_with_keys_class
class Module:
    """The tree as Equinox has it: attributes, and lists of modules."""

    def __init__(self, fields: dict[str, Any]):
        self.fields = fields

    def tree_flatten_with_keys(self):
        keys = tuple(self.fields)
        attributes = [jax.tree_util.GetAttrKey(key) for key in keys]
        return list(zip(attributes, self.fields.values(), strict=True)), keys

    @classmethod
    def tree_unflatten(cls, keys, values):
        return cls(dict(zip(keys, values, strict=True)))


def as_attributes(table: str) -> Any:
    def convert(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if all(key.isdigit() for key in node):
            return [convert(node[key]) for key in sorted(node, key=int)]
        return Module({key: convert(value) for key, value in node.items()})

    return convert(as_dict(table))
