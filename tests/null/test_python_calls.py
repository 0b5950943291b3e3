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


TENSORS = {"w": np.ones((2, 2), np.float32)}


def call_with_memory(verb: str, folder: Path, memory: Any) -> object:
    path = write(folder / "m.safetensors", TENSORS)
    scale = {"scale_": {"target": "w", "by": 2}}
    plan = bs.load({"inputs": [f"m::{path}"], "transforms": [scale], "output": f"{folder}/out.safetensors"})
    match verb:
        case "run" | "explain":
            return getattr(bs, verb)(plan, memory=memory)
        case "diff":
            return bs.diff(path, path, memory=memory)
        case "histogram":
            return bs.histogram(path, "w", memory=memory)
        case "report":
            return bs.report(path, to=folder / "page.html", memory=memory)
    return getattr(bs, verb)(path, memory=memory)


VERBS = ("run", "explain", "stats", "fingerprint", "diff", "spectrum", "histogram", "report")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("memory", ["2GB", "none", 2 << 30, np.int64(2 << 30), None])
def test_memory_is_a_number_of_bytes_or_what_the_command_line_takes(verb: str, memory: Any, tmp_path: Path) -> None:
    call_with_memory(verb, tmp_path, memory)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("memory", "kind", "match"),
    [
        ("20 apples", ValueError, r"memory='20 apples': expected a size such as 5GB or 500MB, or none"),
        ("0MB", ValueError, r"memory='0MB': a size must be more than zero"),
        (0, ValueError, r"memory must be more than zero, got 0\. Write memory='5GB', or leave it out\."),
        (2.5, TypeError, r"memory takes a number of bytes or a text, got 2\.5\. Write memory='5GB'\."),
        (True, TypeError, r"memory takes a number of bytes or a text, got True\. Write memory='5GB'\."),
    ],
)
def test_memory_that_is_no_size_is_refused_with_one_that_is(
    verb: str, memory: Any, kind: type[Exception], match: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=match):
        call_with_memory(verb, tmp_path, memory)
    assert not (tmp_path / "out.safetensors").exists()
    if "Write memory='5GB'" in match:
        call_with_memory(verb, tmp_path, "5GB")


def test_a_shard_size_as_a_number_shows_how_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(bs.PlanError, match=r"save\(shard=...\): expected text, got 1000") as caught:
        bs.save(tmp_path / "out", TENSORS, shard=1000)  # pyright: ignore[reportArgumentType]
    assert "`shard: 2GB`" in str(caught.value)
    bs.save(tmp_path / "out", TENSORS, shard="2GB")
