"""Spec 7.5: the access counters, row by row, as `assert reads` and `assert writes` tell them.

A row of the table here is a step and the (reads, writes) that it leaves on tensors that nothing touched before; None:
the tensor is gone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import counting
from tests.compat.row import lay_out, mistakes, store

S = counting((4, 4))
TENSORS = {"s": S, "d": S, "t": S}
ONE_FILE = {"one.npy": np.ones(2, np.float32)}
Counts = dict[str, tuple[int, int] | None]

NEW: Counts = {"s": (1, 1), "n": (0, 1)}
ONTO: Counts = {"s": (1, 1), "d": (2, 2)}
THREE: Counts = {"s": (1, 1), "t": (2, 1), "d": (2, 2)}
IN_PLACE: Counts = {"s": (1, 2), "d": (0, 1)}
MADE: Counts = {"n": (0, 1), "s": (0, 1)}
READ: Counts = {"s": (1, 1)}
NOTHING: Counts = {"s": (0, 1)}

TABLE: dict[str, Counts] = {
    "copy: { from: s, to: n }": NEW,
    "scale: { from: s, to: n, by: 2 }": NEW,
    "cast: { from: s, to: n, dtype: float16 }": NEW,
    "clamp: { from: s, to: n, min: 0 }": NEW,
    "reshape: { from: s, to: n, shape: [16] }": NEW,
    "permute: { from: s, to: n, order: [1, 0] }": NEW,
    "fill: { from: s, to: n, mode: constant, value: 0 }": NEW,
    "move: { from: s, to: n }": {"s": None, "n": (1, 1)},
    "assign: { from: s, to: d }": ONTO,
    "add_: { from: s, to: d }": ONTO,
    "subtract_: { from: s, to: d }": ONTO,
    "add: { from_a: s, from_b: t, to: d }": THREE,
    "subtract: { from_a: s, from_b: t, to: d }": THREE,
    "multiply: { from_a: s, from_b: t, to: d }": THREE,
    "matmul: { from_a: s, from_b: t, to: n }": {"s": (1, 1), "t": (2, 1), "n": (0, 1)},
    "scale_: { target: s, by: 2 }": IN_PLACE,
    "clamp_: { target: s, min: 0 }": IN_PLACE,
    "fill_: { target: s, mode: constant, value: 0 }": IN_PLACE,
    "cast_: { target: s, to: float16 }": IN_PLACE,
    "reshape_: { target: s, shape: [16] }": IN_PLACE,
    "phlora_: { target: s, rank: 1 }": IN_PLACE,
    "zeroes: { target: n, shape: [2] }": MADE,
    "ones: { target: n, shape: [2] }": MADE,
    "rand: { target: n, shape: [2] }": MADE,
    "load: { path: one.npy, to: n }": MADE,
    "concat: { from: [s, t], to: n }": {"s": (1, 1), "t": (1, 1), "n": (0, 1)},
    "split: { from: s, to: [n, m], sizes: [1, 3] }": {"s": (1, 1), "n": (0, 1), "m": (0, 1)},
    "phlora: { target: s, target_a: a, target_b: b, rank: 1, delete_original: false }": {
        "s": (2, 1), "a": (0, 1), "b": (0, 1),
    },
    "phlora: { target: s, target_a: a, target_b: b, rank: 1 }": {"s": None, "a": (0, 1), "b": (0, 1)},
    "delete: { target: s }": {"s": None, "d": (0, 1)},
    "dump: { target: s }": READ,
    "assert: { shape: { of: s, is: [4, 4] } }": READ,
    "assert: { dimensions: { of: s, is: 2 } }": READ,
    "assert: { dtype: { of: s, is: float32 } }": READ,
    "assert: { iszero: { of: s, eps: 99 } }": READ,
    "diff: { left: s, right: t }": {"s": (0, 1), "t": (0, 1)},
    "diff: { left: s, right: s }": {"s": (2, 1)},
    "assert: { equal: { left: s, right: t } }": {"s": (1, 1), "t": (2, 1)},
    "assert: { exists: s }": NOTHING,
    "assert: { count: { of: s, is: 1 } }": NOTHING,
    "assert: { reads: { of: s, is: 0 } }": NOTHING,
    "assert: { writes: { of: s, is: 1 } }": NOTHING,
    "save: snap.safetensors": {"s": (1, 1), "d": (1, 1), "t": (1, 1)},
    "save: { path: s.safetensors, target: s }": {"s": (2, 1)},
}  # fmt: skip


@pytest.mark.parametrize("step", TABLE)
def test_a_step_counts(here: Path, step: str):
    lines = [f"  - {step}"]
    for name, counts in TABLE[step].items():
        if counts is None:
            lines.append(f"  - assert: {{ not: {{ exists: {name} }} }}")
            continue
        for operator, number in zip(("reads", "writes"), counts, strict=True):
            lines.append(f"  - assert: {{ {operator}: {{ of: {name}, is: {number} }} }}")
    lay_out(TENSORS, ONE_FILE)
    store("plan.yaml", "\n".join(["inputs: [model.safetensors]", "transforms:", *lines]))
    assert mistakes() == []


def test_the_counters_are_told_apart(here: Path):
    lay_out(TENSORS)
    store("plan.yaml", "inputs: [model.safetensors]\ntransforms: [assert: { reads: { of: s, is: 1 } }]")
    assert mistakes() == ["assert-failed"]
