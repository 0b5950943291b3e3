"""`assign` with `missing` and `extra`: what fits is taken, and the step says what was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import brainsurgery_jax as bs

TRAINED = {f"layers.{i}.{n}": np.full(2, 10 * i + len(n), np.float32) for i in range(3) for n in ("w", "bias")}
FRESH = {name: np.zeros(2, np.float32) for name in ("layers.0.w", "layers.1.w", "layers.1.scale", "head.w")}
NAMES = {"from": r"t::layers\.(\d)\.(\w+)", "to": r"f::layers.\1.\2"}


def run(here: Path, step: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of `f` after an `assign`, and the messages."""
    bs.save(str(here / "t.safetensors"), TRAINED, overwrite=True)
    bs.save(str(here / "f.safetensors"), FRESH, overwrite=True)
    plan = bs.load({
        "inputs": [f"f::{here}/f.safetensors", f"t::{here}/t.safetensors"], "transforms": [{"assign": step}],
        "output": {"path": str(here / "out.safetensors"), "alias": "f", "overwrite": True},
    })  # fmt: skip
    report = plan.run(overwrite=True)
    made = bs.open(str(here / "out.safetensors"))
    return {name: made[name] for name in made}, [d.message for d in report.notes]


def expected(pairs: dict[str, str]) -> dict[str, np.ndarray]:
    return {name: TRAINED[pairs[name]] if name in pairs else value for name, value in FRESH.items()}


SHARED = {name: name for name in ("layers.0.w", "layers.1.w")}


def test_what_has_no_place_is_ignored_and_listed(tmp_path: Path):
    made, notes = run(tmp_path, {**NAMES, "extra": "ignore"})
    assert {n: v.tolist() for n, v in made.items()} == {n: v.tolist() for n, v in expected(SHARED).items()}
    (note,) = notes
    assert note.startswith("assign: 2 of 6 matches are assigned; 4 tensors of 't' are ignored ('layers.0.bias'")
    assert "1 tensor of 'f' is kept ('layers.1.scale')" in note  # `to` could not name head.w


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "'layers.0.bias' does not exist in 'f'"),
        ({"missing": "keep"}, "'layers.0.bias' does not exist in 'f'"),
        ({"extra": "ignore", "missing": "error"}, "1 tensor of 'f' gets no value ('layers.1.scale')"),
        ({"extra": "ignore", "from": r"t::layers\.(2)\.(\w+)"}, "has a tensor in 'f' to fill"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(tmp_path: Path, keys: dict[str, str], message: str):
    with pytest.raises(bs.PlanError) as caught:
        run(tmp_path, {**NAMES, **keys})
    assert message in str(caught.value)


def test_nothing_is_said_where_all_is_taken(tmp_path: Path):
    step = {"from": r"t::layers\.([01])\.w", "to": r"f::layers.\1.w", "missing": "error", "extra": "error"}
    made, notes = run(tmp_path, step)
    assert {n: v.tolist() for n, v in made.items()} == {n: v.tolist() for n, v in expected(SHARED).items()}
    assert notes == []


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.body = nnx.Linear(2, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def test_streams_of_random_numbers_are_passed_over():
    ours, theirs = nnx.state(Model(nnx.Rngs(0))), nnx.state(Model(nnx.Rngs(1)), nnx.Param)
    plan = bs.load({
        "inputs": ["f::given", "t::given"],
        "transforms": [{"assign": {"from": "t::(.*)", "to": r"f::\1", "missing": "error"}}],
    })  # fmt: skip
    made = plan.apply(ours, t=theirs)
    assert (made["body"]["kernel"][...] == theirs["body"]["kernel"][...]).all()
    assert (made["drop"]["rngs"]["key"][...] == ours["drop"]["rngs"]["key"][...]).all()
    del theirs["body"]["bias"]
    with pytest.raises(bs.PlanError, match=r"1 tensor of 'f' gets no value \('body.bias'\)"):
        plan.apply(ours, t=theirs)


def test_streams_in_a_checkpoint_are_passed_over(tmp_path: Path):
    bs.save(str(tmp_path / "f"), nnx.state(Model(nnx.Rngs(0))), format="orbax")
    trained = nnx.state(Model(nnx.Rngs(1)), nnx.Param)
    bs.save(str(tmp_path / "t"), trained, format="orbax")
    bs.load({
        "inputs": [f"f::{tmp_path}/f", f"t::{tmp_path}/t"],
        "transforms": [{"assign": {"from": "t::(.*)", "to": r"f::\1", "missing": "error"}}],
        "output": {"path": str(tmp_path / "out"), "alias": "f"},
    }).run()  # fmt: skip
    model = bs.open(str(tmp_path / "out")).to_nnx(Model(nnx.Rngs(2)))
    assert (model.body.kernel[...] == trained["body"]["kernel"][...]).all()
