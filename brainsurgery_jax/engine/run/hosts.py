"""The processes of a run over several hosts: who they are, what they tell each other, and who is lost.

Control only goes through here, over the key-value store of JAX's distributed runtime: answers to questions, keys of
items, paths. Tensors go from and to a file system that all processes share. JAX itself stays one process with its own
devices, so a process that compiles nothing keeps nobody waiting. Only a run with a call that no process can hold lets
JAX know the devices of all (`share_devices`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

from brainsurgery_jax._lazy import jax
from brainsurgery_jax.engine.compute.devices import HOST
from brainsurgery_jax.engine.events import Awaiting, Listener, StopSignal, ignore
from brainsurgery_jax.engine.run.coordinator import CONNECTED, END, FOUND_WITHIN, runtime
from brainsurgery_jax.engine.run.watching import compute_watched
from brainsurgery_jax.errors import Stopped, StoreError

PULSE = 0.5
"""Seconds between two signs of life."""

SOON = 3.0
"""Seconds in which processes that are started together find each other."""

PIECE = 1 << 20
"""Bytes of a message: the service takes no large ones."""

_FAILED = "failed"

T = TypeVar("T")


class ProcessAddress(NamedTuple):
    """Which process of a run this is. None: as the environment says (SLURM, Kubernetes, a TPU pod). `lost_after`:
    seconds without a sign of life after which a process is taken for lost."""

    coordinator: str | None = None
    process: int | None = None
    processes: int | None = None
    lost_after: float = 30.0


class Gathering(Protocol):
    """Processes that tell each other what they have."""

    @property
    def number(self) -> int:
        """This process."""
        ...

    @property
    def count(self) -> int:
        """All processes."""
        ...

    def gather(self, about: str, own: bytes = b"") -> Sequence[bytes]:
        """What all processes say, in the order of their numbers, when all have said it. Raises StoreError if one is
        lost or has failed."""
        ...


class Hosts(Gathering, Protocol):
    """The processes of a run; of most runs there is one."""

    def stop(self, signal: StopSignal) -> StopSignal:
        """A signal that is set when that one is, or when a process is lost or has failed."""
        ...

    def meet(self, topic: str, count: int) -> None:
        """Wait until each of the first `count` processes has come to this point. Raises StoreError as `gather`."""
        ...

    def watch(self, compute: Callable[[], T]) -> T:
        """What a computation together with other processes yields. Raises StoreError as `gather`."""
        ...

    def share_devices(self) -> None:
        """Let JAX know the devices of all processes, before it has started. Raises StoreError if it has."""
        ...

    def devices(self, count: int, each: int) -> Sequence[Any]:
        """`each` accelerators of each of the first `count` processes, when they are shared; 0: the host of each as one
        device."""
        ...


class OneProcess:
    """A run of one process."""

    number, count = 0, 1

    def gather(self, about: str, own: bytes = b"") -> Sequence[bytes]:
        """What this process says."""
        return (own,)

    def stop(self, signal: StopSignal) -> StopSignal:
        """That signal."""
        return signal

    def meet(self, topic: str, count: int) -> None:
        """There is nobody to wait for."""

    def watch(self, compute: Callable[[], T]) -> T:
        """What it yields."""
        return compute()

    def share_devices(self) -> None:
        """JAX knows them."""

    def devices(self, count: int, each: int) -> Sequence[Any]:
        """Those of this process."""
        return _some_of(jax.process_index(), each)


ALONE = OneProcess()


class Connected:
    """The processes of a run that have found each other. Used as a context: who leaves it with an error tells the
    others, and ends as they do if it was stopped because another failed."""

    def __init__(self, client: Any, number: int, count: int, lost_after: float, service: subprocess.Popen | None):
        self.number, self.count = number, count
        self._client, self._lost_after, self._service = client, lost_after, service
        self._turn = 0
        self._failure: str | None = None
        self._indices: Sequence[int] = ()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._watch_others, name="hosts", daemon=True)
        self._watch.start()

    # --- Saying and hearing -------------------------------------------------------------------------------------------

    def gather(self, about: str, own: bytes = b"") -> Sequence[bytes]:
        """What all processes say, in the order of their numbers."""
        self._turn += 1
        topic = f"said/{self._turn}-{about}"
        pieces = [own[at : at + PIECE] for at in range(0, len(own), PIECE)]
        for at, piece in enumerate(pieces):
            self._set(f"{topic}/{self.number}/{at}", piece)
        self._set(f"{topic}/{self.number}", str(len(pieces)).encode())
        return [own if k == self.number else self._hear(f"{topic}/{k}") for k in range(self.count)]

    def _hear(self, topic: str) -> bytes:
        return b"".join(self._get(f"{topic}/{at}") for at in range(int(self._get(topic))))

    def _get(self, key: str) -> bytes:
        while True:
            if self._failure is not None:
                raise self._error()
            try:
                return self._client.blocking_key_value_get_bytes(key, int(PULSE * 1000))
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    self._failure = self._failure or "the coordinator (process 0) does not answer"

    def _set(self, key: str, value: bytes) -> None:
        try:
            self._client.key_value_set_bytes(key, value, allow_overwrite=True)
        except RuntimeError:
            self._failure = self._failure or "the coordinator (process 0) does not answer"

    def stop(self, signal: StopSignal) -> StopSignal:
        """A signal that is set when that one is, or when a process is lost or has failed."""
        return _Either(signal, self)

    def is_set(self) -> bool:
        """Whether a process is lost or has failed."""
        return self._failure is not None

    # --- Computing together -------------------------------------------------------------------------------------------

    def meet(self, topic: str, count: int) -> None:
        """Wait until each of the first `count` processes has come to this point."""
        self._set(f"met/{topic}/{self.number}", b"1")
        for k in range(count):
            self._get(f"met/{topic}/{k}")

    def watch(self, compute: Callable[[], T]) -> T:
        """What a computation together with other processes yields. If one of them is lost or fails, it never ends, or
        ends with an error of JAX: the thread that waits for it is left alone."""
        done = compute_watched(compute, self.is_set)
        if self._failure is not None:
            raise self._error()
        try:
            return done.result()
        except RuntimeError as error:  # of JAX, which may have noticed a loss before us
            end = time.monotonic() + self._lost_after + 4 * PULSE
            while self._failure is None and time.monotonic() < end:
                time.sleep(PULSE / 5)
            if self._failure is not None:
                raise self._error() from error
            raise

    def share_devices(self) -> None:
        """Let JAX know the devices of all processes. It has no public way to use a client that is there already."""
        from jax._src import distributed, xla_bridge

        started = json.dumps(xla_bridge.backends_are_initialized())
        if b"true" in (said := self.gather("started", started.encode())):
            problem = f"process {said.index(b'true')} has started JAX without the devices of the others"
            remedy = "Run the plan in new processes."
            raise StoreError("--distributed", problem, remedy=remedy)
        state = distributed.global_state
        state.client, state.process_id, state.num_processes = self._client, self.number, self.count
        self.watch(jax.devices)
        if jax.default_backend() == "cpu":  # what JAX 0.12 takes of the cache for several CPUs computes something else
            jax.config.update("jax_enable_compilation_cache", False)
        self._indices = tuple(map(int, self.gather("devices", str(jax.process_index()).encode())))

    def devices(self, count: int, each: int) -> Sequence[Any]:
        """`each` accelerators of each of the first `count` processes, or the host of each."""
        return [device for index in self._indices[:count] for device in _some_of(index, each)]

    # --- Who is there -------------------------------------------------------------------------------------------------

    def _watch_others(self) -> None:
        """Give signs of life, and look for those of others: process 0 for those of all, all for that of process 0."""
        watched = [k for k in range(self.count) if k != self.number and (self.number == 0 or k == 0)]
        seen: dict[int, tuple[bytes, float]] = {}
        beats = 0
        while not self._over.wait(PULSE) and self._failure is None:
            beats += 1
            self._set(f"alive/{self.number}", str(beats).encode())
            self._failure = self._failure or self._read_failure()
            now = time.monotonic()
            for k in watched:
                beat = self._try(f"alive/{k}") or b""
                if k not in seen or seen[k][0] != beat:
                    seen[k] = beat, now
                elif now - seen[k][1] > self._lost_after and self._try(f"gone/{k}") is None:
                    self._fail(f"process {k} of {self.count} is lost: no sign of life for {self._lost_after:g} s")

    def _read_failure(self) -> str | None:
        found = self._try(_FAILED)
        return None if found is None else found.decode()

    def _try(self, key: str) -> bytes | None:
        try:
            return self._client.key_value_try_get_bytes(key)
        except RuntimeError:
            return None

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why
        if self._try(_FAILED) is None:
            self._set(_FAILED, why.encode())

    def _error(self) -> StoreError:
        remedy = "Nothing was published. See what that process printed, then run all processes again."
        return StoreError(f"process {self.number} of {self.count}", f"stopped: {self._failure}", remedy=remedy)

    # --- The end ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Connected:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = self._failure is not None and isinstance(error, Stopped)
        if error is not None and self._failure is None:
            said = str(error) or type(error).__name__
            self._fail(f"process {self.number} of {self.count} failed: {said.splitlines()[0]}")
        self._set(f"gone/{self.number}", b"1")
        self._over.set()
        self._watch.join()
        self._leave(failed=error is not None)
        if stopped:
            mine = self._error()
            for note in getattr(error, "__notes__", ()):
                mine.add_note(note)
            raise mine from error

    def _leave(self, *, failed: bool) -> None:
        """Leave the service. Process 0 ends it when all have left, or are lost."""
        if self._service is None:
            with suppress(RuntimeError):
                self._client.shutdown()
            return
        end = time.monotonic() + self._lost_after
        others = [k for k in range(1, self.count)]
        while time.monotonic() < end and any(self._try(f"gone/{k}") is None for k in others):
            time.sleep(PULSE / 5)
        with suppress(RuntimeError):
            self._client.shutdown()
        with suppress(OSError, subprocess.TimeoutExpired):
            self._service.communicate(END.encode(), timeout=self._lost_after)
        if self._service.poll() is None:
            self._service.kill()


def _some_of(index: int, count: int) -> Sequence[Any]:
    """The first accelerators of the process that JAX knows by this index, or its host."""
    return jax.local_devices(process_index=index, backend=None if count else HOST)[: max(1, count)]


class _Either(NamedTuple):
    """One of two signals."""

    first: StopSignal
    second: StopSignal

    def is_set(self) -> bool:
        return self.first.is_set() or self.second.is_set()


# --- Finding each other -----------------------------------------------------------------------------------------------


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
