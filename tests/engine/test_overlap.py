"""Reading and sending go on while a device computes: threads work on several items, and only computing takes turns.

No accelerator is needed: the engine is given the CPU as one.
"""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import jax
import pytest

from brainsurgery_jax.engine.compute import batches
from brainsurgery_jax.engine.compute.devices import Accelerators
from tests.checkpoints import normal, run_plan

PATIENCE = 120
"""Seconds after which a run that waits for itself is given up."""


def test_the_next_batch_is_on_the_device_before_the_first_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first computation waits for the operands of the second, which would be for ever if these waited for it."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    compute, send = batches._climb_together, batches.send_batch
    sent: list[tuple[int, ...]] = []
    both, waited = Event(), list[bool]()

    def send_and_tell(members: Any, sharding: Any) -> jax.Array:
        array = send(members, sharding)
        sent.append(array.shape)
        if len(sent) == 2:
            both.set()
        return array

    def compute_late(*arguments: Any) -> Any:
        waited.append(both.wait(PATIENCE))
        return compute(*arguments)

    monkeypatch.setattr(batches, "send_batch", send_and_tell)
    monkeypatch.setattr(batches, "_climb_together", compute_late)
    tensors = {f"a{n}": normal((320, 320), seed=n) for n in range(2)}
    tensors |= {f"b{n}": normal((640, 320), seed=n) for n in range(2)}
    step = {"phlora": {"target": "(.+)", "target_a": r"\1.A", "target_b": r"\1.B", "rank": 8}}
    run_plan(tmp_path, tensors, step, devices=Accelerators(jax.local_devices()[:1], 1 << 40))
    assert sorted(sent) == [(2, 320, 320), (2, 640, 320)]
    assert waited == [True, True]
