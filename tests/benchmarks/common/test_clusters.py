"""Joining other processes: what can't be is said in words."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import clusters

REPOSITORY = Path(clusters.__file__).parents[2]
WHOLE = ("127.0.0.1:5555", "2", "1")


@pytest.fixture
def variables(monkeypatch):
    """Sets the three variables; None leaves one out."""

    def use(*values):
        names = (clusters.ADDRESS, clusters.NUM_PROCESSES, clusters.RANK)
        for name, value in zip(names, values, strict=True):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)

    return use


def test_a_place(variables):
    variables(*WHOLE)
    assert clusters.place_of_variables() == ("127.0.0.1:5555", 2, 1)
    variables(None, "2", "1")
    assert clusters.place_of_variables() is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("localhost", "2", "0"), "`JAX_COORDINATOR_ADDRESS` must be host:port"),
        (("localhost:x", "2", "0"), "`JAX_COORDINATOR_ADDRESS` must be host:port"),
        (("localhost:99999", "2", "0"), "`JAX_COORDINATOR_ADDRESS` must be host:port"),
        (("localhost:1", "0", "0"), "`JAX_NUM_PROCESSES` must be 1 or more, got '0'"),
        (("localhost:1", "x", "0"), "`JAX_NUM_PROCESSES` must be 1 or more, got 'x'"),
        (("localhost:1", "2", "2"), "`JAX_PROCESS_ID` must be 0, …, 1, got '2'"),
        (("localhost:1", "2", "-1"), "`JAX_PROCESS_ID` must be 0, …, 1, got '-1'"),
    ],
)
def test_wrong_variables_are_named(values, message, variables):
    variables(*values)
    with pytest.raises(ValueError, match=message):
        clusters.place_of_variables()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::]"])
def test_a_port_in_use_is_said(host):
    with socket.socket() as other:
        # As gRPC does: it would share the port in silence.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"{host}:{other.getsockname()[1]}"
        with pytest.raises(RuntimeError, match=r"can't listen at .*in use"):
            clusters.check_port(address)
    clusters.check_port(address)


def run(code, **variables):
    known = (clusters.ADDRESS, clusters.NUM_PROCESSES, clusters.RANK)
    common = {name: value for name, value in os.environ.items() if name not in known}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**common, "JAX_PLATFORMS": "cpu", **variables},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_others_that_never_come_are_said():
    code = (
        "from benchmarks.common import clusters\n"
        "clusters.START_S = 1.0\n"
        "clusters.initialize()"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    values = (address, "2", "1")
    names = (clusters.ADDRESS, clusters.NUM_PROCESSES, clusters.RANK)
    done = run(code, **dict(zip(names, values, strict=True)))
    assert done.returncode == 1
    assert "process 1 has waited 1 s for the others: all 2 must be" in done.stderr


def test_no_cluster_is_one_line(tmp_path):
    done = run(
        "from benchmarks.ef21_muon import workers; workers.loop.check = print; "
        f"workers.main(['--output', {str(tmp_path)!r}])"
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("ef21_workers: error: no cluster was found")
    assert line.endswith("or start it here with --processes")
