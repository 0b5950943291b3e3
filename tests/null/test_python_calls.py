"""Calls from Python with the wrong kind of thing: the error shows the call that is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import write


@pytest.mark.parametrize("verb", ["check", "explain", "run", "audit"])
def test_a_verb_that_is_given_a_path_shows_how_a_plan_is_loaded(verb: str, tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {"w": np.ones((2, 2), np.float32)})
    path = tmp_path / "plan.yaml"
    path.write_text(
        f"inputs: [m::{tmp_path}/m.safetensors]\ntransforms: [{{scale_: {{target: w, by: 2}}}}]\n"
        f"output: {tmp_path}/out.safetensors\n"
    )
    call: Callable[[Any], object] = getattr(bs, verb)
    with pytest.raises(TypeError, match=r"Load it: bs\.\w+\(bs\.load\('") as caught:
        call(str(path))
    eval(str(caught.value).partition("Load it: ")[2].removesuffix("."), {"bs": bs})


def test_a_plan_as_a_dict_is_loaded_first() -> None:
    with pytest.raises(TypeError, match=r"got a dict\. Load it: bs\.run\(bs\.load\(\.\.\.\)\)"):
        bs.run({"inputs": []})  # pyright: ignore[reportArgumentType]


def test_arguments_of_save_in_the_order_of_torch_are_told_apart(tmp_path: Path) -> None:
    tree = {"w": np.ones(2, np.float32)}
    with pytest.raises(TypeError, match=r"Write bs\.save\(path, tree\)\."):
        bs.save(tree, str(tmp_path / "t.safetensors"))  # pyright: ignore[reportArgumentType]
    bs.save(tmp_path / "t.safetensors", tree)
    assert [*bs.open(tmp_path / "t.safetensors")] == ["w"]


def test_open_takes_no_tree() -> None:
    with pytest.raises(TypeError, match=r"A tree is saved first: bs\.save\(path, tree\)\."):
        bs.open({"w": 1})  # pyright: ignore[reportArgumentType]
