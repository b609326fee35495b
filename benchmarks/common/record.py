"""One JSON line per run: what was measured, and everything needed to measure it again.

Units stand in the keys: `step_time_s`, `compile_time_s`, `peak_memory_bytes`.
"""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "optax", "flax")
REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "benchmarks" / "results"  # the lines that the pages print
RESULTS = Path("results")  # of the folder where a program is started; git ignores it


def provenance(*, seed: int) -> dict[str, Any]:
    """What a result depends on beside its settings: code, versions, device, date."""
    device = jax.devices()[0]
    changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    versions = {
        f"{name}_version": importlib.metadata.version(name) for name in PACKAGES
    }
    return {
        "commit": git("rev-parse", "HEAD"),  # None outside a git checkout
        "dirty": bool(changes),  # anything but results differs from the commit
        **versions,
        "python_version": platform.python_version(),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "num_cpus": num_cpus(),
        "seed": seed,
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
    }


def num_cpus() -> int | None:
    """Cores that this process may run on: fewer than there are under `taskset`."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def git(*arguments: str) -> str | None:
    """What git prints about this checkout, or None if it is not one."""
    try:
        output = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()


def command() -> str:
    """The command line that runs this again, without this machine's paths."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else ""
    script = f"-m {name}" if spec else Path(sys.argv[0]).name
    return " ".join(["python", script, shlex.join(sys.argv[1:])]).strip()


def check_folder(name: str, folder: Path) -> None:
    """Refuses a folder in which nothing can be written; makes it if it isn't there.

    Raises:
        ValueError: Naming it, and why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a folder that can be written to, got {str(folder)!r}: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from None


def append(path: Path, entry: dict[str, Any]) -> None:
    """Adds one line to a file of JSON lines, wholly or not at all.

    The old content and the new line are written to a file beside it, which then takes
    its name, so neither a crash nor Ctrl-C leaves half a line. Two processes must not
    append to the same file at the same time. A line that can't be written, on a full
    disk say, is printed on standard error, so that what was measured is not lost.

    Raises:
        ValueError: If a value is not finite or not JSON.
        OSError: If it could not be written.
    """
    line = json.dumps(entry, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_bytes() if path.exists() else b""
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with whole.open("wb") as file:
            file.write(old + line.encode())
            file.flush()
            os.fsync(file.fileno())
        whole.replace(path)
    except OSError as error:
        print(f"not written to {path} ({error}):\n{line}", end="", file=sys.stderr)
        raise
    finally:
        whole.unlink(missing_ok=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a file of JSON lines, oldest first; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
