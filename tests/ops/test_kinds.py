"""References that take one kind of dtypes: a tensor of another kind is not in the set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.plan.schema import plan_schema
from brainsurgery_jax.select import KINDS, kind_of, parse_ref
from tests import checkpoints
from tests.checkpoints import DTYPES, problems, run_plan

FLOATS = {"name": ".*", "kind": "float"}
TENSORS = {
    "w": np.arange(4, dtype=np.float16), "b": np.array([1, 2], ml_dtypes.bfloat16), "ids": np.array([29, 3]),
    "u": np.array([7], np.uint8), "m": np.array([True, False]), "z": np.array([1j], np.complex64),
}  # fmt: skip
OTHER = {name: (array if array.dtype == bool else array * array.dtype.type(3)) for name, array in TENSORS.items()}


def merged(folder: Path, steps: list[Any], a: Any = TENSORS, b: Any = OTHER, alias: str = "a") -> dict[str, np.ndarray]:
    """What steps on two checkpoints make of the first."""
    for name, tensors in (("a", a), ("b", b)):
        checkpoints.write(folder / f"{name}.safetensors", tensors)
    output = {"path": str(folder / "out.safetensors"), "alias": alias}
    inputs = [f"{name}::{folder / name}.safetensors" for name in "ab"]
    bs.load({"inputs": inputs, "transforms": steps, "output": output}).run(durable=False)
    return checkpoints.read(folder / "out.safetensors")


def changed(made: dict[str, np.ndarray]) -> set[str]:
    return {name for name in TENSORS if made[name].tobytes() != TENSORS[name].tobytes()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_of_one_kind(dtype) -> None:
    assert [kind for kind in KINDS if parse_ref({"name": "x", "kind": kind}, "m").takes(dtype)] == [kind_of(dtype)]


@pytest.mark.parametrize(
    ("kind", "names"), [("float", {"w", "b"}), ("integer", {"ids", "u"}), ("bool", {"m"}), ("complex", {"z"})]
)
def test_a_step_works_on_tensors_of_its_kind_alone(kind: str, names: set[str], tmp_path: Path) -> None:
    made = run_plan(tmp_path, TENSORS, [{"delete": {"target": {"name": ".*", "kind": kind}}}])
    assert set(TENSORS) - set(made) == names


def test_pairs_are_of_the_kind_of_the_pattern(tmp_path: Path) -> None:
    step = {"compute": {"from": {"a": {"alias": "a", **FLOATS}, "b": r"b::\g<0>"}, "expr": "(a + b) / 2"}}
    made = merged(tmp_path, [step])
    assert changed(made) == {"w", "b"}
    assert made["w"].tolist() == (2 * TENSORS["w"]).tolist()


def test_a_tensor_of_one_side_alone_is_refused_in_spite_of_a_kind(tmp_path: Path) -> None:
    step = {"compute": {"from": {"a": {"alias": "a", **FLOATS}, "b": r"b::\g<0>"}, "expr": "(a + b) / 2"}}
    with pytest.raises(bs.PlanError, match=r"1 tensor of 'b' has no partner in 'a' \('head'\)"):
        merged(tmp_path, [step], b={**OTHER, "head": np.ones(2, np.float32)})


def test_a_partner_of_another_kind_than_is_asked_for_is_none(tmp_path: Path) -> None:
    step = {"lerp_": {"from": "b::w", "to": {"alias": "a", "name": "w", "kind": "integer"}, "t": 0.5}}
    with pytest.raises(bs.PlanError, match=r"1 tensor of 'b' has no partner in 'a' \('w'\)"):
        merged(tmp_path, [step])


def test_nothing_of_another_kind_is_replaced_by_what_is_kept(tmp_path: Path) -> None:
    """A float where the other model has integers stands alone, and does not take their place."""
    broken = {"w": OTHER["w"], "ids": np.array([28.9, 3], np.float16)}
    to = {"alias": "a", "name": r"\g<0>", "kind": "float"}
    step = {"lerp_": {"from": "b::.*", "to": to, "t": 0.5, "unmatched": "keep"}}
    with pytest.raises(bs.PlanError, match=r"'a::ids' is i64\[2\], which `kind` leaves out of this step"):
        merged(tmp_path, [step], a={name: TENSORS[name] for name in ("w", "ids")}, b=broken)


def test_asserts_and_reports_take_a_kind(tmp_path: Path) -> None:
    steps = [
        {"assert": {"count": {"of": {"name": ".*", "kind": "integer"}, "is": 2}}},
        {"cast_": {"target": FLOATS, "to": "float32"}},
        {"assert": {"dtype": {"of": FLOATS, "is": "float32"}}},
        {"assert": {"unchanged": {"of": [{"name": ".*", "kind": "integer"}]}}},
        {"assert": {"unchanged": {"except": [FLOATS]}}},
        {"assert": {"equal": {"left": FLOATS, "right": {"name": r"\g<0>", "kind": "float"}}}},
    ]
    assert run_plan(tmp_path, TENSORS, steps)["w"].dtype == np.float32


def test_unchanged_goes_by_the_kind_that_came_in(tmp_path: Path) -> None:
    steps = [{"cast_": {"target": "w", "to": "int8"}}, {"assert": {"unchanged": {"of": [FLOATS]}}}]
    (found,) = (p for p in problems(tmp_path, TENSORS, steps) if p.severity == "error")
    assert "'w' came in as f16[4], and is i8[4] now" in found.message


def test_dump_prints_what_is_of_its_kind(tmp_path: Path) -> None:
    plan = {"inputs": [str(checkpoints.write(tmp_path / "m.safetensors", TENSORS))]}
    report = bs.load({**plan, "transforms": [{"dump": {"target": {"name": ".*", "kind": "bool"}}}]}).run()
    assert ("m" in report.said[0], "ids" in report.said[0]) == (True, False)


def test_what_else_a_name_matches_is_said_where_its_kind_matches_nothing(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, TENSORS, [{"delete": {"target": {"name": "w|b|m", "kind": "integer"}}}])
    assert "no tensor of kind integer matches 'w|b|m'" in found.message
    assert found.hint == "Without `kind` it matches 2 tensors of kind float and 1 tensor of kind bool."


def test_a_failed_step_leaves_what_its_kind_leaves_out(tmp_path: Path) -> None:
    steps = [{"scale_": {"target": FLOATS, "by": "x"}}, {"copy": {"from": "ids", "to": "u"}}]
    assert [d.code for d in problems(tmp_path, TENSORS, steps)] == ["value-type"]
    steps[0] = {"fill_": {"target": FLOATS, "mode": "constant", "value": 1e30}}
    assert [d.code for d in problems(tmp_path, TENSORS, steps)] == ["fill-range", "dest-exists"]


def test_the_schema_knows_kinds_where_tensors_are_chosen() -> None:
    check = jsonschema.Draft202012Validator(plan_schema())
    assert check.is_valid({"transforms": [{"copy": {"from": FLOATS, "to": "x"}}]})
    assert not check.is_valid({"transforms": [{"copy": {"from": "x", "to": FLOATS}}]})
    assert not check.is_valid({"transforms": [{"copy": {"from": {"name": "x", "kind": "floats"}, "to": "y"}}]})
