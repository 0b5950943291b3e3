"""One process of a run over several, for tests: `python -m tests.engine.host_process PLAN PORT NUMBER COUNT [MOMENT]`.

`MOMENT` is when it kills itself: `gather:N` before it says something for the Nth time, `write:N` before its Nth write,
`save:N` before orbax saves something for the Nth time, `meet:N` when it has met the others to compute together.
`halt:N` is that too, but it only stops; `fail:N` is an error before it meets them; `jax:N` starts JAX alone.
It waits for others to notice for `LOST` seconds only.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import brainsurgery_jax as bs
from brainsurgery_jax._lazy import jax
from brainsurgery_jax.engine.events import Factorized
from brainsurgery_jax.engine.run.hosts import Connected
from brainsurgery_jax.engine.run.joining import ProcessAddress
from brainsurgery_jax.engine.run.watching import is_left_computing
from brainsurgery_jax.store.io import positioned
from brainsurgery_jax.store.io.byte_sink import ByteSink
from brainsurgery_jax.store.orbax import encode

LOST = 3.0
PATIENT = 120.0


def die_at(method: Callable[..., Any], number: int) -> Callable[..., Any]:
    calls = itertools.count(1)

    def call(*args: Any, **given: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*args, **given)

    return call


def after_meeting(number: int, do: Callable[[], None]) -> Callable[..., None]:
    calls, meet = itertools.count(1), Connected.meet

    def call(self: Connected, topic: str, count: int) -> None:
        meet(self, topic, count)
        if next(calls) == number:
            do()

    return call


def fail(self: Connected, topic: str, count: int) -> None:
    raise bs.StoreError("shared", "cannot be read")


def count_reads(found: dict[str, int]) -> None:
    """Count the bytes that are read from files of tensors."""
    plain = positioned._pread

    def read(fd: int, view: memoryview, offset: int) -> int:
        size = plain(fd, view, offset)
        found["reads"] = found.get("reads", 0) + size
        return size

    positioned._pread = read


def arm(moment: str) -> None:
    what, _, number = moment.partition(":")
    if what == "gather":
        Connected.gather = die_at(Connected.gather, int(number))
    elif what == "save":
        encode._save = die_at(encode._save, int(number))
    elif what in ("meet", "halt"):
        how = signal.SIGKILL if what == "meet" else signal.SIGSTOP
        Connected.meet = after_meeting(int(number), lambda: os.kill(os.getpid(), how))
    elif what == "jax":
        jax.devices()
    elif what == "fail":
        Connected.meet = fail
    elif what == "write":
        write = die_at(lambda: None, int(number))
        for name in ("put", "copy", "put_rows"):
            plain = getattr(ByteSink, name)

            def also(self: Any, *args: Any, plain: Any = plain) -> Any:
                write()
                return plain(self, *args)

            setattr(ByteSink, name, also)


def main(
    plan: str,
    port: str,
    number: str,
    processes: str,
    moment: str = "",
    patience: str = str(PATIENT),
    memory: str = str(1 << 30),
) -> int:
    """Run it. Prints what it reports and published, or the error, as JSON."""
    arm(moment)
    counted: dict[str, int] = {}
    count_reads(counted)
    facts: list[Any] = []
    address = (
        ProcessAddress(f"127.0.0.1:{port}", int(number), int(processes), float(patience))
        if int(processes) > 1
        else None
    )
    options: Any = {"distributed": address, "resume": True, "durable": False, "memory": int(memory)}
    options["listen"] = lambda event: facts.append(event.facts) if isinstance(event, Factorized) else None
    try:
        report = bs.run(bs.load(plan), **options)
    except (bs.PlanError, bs.StoreError) as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        return 1
    notes = [note.message for note in report.notes]
    print(json.dumps({"published": report.published, "said": report.said, "notes": notes, "facts": facts, **counted}))
    return 0


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    if is_left_computing():  # as the command line does
        os._exit(code)
    sys.exit(code)
