"""A disk that fills while a checkpoint is written: one line, and the last one is whole.

Where a file may not grow (`RLIMIT_FSIZE`), and on a small disk of its own (`tmpfs`, if
this user may mount one): processes go on from a checkpoint and can't write the next.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from benchmarks.common import record
from benchmarks.ef21_muon import loop
from benchmarks.ef21_muon import workers as ef21_workers
from benchmarks.language import checkpoints, nanogpt

pytestmark = pytest.mark.usefixtures("standard_promotion", "text")

FULL = 70_000  # bytes: what is written to see whether a folder can be, and some more
GPT = "--data text --preset nano --steps 4 --evaluations 2 --validation-windows 2"
GPT += " --sample 1 --prompt a --optimizer adamw"
WORKERS = "--dataset text --preset nano --steps 4 --every 2 --batch-size 2 --length 8"
WORKERS += " --methods natural --processes 1"
IN_MOUNT = """
mount -t tmpfs -o {options} none "$1" || exit 77
cp -r "$2"/. "$1"
before=$1; after=$3; shift 3
"$@"; status=$?
cp -r "$before"/. "$after"
exit $status
"""


def limited(command, kept):
    """Runs a command where no file may be longer than `FULL`."""
    code = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, "
    code += f"({FULL}, resource.RLIM_INFINITY)); os.execv(sys.argv[1], sys.argv[1:])"
    return end_of([sys.executable, "-c", code, *command])


def mounted(options):
    """Runs a command on a disk of its own, with the checkpoints that there are."""

    def run(command, kept):
        used = sum(x.stat().st_blocks * 512 for x in kept.rglob("*"))
        script = IN_MOUNT.format(options=options.format(size=used + FULL))
        saved, after = kept.with_name("saved"), kept.with_name("after")
        shutil.copytree(kept, saved)
        after.mkdir()
        inside = ["sh", "-c", script, "sh", str(kept), str(saved), str(after)]
        if not shutil.which("unshare"):
            pytest.skip("there is no `unshare` to mount a disk with")
        done = end_of(["unshare", "-rm", *inside, *command])
        if done.returncode == 77 or "unshare failed" in done.stderr:
            pytest.skip("this user may not mount a disk")
        shutil.rmtree(kept)
        after.rename(kept)
        return done

    return run


def end_of(command):
    return subprocess.run(
        command,
        cwd=record.REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(record.REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def without_steps(folder, *steps):
    for step in steps:
        shutil.rmtree(folder / str(step))


def check_end(done, kept, step):
    """One line that says it, and what was there before is there and whole."""
    *_, line = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert f"checkpoint {step} could not be written to" in line
    assert line.endswith("those before it are kept")
    assert "Traceback" not in done.stderr
    assert checkpoints.damage(kept / "2") is None


HOW = {"file size": limited, "disk": mounted("size={size}")}


@pytest.mark.parametrize("how", HOW)
def test_a_gpt(how, tmp_path, capsys):
    kept = tmp_path / "kept"
    arguments = [*GPT.split(), "--output", str(tmp_path), "--checkpoint", str(kept)]
    assert nanogpt.main(arguments) == 0
    (whole,) = record.read(tmp_path / "nanogpt.jsonl")
    without_steps(kept, 4)  # as if it had died before
    sizes = [path.stat().st_size for path in (kept / "2").rglob("*") if path.is_file()]
    assert max(sizes) > FULL

    command = [sys.executable, "-m", "benchmarks.nanogpt", *arguments]
    check_end(HOW[how](command, kept), kept, 4)

    assert nanogpt.main(arguments) == 0  # with room again it goes on, to the same end
    again = record.read(tmp_path / "nanogpt.jsonl")[-1]
    assert again["num_restored_points"] == 2
    for key in ("validation_loss", "train_loss"):
        assert [p[key] for p in again["history"]] == [p[key] for p in whole["history"]]


def test_workers(tmp_path):
    kept = tmp_path / "kept"
    arguments = [*WORKERS.split(), "--output", str(tmp_path)]
    arguments += ["--checkpoints", str(kept)]
    plan = ef21_workers.plan_of(ef21_workers.parse(arguments), "natural", 1)
    store = checkpoints.Store(kept / "natural", plan._asdict())
    with ef21_workers.workers.Progress(4) as progress:
        loop.run(loop.build(plan), store, False, progress, 0)
    store.close()
    without_steps(kept / "natural", 4)
    command = [sys.executable, "-m", "benchmarks.ef21_workers", *arguments, "--resume"]
    done = HOW["disk"](command, kept)
    check_end(done, kept / "natural", 4)
    said = [x for x in done.stderr.splitlines() if not x.startswith("ef21_workers: ")]
    assert [x for x in said if x.strip() and "steps/s" not in x and "it" not in x] == []


READ_ONLY = mounted("ro")


@pytest.mark.parametrize("program", ["nanogpt", "ef21_workers"])
def test_a_disk_that_is_read_only_is_refused_before_training(program, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    option = "--checkpoint" if program == "nanogpt" else "--checkpoints"
    small = GPT if program == "nanogpt" else WORKERS
    arguments = [*small.split(), "--output", str(tmp_path), option, str(kept)]
    done = READ_ONLY([sys.executable, "-m", f"benchmarks.{program}", *arguments], kept)
    *_, line = done.stderr.splitlines()
    assert done.returncode == 2
    assert "must be a folder that can be written to, got" in line
    assert "Read-only file system" in line


def test_a_method_whose_folder_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "kept").mkdir()
    pathlib.Path(tmp_path, "kept", "natural").write_text("")
    arguments = [*WORKERS.split(), "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        ef21_workers.main([*arguments, "--checkpoints", str(tmp_path / "kept")])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must be a folder that can be written to, got" in line


def test_a_folder_that_holds_a_run_needs_resume(tmp_path, capsys):
    (tmp_path / "kept" / "natural" / "4").mkdir(parents=True)
    arguments = [*WORKERS.split(), "--output", str(tmp_path)]
    arguments += ["--checkpoints", str(tmp_path / "kept")]
    with pytest.raises(SystemExit) as stopped:
        ef21_workers.parse(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds a run of natural: go on from it with --resume" in line
    assert ef21_workers.parse([*arguments, "--resume"]).resume
