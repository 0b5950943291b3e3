"""Models of no known family: the step says what they are made of, judged by NumPy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import brainsurgery_jax as bs

LAYERS, WIDTH, INNER, HEADS, HEAD, WORDS = 4, 8, 20, 3, 2, 90
CONFIG = {"model_type": "mine", "n_blocks": LAYERS, "d_ff": INNER, "n_words": WORDS, "width": WIDTH, "n_heads": HEADS,
          "d_head": HEAD, "layer_types": ["a", "b", "a", "b"]}  # fmt: skip
BLOCK = "model.blocks.*"
STACK: dict[str, Any] = {"layers": BLOCK}
NEURONS = {
    **STACK, "dims": {"L": "n_blocks", "F": "d_ff"},
    "shapes": {f"{BLOCK}.ff.up.weight": ["F", "_"], f"{BLOCK}.ff.up.bias": "F", f"{BLOCK}.ff.down.weight": ["_", "F"]},
}  # fmt: skip
ATTENTION = {
    **STACK, "dims": {"L": "n_blocks", "N": "n_heads", "H": "d_head"},
    "shapes": {f"{BLOCK}.attn.qkv.weight": ["N*H + N*H + N*H", "_"], f"{BLOCK}.attn.out.weight": ["_", "N*H"]},
}  # fmt: skip
TABLES = {"dims": {"V": "n_words"}, "shapes": {"{embed,head}.weight": ["V", "_"]}}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def block(number: int) -> dict[str, np.ndarray]:
    own = {"attn.qkv.weight": normal(3 * HEADS * HEAD, WIDTH), "attn.out.weight": normal(WIDTH, HEADS * HEAD),
           "ff.up.weight": normal(INNER, WIDTH), "ff.up.bias": normal(INNER), "ff.down.weight": normal(WIDTH, INNER),
           "norm.weight": normal(WIDTH)}  # fmt: skip
    return {f"model.blocks.{number}.{name}": x + number for name, x in own.items()}


TENSORS = {"embed.weight": normal(WORDS, WIDTH), "head.weight": normal(WORDS, WIDTH)}
for at in range(LAYERS):
    TENSORS |= block(at)


def run(tmp_path: Path, step: dict[str, Any], config: dict[str, Any] | None = CONFIG) -> dict[str, np.ndarray]:
    """The tensors after a step on the model."""
    (tmp_path / "in").mkdir()
    save_file(TENSORS, tmp_path / "in" / "model.safetensors")
    if config is not None:
        (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    plan = {"inputs": [f"{tmp_path / 'in'}/"], "transforms": [step], "output": f"{tmp_path / 'out'}/"}
    bs.load(plan).run(durable=False)
    return load_file(tmp_path / "out" / "model.safetensors")


def config_of(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "config.json").read_text())


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(found[name], x, name)


def test_layers_go_and_config_says_how_many_are_left(tmp_path: Path) -> None:
    found = run(tmp_path, {"layers": {"drop": [1], "family": {**STACK, "dims": {"L": "n_blocks"}}}})
    wanted = {n: x for n, x in TENSORS.items() if "blocks" not in n or "blocks.0" in n}
    for at, source in ((1, 2), (2, 3)):
        lead = f"model.blocks.{source}."
        wanted |= {n.replace(lead, f"model.blocks.{at}."): x for n, x in TENSORS.items() if n.startswith(lead)}
    assert_equal(found, wanted)
    assert config_of(tmp_path) == {**CONFIG, "n_blocks": 3, "layer_types": ["a", "a", "b"]}


def test_a_number_stands_for_a_key_where_there_is_no_config(tmp_path: Path) -> None:
    found = run(tmp_path, {"layers": {"keep": [0], "family": {**STACK, "dims": {"L": LAYERS}}}}, config=None)
    assert_equal(found, {n: x for n, x in TENSORS.items() if "blocks" not in n or "blocks.0" in n})
    assert not (tmp_path / "out" / "config.json").exists()


def test_copies_add_nothing_by_what_writes_the_stream(tmp_path: Path) -> None:
    family = {**STACK, "dims": {"L": "n_blocks"}, "writers": ["attn.out.weight", "ff.down.weight"]}
    found = run(tmp_path, {"layers": {"order": [0, 0], "scale_copies": 0, "family": family}})
    for name in ("attn.out.weight", "ff.down.weight"):
        assert found[f"model.blocks.0.{name}"].any() and not found[f"model.blocks.1.{name}"].any()
    np.testing.assert_array_equal(found["model.blocks.1.ff.up.weight"], TENSORS["model.blocks.0.ff.up.weight"])


def test_words_are_added(tmp_path: Path) -> None:
    found = run(tmp_path, {"vocab": {"multiple_of": 64, "rows": "zero", "family": TABLES}})
    padded = {n: np.pad(TENSORS[n], ((0, 38), (0, 0))) for n in ("embed.weight", "head.weight")}
    assert_equal(found, TENSORS | padded)
    assert config_of(tmp_path) == {**CONFIG, "n_words": 128}


def test_neurons_go_from_every_tensor_that_is_named(tmp_path: Path) -> None:
    found = run(tmp_path, {"prune": {"neurons": [0, 3], "family": NEURONS}})
    left = [n for n in range(INNER) if n not in (0, 3)]
    cut = {n: x[:, left] if "down" in n else x[left] for n, x in TENSORS.items() if ".ff." in n}
    assert_equal(found, TENSORS | cut)
    assert config_of(tmp_path) == {**CONFIG, "d_ff": 18}


def test_heads_go_from_each_part_of_a_fused_tensor(tmp_path: Path) -> None:
    found = run(tmp_path, {"prune": {"heads": [1], "family": ATTENTION}})
    left, inner = [0, 1, 4, 5], HEADS * HEAD
    fused = [n + part * inner for part in range(3) for n in left]
    cut = {n: x[:, left] if "out" in n else x[fused] for n, x in TENSORS.items() if ".attn." in n}
    assert_equal(found, TENSORS | cut)
    assert config_of(tmp_path) == {**CONFIG, "n_heads": 2}


def without(family: dict[str, Any], name: str) -> dict[str, Any]:
    return {**family, "shapes": {n: shape for n, shape in family["shapes"].items() if name not in n}}


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ({"layers": {"drop": [1]}}, "no family that is known; model_type 'mine' says no more"),
        ({"prune": {"neurons": [0], "family": without(NEURONS, "bias")}}, "'model.blocks.*.ff.up.bias' may have"),
        ({"layers": {"drop": [1], "family": TABLES}}, "has no layers"),
        ({"layers": {"drop": [1], "family": {**STACK}}}, "a dim L that counts them, got 'model.blocks.*'"),
        ({"layers": {"order": [0, 0], "scale_copies": 0, "family": {**STACK, "dims": {"L": "n_blocks"}}}},
         "does not say what layers add to the stream"),
        ({"vocab": {"size": 9, "family": {"dim": {}}}}, "a family has no key 'dim'. Did you mean 'dims'?"),
        ({"vocab": {"size": 9, "family": {"dims": []}}}, "expected a mapping for dims, got []"),
        ({"vocab": {"size": 9, "family": {"dims": {"V": [True]}}}}, "expected texts for the dim V, got True"),
        ({"vocab": {"size": 9, "family": {"dims": {"V": "2 +"}}}}, "the dim V:"),
        ({"vocab": {"size": 9, "family": {"shapes": {"embed.weight": ["V", "_"]}}}}, "uses V, which is no dim"),
        ({"vocab": {"size": 9, "family": {**TABLES, "shapes": {"embd.weight": ["V", "_"]}}}},
         "there is no tensor 'embd.weight', with `*` for numbers. Did you mean 'embed.weight'?"),
        ({"vocab": {"size": 9, "part": "text", "family": TABLES}}, "has no part 'text'"),
        ({"vocab": {"size": 9, "family": {**TABLES, "dims": {"V": "words"}}}}, "has no words"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(step: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(bs.PlanError, match=re.escape(why)):
        run(tmp_path, step)
    assert not (tmp_path / "out").exists()
