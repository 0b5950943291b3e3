"""What commands show of a tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import brainsurgery_jax as bs
from brainsurgery_jax.cli.app import app

TREE = {
    "opt": (None, {"m": jnp.ones(2)}),
    "key": jax.random.key(0),
    "q": jnp.ones(2, jnp.int4),
    "e": {},
    "n": 3,
    "s": "x",
}


@pytest.fixture(autouse=True)
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state in the folder `in`."""
    monkeypatch.chdir(tmp_path)
    bs.save("in/", TREE, format="orbax", durable=False)


def shown(*words: str) -> str:
    """What a command prints."""
    return CliRunner().invoke(app, list(words)).stdout


def test_inspect_shows_leaves_without_a_tensor_and_types() -> None:
    lines = [line.split() for line in shown("inspect", "in").splitlines()]
    for words in (["e", "{}"], ["[0]", "None"], ["s", "text"], ["(key<fry>)"], ["(int4)"], ["(number)"]):
        assert any(all(word in line for word in words) for line in lines), words


def test_inspect_as_json_tells_them_by_name() -> None:
    found = json.loads(shown("inspect", "in", "--json"))
    assert found["leaves"] == {"opt.0": "None", "e": "{}", "s": "text"}
    assert found["types"]["key"] == "key<fry>"
    assert found["types"]["q"] == "int4 in a jax.Array"


def test_a_part_and_a_target_show_their_own_leaves() -> None:
    assert json.loads(shown("inspect", "in::opt", "--json"))["leaves"] == {"0": "None"}
    assert json.loads(shown("inspect", "in", "--json", "--target", "opt.*"))["leaves"] == {"opt.0": "None"}


def explained(*steps: Any, json_wanted: bool = False) -> str:
    """What `explain` prints of a plan."""
    plan = {"inputs": ["m::in"], "transforms": list(steps), "output": {"path": "out/", "format": "orbax"}}
    Path("plan.yaml").write_text(json.dumps(plan))
    return shown("explain", "plan.yaml", *(["--json"] if json_wanted else []))


def test_explain_names_leaves_among_what_a_step_does_and_an_output_holds() -> None:
    text = explained({"move": {"from": r"opt\.(.*)", "to": r"state.\1"}}, {"delete": {"target": "e"}})
    assert "created 2: m::state.1.m, m::state.0" in text
    assert "deleted 1: m::e" in text
    assert "beside tensors: state.0, s" in text


def test_explain_as_json_has_them_by_output() -> None:
    (output,) = json.loads(explained(json_wanted=True))["outputs"]
    assert output["leaves"] == {"opt.0": "None", "e": "{}", "s": "text"}


def test_diff_lists_leaves_of_the_tree() -> None:
    bs.save("other/", {**TREE, "e": None, "n": np.array(3)}, format="orbax", durable=False)
    text = shown("diff", "in", "other")
    assert "e  {} -> None" in text
    assert "n  a Python number -> a numpy array" in text
    assert "other leaves of the tree" in text
