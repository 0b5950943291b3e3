"""`diff`: what it prints, for people and for scripts, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.checkpoints import counting, write, write_raw
from tests.cli.conftest import Command
from tests.cli.test_pages import snapshot

NAN, INF = np.nan, np.inf


@pytest.fixture
def two(place: Path) -> Path:
    """Two checkpoints with every kind of difference, `left` and `right`."""
    left = {
        "h.10.w": counting((3, 4)) + 1,
        "h.2.w": (counting((2, 2)) + 1).astype(ml_dtypes.bfloat16),
        "zeros": np.zeros(2, np.float32),
        "x": np.array([NAN, 1, INF], np.float32),
        "ids": np.arange(5),
        "cast": np.array([1, 1.001], np.float32),
        "wide": np.zeros((2, 2), np.float32),
        "same": np.ones(3),
        "old": np.ones(1),
        "q": np.array([1 + 1j], np.complex64),
    }
    right = {name: tensor.copy() for name, tensor in left.items() if name != "old"}
    right["h.10.w"][1, 2] += 0.5
    right["h.2.w"] *= 2
    right["zeros"] += 1
    right["x"][1] = NAN
    right["ids"] = right["ids"].astype(np.int32)
    right["cast"] = right["cast"].astype(ml_dtypes.bfloat16)
    right["wide"] = np.zeros((2, 3), np.float32)
    right["q"] *= 2
    write(place / "left.safetensors", left)
    write(place / "right.safetensors", right | {"new\n": np.ones(1)})
    return place


def test_every_kind_of_difference_is_readable(command: Command, two: Path):
    done = command("diff", "left.safetensors", "right.safetensors")
    assert (done.code, done.err) == (1, "")
    snapshot("diff", done.out)


def test_quick_names_what_differs_without_figures(command: Command, two: Path):
    snapshot("diff_quick", command("diff", "left.safetensors", "right.safetensors", "--quick").out)


def test_json_tells_the_same_and_is_json_for_every_reader(command: Command, two: Path):
    done = command("diff", "left.safetensors", "right.safetensors", "--json")
    found = json.loads(done.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (done.code, found["schema_version"], found["same"], found["equal"]) == (1, 1, False, 1)
    assert (list(found["only_left"]), list(found["only_right"])) == (["old"], ["new\n"])
    assert found["differing"]["x"]["values"] == [1.0, "nan"]
    assert found["differing"]["x"]["largest"] == "inf"
    assert found["differing"]["h.10.w"]["index"] == [1, 2]
    assert found["differing"]["zeros"]["relative"] is None
    assert found["differing"]["wide"] == {
        "left": {"shape": [2, 2], "dtype": "float32"}, "right": {"shape": [2, 3], "dtype": "float32"}
    }  # fmt: skip


def test_the_same_is_0_and_one_line(command: Command):
    assert command("diff", "base.safetensors", "base.safetensors") == (0, "same: 3 tensors equal\n", "")


def test_within_a_tolerance_is_0_and_told(command: Command, two: Path):
    done = command("diff", "left.safetensors", "right.safetensors", "--target", r"h\.10\.w", "--eps", "0.5")
    assert done == (0, "same: 0 tensors equal, 1 within the tolerance\n", "")


def test_another_dtype_is_no_difference_where_it_is_ignored(command: Command, two: Path):
    words = ("diff", "left.safetensors", "right.safetensors", "--target", "ids|cast", "--rtol", "0.01")
    assert [command(*words).code, command(*words, "--ignore-dtype").code] == [1, 0]


def test_where_dtypes_are_ignored_values_are_what_differs(command: Command, two: Path):
    done = command("diff", "left.safetensors", "right.safetensors", "--target", "cast", "--ignore-dtype")
    assert done.out.startswith("other values:\n  cast  f32[2] -> bf16[2]")
    assert done.out.endswith("different: 0 tensors equal, 1 of other values\n")


def test_a_checkpoint_that_is_missing_is_2(command: Command):
    done = command("diff", "base.safetensors", "basis.safetensors")
    assert (done.code, done.out) == (2, "")
    assert "Did you mean 'base.safetensors'?" in done.err


def test_a_checkpoint_that_is_broken_is_2(command: Command, place: Path):
    write_raw(place / "short.safetensors", {"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, b"1234")
    assert command("diff", "base.safetensors", "short.safetensors").code == 2


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--target", "nothing"], "no tensor of"),
        (["--target", "("], "Invalid value"),
        (["--eps", "-1"], "--eps"),
        (["--eps", "nan"], "finite"),
        (["--memory", "much"], "much"),
        (["--memory", "1KB"], "budget-exceeded"),
        (["--frobnicate"], "No such option"),
        (["--quick", "--by", "layer"], "measures nothing"),
        (["--sort", "size"], "--sort"),
    ],
)
def test_what_cannot_be_compared_is_2(command: Command, words: list[str], found: str):
    done = command("diff", "base.safetensors", "base.safetensors", *words)
    assert (done.code, done.out) == (2, "")
    assert found in done.err


def test_diff_loads_neither_jax_nor_the_ops(loaded: Callable[..., set[str]]):
    assert not loaded("diff", "base.safetensors", "base.safetensors") & {
        "jax", "torch", "prompt_toolkit", "brainsurgery_jax.ops"
    }  # fmt: skip
