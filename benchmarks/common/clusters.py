"""Joining the other processes of a program by `jax.distributed`, with errors in words.

JAX knows Slurm, Open MPI, Kubernetes and Cloud TPUs; elsewhere three variables tell a
process where it stands. What JAX leaves to C++ is seen to here: a port that is in use
(its coordinator shares it in silence with another's), others that never come (it ends
with a stack), SIGTERM (it is swallowed).
"""

import os
import socket
import sys
import threading
from typing import NamedTuple

import jax

# The first is JAX's own; a cluster that it doesn't know can set all three by hand.
ADDRESS = "JAX_COORDINATOR_ADDRESS"
NUM_PROCESSES, RANK = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
BIND_ADDRESS = "JAX_COORDINATOR_BIND_ADDRESS"  # JAX's own
START_S = 300.0  # that the first process may wait for the last one
HEARTBEAT_S = 100  # after which one that answers no more ends the others


class Place(NamedTuple):
    """Where a process stands among the others."""

    address: str  # of the coordinator, which is process 0
    num_processes: int
    rank: int


def initialize() -> None:
    """Joins the others; before anything else is asked of JAX.

    A process that ends or is stopped leaves the others with an error: at once where
    they exchange data with it, else after `HEARTBEAT_S`.

    Raises:
        ValueError: If there is no cluster, or a variable is wrong, naming it.
        RuntimeError: If the coordinator can't listen at its address.
    """
    place = place_of_variables()
    # It catches SIGTERM, for programs that ask it whether they are to end; ours don't.
    jax.config.update("jax_enable_preemption_service", False)
    if place is not None and place.rank == 0:
        check_port(os.environ.get(BIND_ADDRESS) or f"[::]:{port_of(place.address)}")
    late = threading.Timer(START_S, give_up, [place])
    late.daemon = True
    late.start()
    try:
        address, num_processes, rank = place or (None, None, None)
        jax.distributed.initialize(
            address,
            num_processes,
            rank,
            initialization_timeout=int(START_S) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    except ValueError as error:
        missing = [n for n in (ADDRESS, NUM_PROCESSES, RANK) if n not in os.environ]
        raise ValueError(
            "no cluster was found: start the program by one that JAX knows (Slurm, "
            f"Open MPI, Kubernetes, Cloud TPU), or set {', '.join(missing)} ({error})"
        ) from None
    except RuntimeError as error:  # on a cluster that JAX knows
        raise RuntimeError(
            f"`jax.distributed` could not start (is the port in use?): {error}; "
            f"{ADDRESS} sets another host:port"
        ) from None
    finally:
        late.cancel()


def place_of_variables() -> Place | None:
    """What the three variables say; None where JAX is to find the cluster by itself.

    Raises:
        ValueError: If one of them is wrong.
    """
    if any(name not in os.environ for name in (ADDRESS, NUM_PROCESSES, RANK)):
        return None
    port_of(os.environ[ADDRESS])
    count = whole(NUM_PROCESSES, 1, None)
    return Place(os.environ[ADDRESS], count, whole(RANK, 0, count - 1))


def whole(name: str, least: int, most: int | None) -> int:
    """The whole number of a variable."""
    given = os.environ[name]
    value = int(given) if given.isascii() and given.isdecimal() else -1
    if value < least or (most is not None and value > most):
        rule = f"{least} or more" if most is None else f"{least}, …, {most}"
        raise ValueError(f"`{name}` must be {rule}, got {given!r}")
    return value


def port_of(address: str) -> int:
    """The port of an address.

    Examples:
        >>> port_of("host:80"), port_of("[::1]:8080")
        (80, 8080)

    Raises:
        ValueError: If it has none.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"`{ADDRESS}` must be host:port, got {address!r}")
    return int(port)


def check_port(address: str) -> None:
    """RuntimeError if the coordinator can't listen there.

    gRPC would share the port with another one's coordinator, if both are of one user,
    and processes would join whichever answers.
    """
    port = port_of(address)
    host = address.rpartition(":")[0].strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    if host == "::" and not both:  # a machine without IPv6
        host, family = "", socket.AF_INET
    try:
        socket.create_server((host, port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise RuntimeError(
            f"the coordinator can't listen at {address} ({error.strerror or error}): "
            f"set {ADDRESS} to a free port of the first process's machine"
        ) from None


def give_up(place: Place | None) -> None:
    """Ends a process whose others don't come; JAX would do so by a stack of C++."""
    me = "a process" if place is None else f"process {place.rank}"
    all_of_them = "all" if place is None else f"all {place.num_processes}"
    where = "" if place is None else f" at {place.address}"
    print(
        f"{me} has waited {START_S:g} s for the others: {all_of_them} must be started, "
        f"and must reach the coordinator{where}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
