"""One process of a run over several, for tests: `python -m tests.engine.host_process PLAN PORT NUMBER COUNT [MOMENT]`.

`MOMENT` is when it kills itself: `gather:N` before it says something for the Nth time, `write:N` before its Nth write,
`save:N` before orbax saves something for the Nth time.
It waits for others to notice for `LOST` seconds only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import brainsurgery_jax as bs
from brainsurgery_jax.engine.run.hosts import Connected, ProcessAddress
from brainsurgery_jax.store.io.byte_sink import ByteSink
from brainsurgery_jax.store.orbax import encode

LOST = 3.0
PATIENT = 120.0


def die_at(method: Callable[..., Any], number: int) -> Callable[..., Any]:
    calls = count(1)

    def call(*args: Any, **given: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*args, **given)

    return call


def arm(moment: str) -> None:
    what, _, number = moment.partition(":")
    if what == "gather":
        Connected.gather = die_at(Connected.gather, int(number))
    elif what == "save":
        encode._save = die_at(encode._save, int(number))
    elif what == "write":
        write = die_at(lambda: None, int(number))
        for name in ("put", "copy", "put_rows"):
            plain = getattr(ByteSink, name)

            def also(self: Any, *args: Any, plain: Any = plain) -> Any:
                write()
                return plain(self, *args)

            setattr(ByteSink, name, also)


def main(plan: str, port: str, number: str, processes: str, moment: str = "", patience: str = str(PATIENT)) -> int:
    """Run it. Prints what it reports and published, or the error, as JSON."""
    arm(moment)
    address = (
        ProcessAddress(f"127.0.0.1:{port}", int(number), int(processes), float(patience))
        if int(processes) > 1
        else None
    )
    options: Any = {"distributed": address, "resume": True, "durable": False, "memory": 1 << 30}
    try:
        report = bs.run(bs.load(plan), **options)
    except (bs.PlanError, bs.StoreError) as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        return 1
    notes = [note.message for note in report.notes]
    print(json.dumps({"published": report.published, "said": report.said, "notes": notes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
