"""The programs that pages print, and what they expect to find: a network, batches."""

import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dropmuon_optax as dm

ROOT = pathlib.Path(__file__).parents[1]
VOCABULARY, WIDTH, NUM_BLOCKS, BATCH = 11, 8, 3, 16


class Block(NamedTuple):
    """A program, and the output that stands below it, or None."""

    line: int
    program: str
    output: str | None


FENCES = re.compile(
    r"^```python[^\n]*\n(?P<program>.*?)^```\n"
    r'(?:\n*```text title="output"\n(?P<output>.*?)^```\n)?',
    re.DOTALL | re.MULTILINE,
)


def blocks(path):
    """The blocks of Python on a page, in order."""
    text = path.read_text()
    return [
        Block(text.count("\n", 0, found.start()) + 1, *found.groups())
        for found in FENCES.finditer(text)
    ]


def program(path, first_line):
    """The page's block of Python that begins so, compiled."""
    (found,) = (block for block in blocks(path) if block.program.startswith(first_line))
    return compile(found.program, path.name, "exec")


def loss_fn(params, batch):
    """Of a network with the pages' names, on pairs (token, token)."""
    x = params["embed"]["embedding"][batch[:, 0]]
    for i in range(NUM_BLOCKS):
        block = params[f"blocks_{i}"]
        x = x + jnp.tanh(block["scale"] * (x @ block["kernel"]) + block["bias"])
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1]).mean()


def network():
    """Its parameters, a dict."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32) / 4

    blocks = {
        f"blocks_{i}": {
            "kernel": normal(WIDTH, WIDTH),
            "bias": normal(WIDTH),
            "scale": 1 + normal(WIDTH),
        }
        for i in range(NUM_BLOCKS)
    }
    return {
        "embed": {"embedding": normal(VOCABULARY, WIDTH)},
        **blocks,
        "head": {"kernel": normal(WIDTH, VOCABULARY), "bias": normal(VOCABULARY)},
    }


def batch_of(seed):
    """Tokens and their successors."""
    tokens = np.random.default_rng(seed).integers(VOCABULARY, size=BATCH)
    return jnp.asarray(np.stack([tokens, (tokens + 1) % VOCABULARY], axis=1))


def reader_has(num_batches=8):
    """The names that a reader of the guide's pages has in their own program."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return {
        "dm": dm,
        "jax": jax,
        "jnp": jnp,
        "optax": optax,
        "params": network(),
        "loss_fn": loss_fn,
        "mesh": mesh,
        "batch": batch_of(0),
        "batches": [batch_of(seed) for seed in range(num_batches)],
    }
