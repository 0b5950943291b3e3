"""The accelerators of a run, their memory, and the part of it that is reserved."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from threading import Condition, Lock
from typing import Literal, Protocol

from brainsurgery_jax._lazy import jax
from brainsurgery_jax.errors import Diagnostic, PlanError

_PLUGINS = "jax_plugins", "libtpu"
"""Packages by which JAX reaches anything but the CPU; without them there is no need to import it and ask."""


class JaxDevice(Protocol):
    """The part of a JAX device's interface that we use."""

    @property
    def platform(self) -> str: ...

    def memory_stats(self) -> Mapping[str, int] | None: ...


Choice = int | Literal["all", "cpu"]
"""How many accelerators to use; `cpu`: none."""

HOST = "cpu"
"""The backend without accelerators, as JAX calls it."""

SIMULATED = "simulated"
"""The backend of CPU devices in the place of accelerators: they compute what these would."""

ASSUMED = 8 << 30
"""Assumed memory in bytes of an accelerator that does not report it."""

USABLE = 7, 8
"""The usable share of a device's memory; fragmentation and other libraries take the rest."""

turn = Lock()
"""Held while a compiled call on whole operands runs on the CPU, of which each such call uses all processors."""


def may_be_found() -> bool:
    """Whether there may be accelerators: to know it, JAX must start them."""
    return os.environ.get("JAX_PLATFORMS") != "cpu" and any(find_spec(name) for name in _PLUGINS)


@cache
def found() -> tuple[JaxDevice, ...]:
    """The accelerators of this process, or none. Calling this initialises them."""
    if not may_be_found():
        return ()
    return () if jax.default_backend() == HOST else tuple(jax.local_devices())


def memory_of(device: JaxDevice) -> int:
    """Usable bytes of a device. They depend on the device alone, not on what is free at the moment: where a call is
    computed must not depend on what else runs."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return ASSUMED if limit is None else limit * USABLE[0] // USABLE[1]


def _backend_of(device: JaxDevice) -> str:
    return SIMULATED if device.platform == HOST else device.platform


class Accelerators:
    """Devices to compute on, the bytes that may be held on each, and how many of them are free.

    `bytes_each`: if it is not given, what `memory_of` finds for the smallest.
    """

    def __init__(self, devices: Sequence[JaxDevice] = (), bytes_each: int | None = None):
        self.devices = tuple(devices)
        self.bytes_each = min(map(memory_of, devices), default=0) if bytes_each is None else bytes_each
        self.backend: str = _backend_of(self.devices[0]) if devices else HOST
        self._free = [self.bytes_each for _ in devices]
        self._turns = [Lock() for _ in devices]
        self._changed = Condition()

    @contextmanager
    def one(self, nbytes: int) -> Iterator[int]:
        """Wait for the device with the most free memory to have `nbytes` free, and reserve them: its number."""
        wanted = min(nbytes, self.bytes_each)
        with self._changed:
            self._changed.wait_for(lambda: max(self._free) >= wanted)
            at = self._free.index(max(self._free))
            self._free[at] -= wanted
        try:
            yield at
        finally:
            self._give_back([at], wanted)

    @contextmanager
    def all(self, nbytes: int) -> Iterator[None]:
        """Wait until every device has `nbytes` free, and reserve them."""
        wanted = min(nbytes, self.bytes_each)
        with self._changed:
            self._changed.wait_for(lambda: min(self._free) >= wanted)
            self._free = [free - wanted for free in self._free]
        try:
            yield
        finally:
            self._give_back(range(len(self.devices)), wanted)

    def _give_back(self, places: Sequence[int], nbytes: int) -> None:
        with self._changed:
            for at in places:
                self._free[at] += nbytes
            self._changed.notify_all()

    @contextmanager
    def turn(self, at: int | None = None) -> Iterator[None]:
        """A lock that is held while one device, or all of them, compute: programs for several devices deadlock if they
        start in different orders. Sending operands and fetching results need no lock."""
        with ExitStack() as held:
            for lock in self._turns if at is None else [self._turns[at]]:
                held.enter_context(lock)
            yield


NONE = Accelerators()
"""No accelerators."""

Devices = Choice | Accelerators
"""Which accelerators to use: of those that are found, or these."""


def accelerators(choice: Devices = "all") -> Accelerators:
    """The accelerators that a choice means, one object for all runs of the process. Raises PlanError."""
    if isinstance(choice, Accelerators):
        return choice
    if choice not in ("cpu", "all") and (not isinstance(choice, int) or isinstance(choice, bool) or choice < 1):
        problem = f"devices: expected a number above 0, 'all' or 'cpu', got {choice!r}"
        raise PlanError([Diagnostic("devices-absent", problem, hint="Leave it out to use all there are.")])
    with _ASKING:
        return _accelerators(choice)


@cache
def _accelerators(choice: Choice) -> Accelerators:
    return NONE if choice == HOST else Accelerators(chosen(choice, found()))


def chosen(choice: int | Literal["all"], there: Sequence[JaxDevice]) -> Sequence[JaxDevice]:
    """The available devices that match a choice. Raises PlanError."""
    if choice == "all":
        return there
    if choice > len(there):
        names = ": " + ", ".join(map(str, there)) if there else ""
        raise _refused(f"{choice} asked for, this process has {len(there) or 'no accelerator'}{names}", there)
    return there[:choice]


def _refused(problem: str, there: Sequence[JaxDevice]) -> PlanError:
    fitting = f"`all`, `cpu`, or a number up to {len(there)}" if there else "`cpu`, or leave it out"
    return PlanError([Diagnostic("devices-absent", f"devices: {problem}", hint=f"Write {fitting}.")])


_ASKING = Lock()


def compiling() -> AbstractContextManager[object]:
    """The context in which compiled code runs on the CPU, but for what is sent to an accelerator. Only calls that are
    worth it are: the others would move more bytes than they compute numbers."""
    return jax.default_device(_cpu()) if found() else nullcontext()


def _cpu() -> JaxDevice:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        hint = "Add it, as in `JAX_PLATFORMS=cuda,cpu`."
        raise PlanError(
            [Diagnostic("devices-absent", "JAX_PLATFORMS leaves no CPU to compute on", hint=hint)]
        ) from error
