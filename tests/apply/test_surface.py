"""Messages speak of what their reader wrote: keys and arguments in Python, commands and options in a shell."""

from __future__ import annotations

import json
from collections import OrderedDict
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError, speaking
from tests import checkpoints


def message(*items, **variables) -> str:
    with pytest.raises(PlanError) as refused:
        bs.load(*items, **variables).check()
    return str(refused.value)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return checkpoints.write(Path("m.safetensors"), {"w": np.ones(2, np.float32)}).name


def test_a_mistake_in_a_mapping_is_placed_by_keys_and_indices(model: str) -> None:
    steps = [{"copy": {"from": "w", "to": "v"}}, {"concat": {"from": ["w", "x"], "to": "y"}}]
    found = message({"inputs": [model], "transforms": steps})
    assert found.startswith("transforms[1].concat.from: no tensor matches 'x'")


def test_mistakes_in_a_mapping_come_in_its_order(model: str) -> None:
    plan = {"inputs": [model], "transforms": [{"delete": {"target": f"x{n}"}} for n in range(12)], "nonsense": 1}
    lines = [line for line in message(plan).splitlines() if line[0] != " "]
    assert [line.partition(":")[0] for line in lines] == [
        *(f"transforms[{n}].delete.target" for n in range(12)), "nonsense",
    ]  # fmt: skip


def scaled(by: Any) -> dict[str, Any]:
    return {"inputs": ["m.safetensors"], "transforms": [{"scale_": {"target": "w", "by": by}}]}


@pytest.mark.parametrize(
    "number",
    [np.float32(2), np.float64(2), np.int8(2), np.array(2), jnp.bfloat16(2), jnp.float32(2)],
    ids=lambda x: f"{type(x).__name__} {x.dtype}",
)
def test_a_number_of_numpy_or_jax_is_a_number_in_a_mapping(model: str, number: Any) -> None:
    assert bs.load(scaled(number)).apply({"w": np.ones(2)})["w"].tolist() == [2, 2]
    assert bs.load(scaled("${vars.by}"), by=number).apply({"w": np.ones(2)})["w"].tolist() == [2, 2]


def test_texts_and_mappings_of_classes_of_their_own_are_taken_as_such(model: str) -> None:
    class Op(StrEnum):
        SCALE = "scale_"

    steps = (OrderedDict({Op.SCALE: MappingProxyType({"target": np.str_("w"), "by": True + 1})}),)
    assert bs.load({"transforms": steps}).apply({"w": np.ones(2)})["w"].tolist() == [2, 2]


def test_an_object_in_a_mapping_is_refused_with_its_place(model: str) -> None:
    found = message(scaled(np.ones(2)))
    assert found.startswith("transforms[0].scale_.by: a plan holds texts, numbers, lists and mappings, ")
    assert "found an object of type numpy.ndarray [value-type]" in found
    assert "numpy.longdouble" in message(scaled(np.longdouble(2)))
    assert "pathlib." in message({"inputs": [Path(model)]})
    assert message({"inputs": []}, rank=object()).startswith("keyword rank: a plan holds")
    assert message({("inputs", 1): []}).startswith("the plan: a key must be a text, found ('inputs', 1)")


@pytest.mark.parametrize(("mend", "value"), [("str(path)", Path("w")), ("array.tolist()", np.array([[0]]))])
def test_what_the_refusal_of_an_object_proposes_makes_it_plain(model: str, mend: str, value: Any) -> None:
    plan = {"transforms": [], "vars": {"x": value}}
    assert f"`{mend}`" in message(plan)
    plan["vars"] = {"x": eval(mend, {"path": value, "array": value})}
    bs.load(plan)


def test_a_list_of_steps_is_answered_with_the_form_of_a_plan(model: str) -> None:
    steps = [{"scale_": {"target": "w", "by": 2}}]
    found = message(steps)
    assert "a plan must be a mapping, but this is a list [plan-not-a-mapping]" in found
    mended = found.split("`")[1].replace("PATH]", f"'{model}']").replace("PATH", "'out'")
    eval(f"bs.{mended}", {"bs": bs, "steps": steps}).check()


def test_a_list_of_paths_is_to_be_unpacked(model: str) -> None:
    Path("plan.yaml").write_text(json.dumps(scaled(2)))
    items = ["plan.yaml", "seed=1"]
    found = message(items)
    assert "`load(*items)`" in found
    bs.load(*items).check()


def test_what_cannot_be_a_plan_is_refused_with_what_can(model: str) -> None:
    found = message(2)
    assert "this is an object of type int" in found
    bs.load(scaled(1), found.split("'")[1])


def test_a_variable_that_is_not_used_is_a_keyword(model: str) -> None:
    steps = [{"scale_": {"target": "w", "by": "${vars.rank}"}}]
    found = message({"inputs": [model], "vars": {"rank": 1}, "transforms": steps}, rnk=2)
    assert found.startswith("keyword rnk: 'rnk' is used nowhere in the plan. Did you mean 'rank'?")


def test_a_variable_without_a_value_is_given_by_a_keyword(model: str) -> None:
    plan = {"inputs": [model], "transforms": [{"scale_": {"target": "w", "by": "${vars.rank}"}}]}
    assert "or as a keyword: `load(..., rank=...)`." in message(plan)
    with speaking("shell"):
        assert "or on the command line: `vars.rank=...`." in message(plan)
    bs.load(plan, rank=2).check()


def test_names_are_listed_by_python_in_python(model: str) -> None:
    plan = {"inputs": [model], "transforms": [{"delete": {"target": "x"}}]}
    assert "`list(bs.open('m.safetensors'))` lists the names" in message(plan)
    assert eval("list(bs.open('m.safetensors'))") == ["w"]
    with speaking("shell"):
        assert "`brainsurgery-jax inspect m.safetensors` lists the names" in message(plan)


def test_after_a_block_for_the_shell_messages_speak_python_again(model: str) -> None:
    plan = {"inputs": [model], "transforms": [{"nonsense": {}}]}
    with speaking("shell"):
        assert "brainsurgery-jax ops" in message(plan)
    assert "brainsurgery-jax" not in message(plan)


def test_save_names_its_arguments(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"^save\(format=...\): unknown format 'tensors'"):
        bs.save(str(tmp_path / "x"), {"w": np.ones(2)}, format="tensors")


def test_to_nnx_names_its_arguments(model: str) -> None:
    from flax import nnx

    module = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(PlanError, match=r"^to_nnx\(layout=...\): unknown layout 'tunixx'"):
        bs.open(model).to_nnx(module, layout="tunixx")


def test_convert_names_its_arguments_in_python(model: str) -> None:
    with pytest.raises(PlanError) as refused:
        bs.convert(model, "out/", layout="maxtext")
    assert "`config=PATH`" in str(refused.value)
    assert "`layout='flax'`" in str(refused.value)
    assert "--" not in str(refused.value)


def test_a_plan_file_keeps_its_lines_in_python(model: str) -> None:
    Path("plan.yaml").write_text(json.dumps({"inputs": [model], "transforms": [{"delete": {"target": "x"}}]}))
    assert message("plan.yaml").startswith("plan.yaml:1:")


def test_a_verdict_is_labelled_by_its_place_in_the_mapping() -> None:
    plan = bs.load({"transforms": [{"assert": {"finite": ".*"}}]})
    _, verdicts = plan.apply({"a": np.ones(1)}, checks="return")
    assert list(verdicts) == ["step 1: assert.finite (transforms[0].assert)"]
