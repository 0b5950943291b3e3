"""How the processes of a run find each other: by the address of a coordinator, which the first of them starts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from brainsurgery_jax.engine.events import Awaiting, Listener, ignore
from brainsurgery_jax.engine.run.coordinator import CONNECTED, FOUND_WITHIN, runtime
from brainsurgery_jax.engine.run.hosts import ALONE, Connected, Hosts
from brainsurgery_jax.engine.run.watching import compute_watched
from brainsurgery_jax.errors import StoreError

SOON = 3.0
"""Seconds in which processes that are started together find each other."""


class ProcessAddress(NamedTuple):
    """Which process of a run this is. None: as the environment says (SLURM, Kubernetes, a TPU pod). `lost_after`:
    seconds without a sign of life after which a process is taken for lost."""

    coordinator: str | None = None
    process: int | None = None
    processes: int | None = None
    lost_after: float = 30.0


def connect(address: ProcessAddress, tell: Listener = ignore) -> Connected:
    """Wait for all processes of a run, and tell so after a while. Raises StoreError if they do not find each other."""
    coordinator, process, processes = find(address)
    port = coordinator.rpartition(":")[2]
    service = None if process else start_service(int(port), processes, address.lost_after)
    try:
        client = runtime().get_distributed_runtime_client(
            coordinator, process, init_timeout=FOUND_WITHIN, heartbeat_timeout=100, shutdown_timeout=5,
            shutdown_on_destruction=False, use_compression=True,
        )  # fmt: skip
        _meet(client.connect, lambda: tell(Awaiting(coordinator, process, processes)))
        if service is not None and service.stdin is not None:
            service.stdin.write(CONNECTED.encode())
            service.stdin.flush()
    except BaseException as error:
        if service is not None:
            service.kill()
        if not isinstance(error, RuntimeError):
            raise
        remedy = f"Start all {processes} processes, each with the same --coordinator and its own --process-id."
        raise StoreError(coordinator, f"no connection: {str(error).splitlines()[0]}", remedy=remedy) from error
    return Connected(client, process, processes, address.lost_after, service)


def _meet(connect: Callable[[], None], tell: Callable[[], None]) -> None:
    """Wait until all are connected; tell once if that takes long."""
    late, told = time.monotonic() + SOON, False

    def look() -> bool:
        nonlocal told
        if not told and time.monotonic() > late:
            told = True
            tell()
        return False

    compute_watched(connect, look).result()


@contextmanager
def find_hosts(address: ProcessAddress | None, tell: Listener = ignore) -> Iterator[Hosts]:
    """The processes of a run, for as long as it lasts; this one alone without an address."""
    if address is None:
        yield ALONE
        return
    with connect(address, tell) as hosts:
        yield hosts


def find(address: ProcessAddress) -> tuple[str, int, int]:
    """The coordinator, the number of this process, and how many there are: as given, else as jax.distributed finds them
    in the environment. Raises StoreError for what is missing or impossible."""
    coordinator, process, processes, _ = address
    if None in (coordinator, process, processes):
        from jax._src.clusters import ClusterEnv

        found = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, process, None, None, FOUND_WITHIN
        )
        coordinator, processes, process = found[:3]
    if coordinator is None or process is None or processes is None:
        options = "--coordinator HOST:PORT", "--process-id N", "--process-count M"
        values = coordinator, process, processes
        missing = [option for option, value in zip(options, values, strict=True) if value is None]
        remedy = f"Give {', '.join(missing)}."
        raise StoreError("--distributed", "the environment does not tell the processes of this run", remedy=remedy)
    if not coordinator.rpartition(":")[2].isdigit() or not coordinator.rpartition(":")[0]:
        raise StoreError(coordinator, "is no address of a coordinator", remedy="Write HOST:PORT.")
    if not 0 <= process < processes:
        remedy = f"Number the processes from 0 to {processes - 1}."
        raise StoreError("--process-id", f"there is no process {process} of {processes}", remedy=remedy)
    return coordinator, process, processes


def start_service(port: int, processes: int, lost_after: float) -> subprocess.Popen:
    """The coordinator, ready. Raises StoreError for a port that cannot be used."""
    words = [sys.executable, "-m", "brainsurgery_jax.engine.run.coordinator", str(port), str(processes)]
    service = subprocess.Popen(
        [*words, str(2 * lost_after)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert service.stdout is not None
    if service.stdout.readline() != b"ready\n":
        _, said = service.communicate()
        lines = said.decode(errors="replace").strip().splitlines()
        why = lines[-1].rpartition("] ")[2] if lines else "it ended"
        remedy = "Another run may use it, or another process 0 of this one. Give --coordinator another port."
        raise StoreError(f"port {port}", f"the coordinator could not start: {why}", remedy=remedy)
    return service
