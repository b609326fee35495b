"""Unusual inputs by program: what was typed, on what files, and whether it may run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.trust.damage import NONE


class Input(NamedTuple):
    """A command line on the files of a fault."""

    arguments: str  # as in a shell; {data}: the folder of files, {file}: a file
    fault: str = ""  # of `damage.FAULTS`
    runs: bool = False  # whether it may
    variables: str = ""  # of the environment, as in a shell

    @property
    def shown(self) -> str:
        """In a line."""
        typed = " ".join(filter(None, (self.variables, self.arguments)))
        return " on ".join(filter(None, (f"`{typed}`" if typed else "", self.fault)))


class Program(NamedTuple):
    """A module, what makes its runs small, and its inputs."""

    module: str
    small: str  # arguments before those of an input
    inputs: Sequence[Input]


def each(option: str, *values: str) -> list[Input]:
    """Values of one option."""
    return [Input(f"{option}={value}") for value in values]


SEEDS = each("--seed", "-1", "1.5", "x", "2147483648")
OUTPUTS = each("--output", "{file}", "{file}/inside", "/proc/inside")

NANOGPT = [
    Input("", runs=True),
    *(Input("--batch 3 --accumulation 2"), Input("--length 2000000")),
    *(Input("--prompt €"), Input("--prompt ''"), Input("--unknown"), Input("extra")),
    *(Input("--tokens char --data wiki"), Input("--budget 5"), Input("--radius 1")),
    *SEEDS,
    *each("--steps", "0", "-3", "1e3", "99999999999999999999", ""),
    *each("--lr", "0", "-1", "nan", "inf", "1e999"),
    *each("--batch", "0", "-1", "2.5"),
    *each("--length", "0", "-1"),
    *each("--accumulation", "0", "7"),
    *each("--warm-down", "1.5", "-0.5", "nan"),
    *each("--evaluations", "0", "-1"),
    *each("--validation-windows", "0"),
    *each("--sample", "-1", "x"),
    *each("--stop-at", "0"),
    *each("--optimizer", "none", "''"),
    *(Input("--preset none"), Input("--dtype float16"), Input("--data none")),
    *(Input("--tokens none"), Input("--optimizer adamw --adam-share 1")),
    *(Input(f"--optimizer drop_muon_grown --growth={x}") for x in ("x", "2:1000")),
    *OUTPUTS,
    *each("--checkpoint", "{file}", "{file}/inside", "/proc/inside"),
    Input("--checkpoint {data}/used", "a run's checkpoints"),
    Input("--distributed"),
    Input("--distributed", variables="JAX_PROCESS_ID=0 JAX_NUM_PROCESSES=1"),
    *(
        Input("--distributed", variables=f"JAX_COORDINATOR_ADDRESS={address} {rest}")
        for address, rest in (
            ("nowhere", "JAX_PROCESS_ID=0 JAX_NUM_PROCESSES=1"),
            ("127.0.0.1:0x", "JAX_PROCESS_ID=0 JAX_NUM_PROCESSES=1"),
            ("127.0.0.1:9999", "JAX_PROCESS_ID=3 JAX_NUM_PROCESSES=2"),
            ("127.0.0.1:9999", "JAX_PROCESS_ID=x JAX_NUM_PROCESSES=2"),
        )
    ),
    Input("", variables="XLA_FLAGS=--xla_force_host_platform_device_count=3"),
    *(Input("--data fineweb"), Input("--data wiki"), Input("--data c4")),
    *(Input("", NONE), Input("--data shakespeare", NONE), Input("--tokens gpt2")),
    Input("--tokens gpt2", "gpt2: another encoding"),
    *(
        Input("", f"text: {how}")
        for how in ("empty", "not UTF-8", "UTF-8 cut inside a character", "3 bytes")
    ),
    *(Input("", "text: one character"), Input("", "text: a folder")),
    *(
        Input("--data shakespeare", f"Shakespeare: {how}")
        for how in ("another text", "1000 bytes", "empty")
    ),
    *(
        Input("--data wiki", f"wiki: {how}")
        for how in ("empty", "an odd number of bytes", "1000 bytes", "text",
                    "a token that is none", "no val.bin")
    ),
    *(
        Input("--data fineweb", f"fineweb: {how}")
        for how in ("another magic number", "another version", "cut",
                    "a header alone", "empty")
    ),
    Input("--prompt '\N{NULL}'", "text: NUL bytes", runs=True),
    Input("--evaluations 100 --validation-windows 5000 --sample 0", runs=True),
    Input("--length 1 --batch 1 --prompt abcdefghij", runs=True),
    Input("--lr 1e30", runs=True),
    Input("--stop-at 99", runs=True),
]  # fmt: skip

CNN = [
    Input("", runs=True),
    *each("--learning-rate", "muon=-1", "muon=nan", "muon=0", "none=1", "muon", ""),
    *each("--epochs", "0", "-3", "1.5"),
    *each("--batch-size", "0", "100000", "65"),
    *each("--limit", "0", "5"),
    *each("--target-accuracy", "2", "nan"),
    *each("--optimizers", "none", "''"),
    *each("--evaluations", "0", "-1"),
    *(Input("--model none"), Input("--dataset none"), Input("--unknown")),
    *SEEDS,
    *OUTPUTS,
    Input("--dataset mnist", NONE),
    *(
        Input("--dataset mnist", f"mnist: {how}")
        for how in ("cut", "empty", "not gzip", "labels alone")
    ),
    Input("--dataset cifar10", NONE),
    *(
        Input("--dataset cifar10", f"cifar10: {how}")
        for how in ("cut", "empty", "labels that are none")
    ),
    Input("--target-accuracy 1 --evaluations 50", runs=True),
]
DROP_CNN = [
    *each("--budgets", "-1", "0", "nan", "inf"),
    *each("--steps", "-1", "-3", "x"),
    Input("--steps 0 --budgets"),
    *each("--seeds", "-1", "x", ""),
    *each("--methods", "none", "''"),
    *each("--learning-rate", "muon=-1", "muon=nan", "none=1"),
    *each("--batch-size", "0", "100000"),
    *each("--name", "a/b", "..", "''"),
    *each("--epochs", "0", "-1"),
    *(Input("--rounds 0"), Input("--limit 0"), Input("--evaluations 0")),
    *(Input("--model none"), Input("--data none"), Input("--data mnist", NONE)),
    Input("--data mnist", "mnist: cut"),
    *OUTPUTS,
]
WORKERS = [
    Input(""),  # no cluster
    *each("--processes", "0", "-1", "x"),
    *each("--methods", "none", "''"),
    *each("--learning-rate", "-1", "0", "nan"),
    *each("--momentum", "1", "-0.1", "nan"),
    *each("--steps", "0", "-3"),
    *each("--every", "0"),
    *each("--batch-size", "0"),
    *each("--deadline", "0", "-1", "nan"),
    *(Input("--preset none"), Input("--dataset none"), Input("--unknown")),
    *SEEDS,
    *OUTPUTS,
    *each("--checkpoints", "{file}", "{file}/inside", "/proc/inside"),
    *(Input("--length 9999 --processes 2"), Input("--resume --processes 2")),
    Input("--checkpoints {data}/used --processes 1", "a run's checkpoints"),
    Input("--checkpoints {data}/used --resume --processes 1", "a run's checkpoints"),
    Input("--dataset wiki --processes 2", NONE),
    *(
        Input("--processes 2", f"text: {how}")
        for how in ("empty", "not UTF-8", "3 bytes", "a folder")
    ),
    Input("--processes 1", runs=True),
]
SMOOTHNESS = [
    *each("--model", "none", "''"),
    *each("--steps", "0", "-3", "x"),
    *each("--every", "0", "-1"),
    *SEEDS,
    *OUTPUTS,
    *(Input("--unknown"), Input("extra")),
    Input("--model nanogpt", NONE),
    *(Input("--model nanogpt", f"Shakespeare: {x}") for x in ("another text", "empty")),
]
ORACLE = [
    *each("--trees", "none", "''"),
    *each("--rounds", "0", "-1", "x"),
    *each("--optimizers", "none"),
    *SEEDS,
    *OUTPUTS,
    *(Input("--unknown"), Input("extra")),
]

PROGRAMS: Mapping[str, Program] = {
    "nanogpt": Program(
        "benchmarks.nanogpt",
        "--preset nano --data text --steps 2 --evaluations 1 --validation-windows 2 "
        "--sample 1 --prompt a",
        NANOGPT,
    ),
    "cnn": Program(
        "benchmarks.cnn",
        "--dataset digits --limit 64 --batch-size 32 --epochs 1 --evaluations 1 "
        "--optimizers muon",
        CNN,
    ),
    "drop_muon_cnn": Program(
        "benchmarks.drop_muon.cnn",
        "--data digits --limit 64 --batch-size 32 --steps 2 --seeds 0 --budgets 0.1 "
        "--evaluations 1 --rounds 1 --methods muon",
        DROP_CNN,
    ),
    "ef21_workers": Program(
        "benchmarks.ef21_workers",
        "--dataset text --preset nano --steps 2 --every 1 --length 8 --batch-size 2 "
        "--methods dense",
        WORKERS,
    ),
    "smoothness": Program("benchmarks.smoothness", "--model cnn --steps 2", SMOOTHNESS),
    "oracle": Program("benchmarks.oracle", "--trees tiny --rounds 1", ORACLE),
}
