"""A plan as it was understood: variables filled, files merged; plain data that `load` reads again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brainsurgery_jax.plan.model import PlanData


def resolve(data: PlanData, steps: Sequence[Any]) -> dict[str, Any]:
    """The plan that reads and writes what this one does, with these steps."""
    whole: dict[str, Any] = {"inputs": [f"{i.alias}::{i.path}" for i in data.inputs]} if data.inputs else {}
    whole |= {"seed": data.seed} if data.seed else {}
    whole["transforms"] = list(steps)
    if data.outputs:
        outputs = [o.plain() for o in data.outputs]
        whole |= {"output": outputs[0]} if len(outputs) == 1 else {"outputs": outputs}
    return whole
