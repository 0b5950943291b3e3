"""A run tells of NaN and infinity in what it computes, with what helps; what it leaves as it is it does not look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import read, write

LARGE = np.asarray([1e6, -2.0, 3.0], np.float32)
SMALL = np.asarray([1.0, 2.0, 0.0], np.float32)


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("m.safetensors", {"large": LARGE, "small": SMALL, "mask": np.asarray([-np.inf, 0], np.float32)})


def run(*steps: Any, **options: Any) -> tuple[bs.Diagnostic, ...]:
    """Run a plan; its notes on NaN and infinity."""
    plan = {"inputs": ["m::m.safetensors"], "transforms": list(steps), "output": "out.safetensors"}
    notes = bs.run(bs.load(plan), durable=False, overwrite=True, **options).notes
    return tuple(note for note in notes if note.code == "value-nonfinite")


def test_what_rounding_to_float16_makes_infinite_is_told_with_the_step_that_keeps_it_finite():
    cast = {"target": "large|small", "to": "float16"}
    (note,) = run({"cast_": cast})
    assert note.severity == "note"
    assert note.message == "out.safetensors: 'large' holds NaN or infinity"
    assert "float16 holds at most 65,504" in note.hint
    assert "`overflow: saturate`" in note.hint
    assert not run({"cast_": cast | {"overflow": "saturate"}})
    assert read("out.safetensors")["large"].tolist() == [65504.0, -2.0, 3.0]
    assert "bfloat16 holds them" in note.hint
    assert not run({"cast_": cast | {"to": "bfloat16"}})
    assert read("out.safetensors")["large"].tolist() == LARGE.astype(ml_dtypes.bfloat16).tolist()


@pytest.mark.parametrize("dtype", ["float8_e5m2", "float8_e4m3fnuz", "float32", "float64", "bfloat16"])
def test_infinity_and_nan_of_every_dtype_are_told(dtype: str):
    (note,) = run({"compute": {"from": {"x": "large"}, "expr": "x / (x - x)", "to": "large", "dtype": dtype}})
    assert "'large' holds" in note.message
    assert ("holds at most" in note.hint) == dtype.startswith("float8")


def test_an_assert_finds_the_step_that_makes_them_as_the_note_says():
    steps = [
        {"scale_": {"target": "small", "by": 2}},
        {"compute": {"from": {"x": "small"}, "expr": "log(x)", "to": "small"}},
    ]
    (note,) = run(*steps)
    assert "`assert: {finite: 'ALIAS::.*'}` after a step stops the run where they arise" in note.hint
    finite = {"assert": {"finite": "m::(large|small)"}}
    with pytest.raises(bs.PlanError, match="small") as stopped:
        run(steps[0], finite, steps[1], finite)
    assert stopped.value.diagnostics[0].code == "assert-failed"
    assert not run(steps[0], finite)


def test_what_stays_as_it_is_is_not_looked_at_and_what_is_moved_is_no_news():
    assert not run({"scale_": {"target": "small", "by": 2}}, {"move": {"from": "mask", "to": "h.mask"}})
    (note,) = run({"cast_": {"target": "mask", "to": "bfloat16"}})
    assert "'mask'" in note.message


def test_names_come_in_their_order_and_are_few():
    write("m.safetensors", {f"h.{i}.w": LARGE for i in range(12)})
    (note,) = run({"cast_": {"target": ".*", "to": "float16"}})
    first = ", ".join(f"'h.{i}.w'" for i in range(6))
    assert note.message == f"out.safetensors: {first}, and 6 more hold NaN or infinity"


def test_codes_of_fp8_that_have_scales_are_within_their_range():
    write("m.safetensors", {"w": np.outer(LARGE, SMALL)})
    assert not run({"quantize": {"target": "w", "to": "float8_e4m3fn", "per": "channel"}})


def test_a_conversion_tells_it_with_its_own_option():
    found = bs.convert("m.safetensors", "c.safetensors", dtype="float16")
    (note,) = [note for note in found.notes if note.code == "value-nonfinite"]
    assert "`overflow='saturate'`" in note.hint
    assert "assert" not in note.hint
    again = bs.convert("m.safetensors", "c.safetensors", dtype="float16", overflow="saturate", overwrite=True)
    assert not [note for note in again.notes if note.code == "value-nonfinite"]
