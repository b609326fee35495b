"""The pairs of compressors that `ef21_muon` compares, by name.

`top20_natural/same`: each worker keeps 20 % of every block and sends it as signs and
powers of two, and so does the server. `top50_sign` sends which half of the entries is
kept, their signs and one magnitude: 1.5 bits an entry. `/dense` is a server that
compresses nothing.
"""

import argparse
from typing import Any, NamedTuple

from dropmuon_optax.compressors import (
    BFloat16,
    Composed,
    Compressor,
    Identity,
    Natural,
    RankK,
    ScaledSign,
    TopK,
)


def top(percent: int) -> Compressor:
    """Top-K of every block of 256 entries, natural values."""
    return Composed(TopK(percent / 100), Natural())


def sign(percent: int) -> Compressor:
    """Top-K of every block, one magnitude for all of them."""
    return Composed(TopK(percent / 100), ScaledSign())


def rank(percent: int, warm_start: bool = False) -> Compressor:
    """Rank-K by a fresh sketch, or from the last one on, natural factors."""
    return Composed(RankK(percent / 100, warm_start=warm_start), Natural())


COMPRESSORS: dict[str, Compressor] = {
    "identity": Identity(),
    "bfloat16": BFloat16(),
    "natural": Natural(),
    "scaled_sign": ScaledSign(),
    **{f"top{p}": TopK(p / 100) for p in (5, 10, 15, 20)},
    **{f"top{p}_natural": top(p) for p in (5, 10, 15, 20, 30, 40, 50)},
    **{f"top{p}_sign": sign(p) for p in (10, 20, 30, 50)},
    **{f"rank{p}": RankK(p / 100) for p in (5, 10, 20)},
    **{f"rank{p}_natural": rank(p) for p in (5, 10, 20)},
    **{f"rank{p}_warm_natural": rank(p, True) for p in (10, 20)},
}
SERVERS = ("dense", "natural", "scaled_sign", "same")


class Pair(NamedTuple):
    """What workers and server compress with; None: dense."""

    of_workers: Compressor
    of_server: Compressor | None


def pair(name: str) -> Pair:
    """The pair called `worker/server`; a server is one of `SERVERS` or a compressor.

    Examples:
        >>> pair("natural/same"), pair("top10/dense")[1]
        (Pair(of_workers=Natural(), of_server=Natural()), None)
    """
    worker, _, server = name.partition("/")
    servers: dict[str, Any] = {"dense": None, "same": COMPRESSORS.get(worker)}
    if worker not in COMPRESSORS or server not in {*COMPRESSORS, *servers}:
        raise ValueError(
            "a pair must be called worker/server with names of "
            f"{', '.join([*COMPRESSORS, 'dense', 'same'])}, got {name!r}"
        )
    return Pair(COMPRESSORS[worker], {**COMPRESSORS, **servers}[server])


def pair_name(text: str) -> str:
    """Reads the name of a pair from a command line."""
    try:
        pair(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def all_reduce_bytes(num_parameters: int, num_workers: int, width: int = 4) -> float:
    """Bytes that a worker sends in a ring all-reduce of a gradient.

    Examples:
        >>> all_reduce_bytes(100, 4)
        600.0
    """
    return 2 * (num_workers - 1) / num_workers * width * num_parameters
