"""The process that coordinates the others of a run: JAX's own distributed service, in a process of its own.

Process 0 of a run starts it. It survives the death of process 0 for a while, so that the others hear of that from us:
a client of the service that loses it aborts its process at once. Run as `python -m ... PORT PROCESSES SECONDS`; it ends
`SECONDS` after its standard input is closed, and at once when it reads END. Before it has read CONNECTED, others may
wait for connections, and it stays until they have given up.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from importlib import import_module
from typing import Any

CONNECTED, END = "connected\n", "end\n"

FOUND_WITHIN = 300
"""Seconds in which processes must find each other, as in `jax.distributed`."""

PARTING = 10
"""Seconds in which the service may end: it waits for processes, and these may be gone."""


def runtime() -> Any:
    """JAX's distributed runtime, without JAX: it has no public name of its own."""
    return import_module("jaxlib._jax")


def serve(port: int, processes: int, linger: float) -> None:
    """Serve until standard input ends. Prints a line when it is ready. Raises OSError for a port that is taken."""
    refuse_taken(port)
    # A process that dies is no reason to end the others: they end themselves, with an error that says why.
    service = runtime().get_distributed_runtime_service(f"[::]:{port}", processes, recoverable=True)
    os.write(1, b"ready\n")
    line = sys.stdin.readline()
    if line == CONNECTED:
        line = sys.stdin.readline()
    elif not line:
        linger += FOUND_WITHIN
    if line != END:
        time.sleep(linger)
    thread = threading.Thread(target=service.shutdown, daemon=True)
    thread.start()
    thread.join(PARTING)
    os._exit(0)


def refuse_taken(port: int) -> None:
    """Raise OSError where something listens at a port. The service itself would share it with another one, and of the
    processes of a run some would come to either. A service listens for IPv4, too, which every machine has."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))
        probe.listen()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
