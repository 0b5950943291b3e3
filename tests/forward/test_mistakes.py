"""Mistakes around the logits of two models, and that what each hint says mends them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import brainsurgery_jax as bs

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}  # fmt: skip
Arrays = dict[str, np.ndarray]


def tensors() -> Arrays:
    source = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (11, 8), "lm_head": (11, 8), "model.norm": (8,)}
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {
            f"{at}.self_attn.{n}_proj": s for n, s in (("q", (8, 8)), ("k", (4, 8)), ("v", (4, 8)), ("o", (8, 8)))
        }
        shapes |= {f"{at}.mlp.{n}_proj": s for n, s in (("gate", (12, 8)), ("up", (12, 8)), ("down", (8, 12)))}
        shapes |= {f"{at}.input_layernorm": (8,), f"{at}.post_attention_layernorm": (8,)}
    return {f"{name}.weight": source.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, config: dict[str, Any] | None, arrays: Arrays) -> None:
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / "model.safetensors")
    if config is None:
        (folder / "config.json").unlink(missing_ok=True)
    else:
        (folder / "config.json").write_text(json.dumps(config))


def the_plan(right: str = "b", **keys: Any) -> bs.Plan:
    step = {"assert": {"logits": {"left": "a", "right": right, "max_diff": 1e-4, "tokens": [3, 1, 4], **keys}}}
    return bs.load({"inputs": ["a::a/", "b::b/"], "transforms": [step], "output": {"path": "c/", "alias": "b"}})


def without(key: str, given: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in given.items() if k != key}


def renumbered(arrays: Arrays) -> Arrays:
    return {name.replace("layers.1.", "layers.2."): x for name, x in arrays.items()}


class Case(NamedTuple):
    """What is wrong with the config and the tensors of `b`, the code, and the words of the hint that mends it."""

    name: str
    code: str
    hint: str
    config: Callable[[dict[str, Any]], dict[str, Any] | None] = dict
    arrays: Callable[[Arrays], Arrays] = dict


UP = "model.layers.1.mlp.up_proj.weight"
CASES = (
    Case("no config", "forward-incomplete", "Put the config.json of the model beside its tensors.", lambda c: None),
    Case("another family", "forward-unsupported", "These have: ", lambda c: {**c, "model_type": "rwkv"}),
    Case("no size", "forward-unsupported", "Add `intermediate", lambda c: without("num_attention_heads", c)),
    Case("an activation", "forward-unsupported", "Known are ", lambda c: {**c, "hidden_act": "mish"}),
    Case("rotary embeddings", "forward-unsupported", "Compare the logits in the framework of the model",
         lambda c: {**c, "rope_scaling": {"rope_type": "longrope"}}),
    Case("types of layers", "forward-unsupported", "Give `layer_types` one entry for each layer.",
         lambda c: {**c, "model_type": "qwen2", "layer_types": ["full_attention"]}),
    Case("no heads", "forward-unsupported", "Copy the config.json of the model again.",
         lambda c: without("head_dim", {**c, "num_attention_heads": 0})),
    Case("a billion layers", "forward-unsupported", "Copy the config.json of the model again.",
         lambda c: {**c, "num_hidden_layers": 10**9}),
    Case("no embeddings", "forward-incomplete", "Name a whole model: its logits need every layer.",
         arrays=lambda t: without("model.embed_tokens.weight", t)),
    Case("left over", "forward-unsupported", "Correct `model_type` in config.json, or remove the tensor.",
         arrays=lambda t: {**t, "model.layers.0.self_attn.q_norm.weight": np.ones(4, np.float32)}),
    Case("layers", "forward-incomplete", "Correct the number of layers in config.json, or number the layers from 0.",
         lambda c: {**c, "num_hidden_layers": 3}),
    Case("numbers of layers", "forward-incomplete", "or number the layers from 0.", arrays=renumbered),
    Case("no weight", "forward-incomplete", "Name a whole model, or correct `model_type` in config.json.",
         arrays=lambda t: without(UP, t)),
    Case("no last norm", "forward-incomplete", "Name a whole model, or correct config.json.",
         arrays=lambda t: without("model.norm.weight", t)),
    Case("a scale of the head", "forward-unsupported", "Correct `model_type` in config.json, or remove the tensor.",
         arrays=lambda t: {**t, "lm_head.scale": np.ones(11, np.float32)}),
    Case("a bias of a part of the head", "forward-incomplete", "Correct the sizes in config.json, or the tensor",
         arrays=lambda t: {**t, "lm_head.bias": np.ones(7, np.float32)}),
    Case("other heads", "forward-incomplete", "Correct the sizes in config.json, or the tensor",
         lambda c: {**c, "num_attention_heads": 4}),
    Case("another inner width", "forward-incomplete", "Correct the sizes in config.json, or the tensor",
         arrays=lambda t: {**t, UP: t[UP][:6]}),
    Case("no head", "forward-incomplete", "Add `tie_word_embeddings: true` to it if the embeddings are the head.",
         arrays=lambda t: without("lm_head.weight", t)),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_model_without_logits_is_refused_and_its_remedy_mends_it(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a"), CONFIG, tensors())
    write(Path("b"), case.config(CONFIG), case.arrays(tensors()))
    with pytest.raises(bs.PlanError) as refused:
        the_plan().check()
    (found,) = refused.value.diagnostics
    assert found.code == case.code
    assert case.hint.removesuffix("intermediate") in found.hint
    write(
        Path("b"), CONFIG, tensors()
    )  # what every one of them says in other words: the whole model, rightly described
    the_plan().run(durable=False)


def test_the_embeddings_are_the_head_where_the_config_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tied = without("lm_head.weight", tensors())
    write(Path("a"), {**CONFIG, "tie_word_embeddings": True}, tied)
    write(Path("b"), CONFIG, {**tied, "lm_head.weight": tied["model.embed_tokens.weight"]})
    assert bs.compare_logits("a", "b", tokens=[1, 2]).max_diff < 1e-6


@pytest.mark.parametrize(
    ("keys", "code", "hint", "mended"),
    [
        ({"tokens": [3, 11]}, "forward-tokens", "Valid are 0 to 10.", {"tokens": [3, 10]}),
        ({"tokens": []}, "forward-tokens", "Give a short sequence: 32 tokens show a difference.", {"tokens": 32}),
        ({"tokens": 10**9}, "forward-tokens", "Give a short sequence: 32 tokens show a difference.", {"tokens": 4096}),
        ({"max_diff": None}, "bounds-missing", "Write, for example, `max_diff: 1e-4`.", {"max_diff": 1e-4}),
    ],
)
def test_keys_that_ask_for_nothing_are_refused(
    keys: dict[str, Any], code: str, hint: str, mended: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a"), CONFIG, tensors())
    write(Path("b"), CONFIG, tensors())
    with pytest.raises(bs.PlanError) as refused:
        the_plan(**keys).check()
    (found,) = refused.value.diagnostics
    assert (found.code, found.hint) == (code, hint)
    the_plan(**mended).run(durable=False)


def test_an_expert_that_is_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {**CONFIG, "model_type": "olmoe", "num_experts": 2, "num_experts_per_tok": 1}
    arrays = {name: x for name, x in tensors().items() if ".mlp." not in name}
    for i in range(2):
        at = f"model.layers.{i}"
        arrays |= {f"{at}.mlp.gate.weight": np.ones((2, 8), np.float32)}
        arrays |= {f"{at}.self_attn.{n}_norm.weight": np.ones(4, np.float32) for n in "qk"}
        for e in range(2):
            for name, shape in (("gate", (12, 8)), ("up", (12, 8)), ("down", (8, 12))):
                arrays[f"{at}.mlp.experts.{e}.{name}_proj.weight"] = np.ones(shape, np.float32)
    write(Path("a"), config, arrays)
    write(Path("b"), config, without("model.layers.1.mlp.experts.1.up_proj.weight", arrays))
    with pytest.raises(bs.PlanError, match=r"no tensor 'model\.layers\.1\.mlp\.experts\.1\.up_proj\.weight'"):
        the_plan().check()
    write(Path("b"), config, arrays)
    the_plan().run(durable=False)


def test_vocabularies_of_two_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a"), CONFIG, tensors())
    longer = tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        longer[name] = np.concatenate([longer[name], np.zeros((1, 8), np.float32)])
    write(Path("b"), {**CONFIG, "vocab_size": 12}, longer)
    with pytest.raises(bs.PlanError, match="the logits of the left are"):
        the_plan().check()
    assert load_file("b/model.safetensors").keys() == tensors().keys()


def test_a_changed_weight_breaks_the_assert_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a"), CONFIG, tensors())
    write(Path("b"), CONFIG, {**tensors(), UP: tensors()[UP] * 2})
    with pytest.raises(bs.PlanError, match="the largest difference is"):
        the_plan().run(durable=False)
    assert not Path("c").exists()
