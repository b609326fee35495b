"""The command line of `nanogpt`, and the defaults of each size."""

import argparse

from benchmarks.common import text, workers
from benchmarks.common.options import (
    Parser,
    add_output,
    count,
    folder,
    positive,
    rate,
    seed,
    within,
)
from benchmarks.language.methods import OPTIMIZERS
from benchmarks.language.steps import ADAM_SHARE, GROWTH, KEEP, OUTSIDE_SHARE
from benchmarks.models import nanogpt

# By preset: steps, windows in a batch, tokens of context, parts of a batch. Those of
# 124m are Scion's and Gluon's: 512 windows of 1024 tokens, 5100 steps.
SIZES = {
    "nano": (100, 8, 32, 1),
    "micro": (400, 8, 64, 1),
    "tiny": (800, 16, 64, 1),
    "small": (2000, 32, 256, 1),
    "124m": (5100, 512, 1024, 16),
}
DEFAULTS = {
    "radius": nanogpt.HIDDEN_RADIUS,
    "sign_radius": nanogpt.SIGN_RADIUS,
    "adam_share": ADAM_SHARE,
    "growth": GROWTH,
    "keep": KEEP,
    "outside_share": OUTSIDE_SHARE,
}
SCHEDULES = {"124m": 1450 / 5100}  # the share of Scion's warm-down; else WARM_DOWN
WARM_DOWN = 0.5


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; unknown names end the program with the known ones."""
    parser = Parser(
        prog="python -m benchmarks.nanogpt",
        description="Trains a GPT with one optimizer.",
    )
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="muon")
    parser.add_argument(
        "--lr", type=rate, help="peak learning rate; default: by optimizer"
    )
    parser.add_argument("--checkpoint", type=folder, help="folder to go on from")
    parser.add_argument(
        "--stop-at", type=positive, help="end at the first evaluation from this step on"
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="over several hosts, by jax.distributed: on a cluster that it knows, or "
        f"by {workers.ADDRESS}, {workers.NUM_PROCESSES} and {workers.RANK}",
    )
    parser.add_argument(
        "--sample", type=count, default=300, help="tokens of text at end"
    )
    parser.add_argument(
        "--prompt", type=prompt, default="\n", help="what that text starts with"
    )
    add_common(parser)
    parser.add_argument(
        "--seed",
        dest="seeds",
        type=lambda text: [seed(text)],
        default=[0],
        help="of weights, batches, and the layers that move",
    )
    options = parser.parse_args(arguments)
    check_used(parser, options, [options.optimizer])
    fill_in(options)
    return options


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds what `nanogpt` and `sweep` have in common."""
    parser.add_argument(
        "--data",
        choices=text.DATASETS,
        help="text to train on; default: shakespeare or, where that is neither on disk "
        "nor to be had by network, project, the package's own source",
    )
    parser.add_argument(
        "--tokens",
        choices=text.TOKENIZERS,
        help="default: char for a text",
    )
    parser.add_argument("--preset", choices=list(nanogpt.PRESETS), default="tiny")
    parser.add_argument(
        "--scan", action="store_true", help="scan over the blocks instead of unrolling"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    by_preset = "default: by preset"
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, help=by_preset)
    length.add_argument(
        "--budget", type=rate, help="the FLOPs of so many steps of all layers by Gluon"
    )
    parser.add_argument("--batch", type=positive, help=f"windows; {by_preset}")
    parser.add_argument("--length", type=positive, help=f"of context; {by_preset}")
    parser.add_argument("--accumulation", type=positive, help=f"parts; {by_preset}")
    parser.add_argument(
        "--warm-down",
        type=share_or_none,
        help="share of steps in which the rate falls",
    )
    parser.add_argument("--radius", type=rate, help="of blocks' matrices")
    parser.add_argument("--sign-radius", type=rate, help="of embedding, head")
    parser.add_argument("--adam-share", type=rate, help="of Muon's rate")
    parser.add_argument(
        "--growth", help="share of FLOPs:blocks, …, such as 0.3:1000,0.4:1100"
    )
    parser.add_argument(
        "--keep", type=share_or_none, help="how probable a block is there, or moves"
    )
    parser.add_argument(
        "--outside-share", type=rate, help="of a spectral step that a sign step has"
    )
    parser.add_argument("--evaluations", type=positive, default=20)
    parser.add_argument("--validation-windows", type=positive, default=64)
    add_output(parser)


def fill_in(options: argparse.Namespace) -> None:
    """Gives what was left out the preset's value."""
    names = ("steps", "batch", "length", "accumulation")
    for name, value in zip(names, SIZES[options.preset], strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name, value in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.warm_down is None:
        options.warm_down = SCHEDULES.get(options.preset, WARM_DOWN)
    characters = options.data is None or options.data in text.CHARACTERS
    options.tokens = options.tokens or ("char" if characters else "gpt2")


def check_used(
    parser: argparse.ArgumentParser, options: argparse.Namespace, names: list[str]
) -> None:
    """Refuses what none of the optimizers uses, before it is filled in."""
    for option in DEFAULTS:
        used = any(option in OPTIMIZERS[name].options for name in names)
        if getattr(options, option) is not None and not used:
            users = [name for name, e in OPTIMIZERS.items() if option in e.options]
            parser.error(
                f"--{option.replace('_', '-')} is not used by {', '.join(names)}, but "
                f"by {', '.join(users)}"
            )


def share_or_none(text: str) -> float:
    """Reads a number in [0, 1]."""
    return within(text, "must lie in [0, 1]", lambda x: 0.0 <= x <= 1.0)


def prompt(text: str) -> str:
    """Reads a text that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("must have at least one token, got ''")
    return text
