"""JSON lines: whole or absent, and complete."""

import json
import resource

import pytest

from benchmarks.common import record


def test_lines_are_added_and_read_back(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    entries = [{"step_time_s": 0.1}, {"name": "µ", "history": [{"step": 1}]}]
    assert record.read(path) == []
    for entry in entries:
        record.append(path, entry)
    assert record.read(path) == entries
    assert path.read_text().count("\n") == 2


class Crash(BaseException):
    """Neither an Exception nor a KeyboardInterrupt: nobody catches it."""


@pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("error", [Crash, KeyboardInterrupt])
def test_a_crash_leaves_the_old_lines_whole(tmp_path, monkeypatch, function, error):
    path = tmp_path / "runs.jsonl"
    record.append(path, {"run": 1})

    def stop(*args):
        raise error

    monkeypatch.setattr(function, stop)
    with pytest.raises(error):
        record.append(path, {"run": 2})
    monkeypatch.undo()
    assert record.read(path) == [{"run": 1}]
    assert [file.name for file in tmp_path.iterdir()] == ["runs.jsonl"]


def test_a_disk_that_is_full_in_the_middle_of_a_line(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    record.append(path, {"run": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            record.append(path, {"run": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert record.read(path) == [{"run": 1}]
    assert capsys.readouterr().err.splitlines()[1] == '{"run": 2}'  # not lost
    assert [file.name for file in tmp_path.iterdir()] == ["runs.jsonl"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_is_refused(tmp_path, value):
    path = tmp_path / "runs.jsonl"
    with pytest.raises((ValueError, TypeError)):
        record.append(path, {"loss": value})
    assert not path.exists()


def test_provenance_says_what_a_result_depends_on():
    entry = json.loads(json.dumps(record.provenance(seed=3)))
    assert entry["seed"] == 3
    for key in ("jax", "jaxlib", "optax", "flax", "python"):
        assert entry[f"{key}_version"][0].isdigit()
    assert entry["platform"] == "cpu"
    assert entry["num_devices"] >= 1
    assert entry["num_cpus"] >= 1
    assert entry["date_utc"].endswith("+00:00")
    assert {"commit", "dirty", "device_kind", "command"} <= entry.keys()


def test_the_command_can_be_typed_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/cnn.py", "--output", "my results"])
    monkeypatch.setattr("__main__.__spec__", None, raising=False)
    assert record.command() == "python cnn.py --output 'my results'"


def test_commit_and_changes(monkeypatch, tmp_path):
    """A result file that changed does not make the code dirty; a script does."""
    monkeypatch.setattr(record, "REPOSITORY", tmp_path)
    assert record.provenance(seed=0)["commit"] is None  # not a checkout
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "script.py").write_text("1")
    record.git("init", "--quiet")
    record.git("add", "script.py")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    record.git(*who, "commit", "--quiet", "-m", "one")
    (results / "cnn.jsonl").write_text("{}")
    clean = record.provenance(seed=0)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "script.py").write_text("2")
    assert record.provenance(seed=0)["dirty"] is True
