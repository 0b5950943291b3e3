"""The processes of a run over several hosts: who they are, what they tell each other, and who is lost.

Control only goes through here, over the key-value store of JAX's distributed runtime: answers to questions, keys of
items, paths. Tensors go from and to a file system that all processes share. JAX itself stays one process with its own
devices, so a process that compiles nothing keeps nobody waiting. Only a run with a call that no process can hold lets
JAX know the devices of all (`share_devices`).
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

from brainsurgery_jax._lazy import jax
from brainsurgery_jax.engine.compute.devices import HOST
from brainsurgery_jax.engine.events import StopSignal
from brainsurgery_jax.engine.run.coordinator import END
from brainsurgery_jax.engine.run.watching import compute_watched
from brainsurgery_jax.errors import Stopped, StoreError

PULSE = 0.5
"""Seconds between two signs of life."""

PIECE = 1 << 20
"""Bytes of a message: the service takes no large ones."""

_FAILED = "failed"

T = TypeVar("T")


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
