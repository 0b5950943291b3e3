"""A run that is killed: `python -m tests.provenance.killed KIND NUMBER BLOCK [CHECKS]` ends itself at a write."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import brainsurgery_jax as bs
from brainsurgery_jax.engine.events import Wrote
from brainsurgery_jax.engine.plan import blocks, planner

STEPS = [{"scale_": {"target": "s.*", "by": 3}}, {"permute": {"from": "t", "to": "p", "order": [1, 0]}}]
OUTPUTS = {
    "file": {"path": "out.safetensors"},
    "shards": {"path": "out/", "shard": "20KB"},
    "torch": {"path": "out.pt"},
    "orbax": {"path": "out/", "format": "orbax"},
    "flax": {"path": "out.msgpack"},
}


CHECKS = [{"assert": {"finite": "s.*"}}, {"dump": {"target": "p", "format": "json"}}]


def plan(kind: str = "file", **more: Any) -> bs.Plan:
    output = {"overwrite": True, **OUTPUTS[kind]}
    return bs.load({"inputs": ["in.safetensors"], "transforms": STEPS, "output": output, **more})


class Stops:
    """A listener that does something at the write of this number."""

    def __init__(self, at: int, act: Callable[[], object]):
        self.left, self.act = at, act

    def __call__(self, event: object) -> None:
        if isinstance(event, Wrote):
            self.left -= 1
            if not self.left:
                self.act()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut_small(block: int) -> None:
    """Have the work cut into many items."""
    blocks.BLOCK, planner.COPY_BYTES = block, 4096


if __name__ == "__main__":
    kind, number, block, *checks = sys.argv[1:]
    cut_small(int(block))
    chosen = plan(kind, transforms=[*STEPS, *CHECKS]) if checks else plan(kind)
    chosen.run(resume=True, listen=Stops(int(number), kill))
