"""Hints about the structure of models, done as they say: the plan runs, and its output is a model of its config."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.structure.judged import make
from tests.structure.test_tokenizers import two_models, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

LAYER = r"model\.layers\.0\.mlp\.up_proj\.weight"
ASIDE = [{"prefixes": {"mode": "add", "alias": "aside"}}]


class Hinted(NamedTuple):
    """A tiny model, steps that are wrong (or only noted), a part of the hint, and steps as it says, for a model."""

    model: str
    wrong: Sequence[Any]
    says: str
    mended: Sequence[Any]
    instead: str = ""
    note: bool = False
    settings: Mapping[str, Any] = MappingProxyType({})


def put_aside(name: str, step: Any) -> list[Any]:
    return [
        *ASIDE, {"move": {"from": f"model::({name})", "to": r"aside::\1"}}, step,
        {"move": {"from": f"aside::({name})", "to": r"model::\1"}},
    ]  # fmt: skip


GONE = {"delete": {"target": r"model\.layers\.2\..*"}}
EXTRA = {"copy": {"from": r"model::lm_head\.weight", "to": "model::extra"}}
INNER = {"copy": {"from": f"model::{LAYER}", "to": "model::model.layers.0.mlp.extra"}}
PRUNE, VOCAB = {"prune": {"neurons": [1], "alias": "model"}}, {"vocab": {"size": 96, "alias": "model"}}
OTHER = (
    {"prefixes": {"mode": "add", "alias": "b"}}, {"copy": {"from": r"model::model\.(.*)", "to": r"b::\1"}},
)  # fmt: skip
BEST = {"from": LAYER, "scores": "model.norm.weight", "to": "few", "keep": 4, "dim": 1}

HALF = {"cast_": {"target": r".*layers\.0\..*experts.*", "to": "bfloat16"}}
REFACTOR = {"refactor": {"left": LAYER, "right": LAYER.replace("\\", ""), "to_left": "left", "to_right": "right"}}

BLOCKS = {"layers": "backbone.layers.*", "dims": {"L": "num_hidden_layers"}}
OUT = {"backbone.layers.*.mixer.out_proj.weight": ["_", "F"]}
REST = {
    "{A_log,dt_proj.weight}": ["F", "_"], "{D,conv1d.bias,dt_proj.bias}": "F", "in_proj.weight": ["F + F", "_"],
    "conv1d.weight": ["F", "_", "_"], "x_proj.weight": ["_", "F"],
}  # fmt: skip


def inner(shapes: Mapping[str, Any]) -> dict[str, Any]:
    dims = {"L": "num_hidden_layers", "F": "intermediate_size"}
    return {"prune": {"neurons": [1], "family": {**BLOCKS, "dims": dims, "shapes": shapes}}}


TWICE = {"order": [0, 0, 1, 2], "scale_copies": 0}

HINTS = (
    Hinted("mamba", [{"layers": {"drop": [2]}}], "Describe it in the step, `family: {",
           [{"layers": {"drop": [2], "family": BLOCKS}}]),
    Hinted("mamba", [{"layers": {"drop": [2], "family": {"dims": BLOCKS["dims"]}}}], "Say where they are: `layers: ",
           [{"layers": {"drop": [2], "family": BLOCKS}}]),
    Hinted("mamba", [{"layers": {"drop": [2], "family": {"layers": BLOCKS["layers"]}}}],
           "where KEY of config.json counts them.", [{"layers": {"drop": [2], "family": BLOCKS}}]),
    Hinted("mamba", [{"layers": {**TWICE, "family": BLOCKS}}], "Say it, by names below a layer: `writers: ",
           [{"layers": {**TWICE, "family": {**BLOCKS, "writers": ["mixer.out_proj.weight"]}}}]),
    Hinted("mamba", [inner(OUT)], "Give its shape in `family`, with `_` for an axis that stays.",
           [inner({**OUT, **{f"backbone.layers.*.mixer.{name}": shape for name, shape in REST.items()}})]),
    Hinted("gpt2", [{"unfuse": {}}, {"fold_norm": {"final": False}}], "Put a step `fuse` before this if queries,",
           [{"unfuse": {}}, {"fuse": {}}, {"fold_norm": {"final": False}}]),
    Hinted("llama", [{"keep_largest": {**BEST, "dim": 0}}], "Give one score for each unit.", [{"keep_largest": BEST}]),
    Hinted("llama", [{"keep_largest": {**BEST, "keep": 33}}], "Keep at most 32.",
           [{"keep_largest": {**BEST, "keep": 32}}]),
    Hinted("llama", [{"keep_largest": {**BEST, "scores": LAYER.replace("\\", "")}}], "Reduce them to one axis: `reduce",
           [{"reduce": {"from": LAYER, "to": "s", "mode": "norm", "dim": 0}},
            {"keep_largest": {**BEST, "scores": "s"}}]),
    Hinted("llama", [GONE, {"assert": {"consistent": "model"}}],
           'Put `- config: {"patch": {"num_hidden_layers": 2}, "alias',
           [GONE, {"config": {"patch": {"num_hidden_layers": 2}, "alias": "model"}},
            {"assert": {"consistent": "model"}}]),
    Hinted("mamba", [{"assert": {"consistent": "model"}}], "Assert what you know: `assert: {config:",
           [{"assert": {"config": {"of": "model::num_hidden_layers", "is": 3}}}]),
    Hinted("t5", [{"layers": {"drop": [1]}}], "Add `stack: encoder`.", [{"layers": {"drop": [1], "stack": "encoder"}}]),
    Hinted("llama", [{"config": {"remove": ["vocab_size"]}}, {"vocab": {"size": 96}}],
           "Add `vocab_size` by a step `config` before this.",
           [{"config": {"remove": ["vocab_size"]}}, {"config": {"patch": {"vocab_size": 91}}},
            {"vocab": {"size": 96}}]),
    Hinted("llava", [{"layers": {"drop": [1]}}], "Name the one that is to change: `part: text_config`.",
           [{"layers": {"drop": [1], "part": "text_config"}}]),
    Hinted("mamba", [{"untie": {}}], "Describe it in the step, `family: {",
           [{"untie": {"family": {"roles": {"embed": "backbone.embeddings", "head": "lm_head"}}}}]),
    Hinted("llama", [{"config": {"patch": {"intermediate_size": 41}}}, {"prune": {"neurons": [1]}}],
           "before this step: it tells the config that does.", [{"prune": {"neurons": [1]}}]),
    Hinted("mixtral", [{"expert_prune": {"drop": [0, 1, 2, 3]}}], "Keep at least one.",
           [{"expert_prune": {"drop": [0]}}]),
    Hinted("deepseek_v3", [{"expert_prune": {"drop": [1]}}], "Leave as many in each group, in their order.",
           [{"expert_prune": {"drop": [1, 5]}}], settings={"n_group": 2, "topk_group": 1, "n_routed_experts": 8}),
    Hinted("deepseek_v3", [{"expert_prune": {"keep": [0, 7]}}], "Leave at least 2 in each group.",
           [{"expert_prune": {"keep": [0, 1, 6, 7]}}],
           settings={"n_group": 2, "topk_group": 1, "n_routed_experts": 8}),
    Hinted("mixtral", [{"experts": {"names": "separate"}}], "Leave the step out.", []),
    Hinted("mixtral", [{"expert_prune": {"drop": [4]}}], "Name each once, of 0 to 3.",
           [{"expert_prune": {"drop": [3]}}]),
    Hinted("mixtral", [{"expert_merge": {"groups": [[0, 1], [2]]}}], "Name it too, alone or with others;",
           [{"expert_merge": {"groups": [[0, 1], [2], [3]]}}]),
    Hinted("mixtral", [{"experts": {"names": "stacked"}}, {"expert_ranks": {"rank": 2}}],
           "Put `- experts: {names: separate}` before this step.",
           [{"experts": {"names": "stacked"}}, {"experts": {"names": "separate"}}, {"expert_ranks": {"rank": 2}}]),
    Hinted("mixtral", [{"expert_ranks": {}}], "Write `expert_ranks: {rank: 64}`.", [{"expert_ranks": {"rank": 64}}]),
    Hinted("mixtral", [{"expert_ranks": {"ranks": {4: 2}}}], "Valid are 0 to 3.",
           [{"expert_ranks": {"ranks": {3: 2}}}]),
    Hinted("mixtral", [{"expert_ranks": {"ranks": {0: 2}}}], "Leave it out, or name another one as `public`.",
           [{"expert_ranks": {"ranks": {0: 2}, "public": 1}}]),
    Hinted("mixtral", [HALF, {"expert_ranks": {"rank": 2}}], "Cast them to one floating dtype before this step.",
           [HALF, {"cast_": {"target": r".*experts.*", "to": "bfloat16"}}, {"expert_ranks": {"rank": 2}}]),
    Hinted("gpt_oss", [{"expert_ranks": {"rank": 2}}], "Leave the step out.", []),
    Hinted("bert", [{"refactor_attention": {}}], "Leave the step out.", []),
    Hinted("llama", [{"refactor_attention": {}}], "Write `products: ov`.",
           [{"refactor_attention": {"products": "ov"}}]),
    Hinted("granite", [{"fuse": {}}, {"refactor_attention": {"products": "ov"}}],
           "Put a step `fuse` or `unfuse` before this.",
           [{"fuse": {}}, {"unfuse": {}}, {"refactor_attention": {"products": "ov"}}]),
    Hinted("bert", [{"standard_names": {}}], "Rename them by steps `move`.",
           [{"move": {"from": r"cls\.(.+)", "to": r"head.\1"}}]),
    Hinted("bert", [{"fold_lens": {"lens": "model"}}], "Write the readout with `compute`.",
           [{"compute": {"from": {"w": r"bert\.embeddings\.word_embeddings\.weight"}, "expr": "w * 2"}}]),
    Hinted("gpt2", [{"prune": {"heads": [1], "prove": True}}], "Leave `prove` out.", [{"prune": {"heads": [1]}}]),
    Hinted("llama", [REFACTOR], "Transpose one of them.",
           [{"transpose": {"from": LAYER, "to": "t"}}, {"refactor": {**REFACTOR["refactor"], "right": "t"}}]),
    Hinted("llama", [{"refactor": {**REFACTOR["refactor"], "right": "model.norm.weight"}}],
           "Reshape both: [m, r] and [r, n],",
           [{"reshape": {"from": r"model\.norm\.weight", "to": "t", "shape": [32, 1]}},
            {"refactor": {**REFACTOR["refactor"], "right": "t"}}]),
    Hinted("llama", [{"expert_prune": {"drop": [1]}}], "Put `- upcycle: {experts: 8}` before this step",
           [{"upcycle": {"experts": 8}}, {"expert_prune": {"drop": [1]}}]),
    Hinted("mixtral", [{"expert_prune": {}}], "Write `expert_prune: {drop: [3]}`.", [{"expert_prune": {"drop": [3]}}]),
    Hinted("gpt2", [{"fold_norm": {}}], "Put a step `untie` before this if words are tied",
           [{"untie": {}}, {"fold_norm": {}}]),
    Hinted("llama-tied", [{"fold_norm": {}}], "or add `final: false`.", [{"fold_norm": {"final": False}}]),
    Hinted("olmo2", [{"fold_norm": {}}], "Leave the step out.", []),
    Hinted("gpt2", [{"centre_writing": {}}], "Put a step `untie` before this.",
           [{"untie": {}}, {"centre_writing": {}}]),
    Hinted("llama-tied", [{"centre_unembed": {}}], "Put a step `untie` before this.",
           [{"untie": {}}, {"centre_unembed": {}}]),
    Hinted("llama", [{"centre_writing": {}}], "Leave the step out.", []),
    Hinted("gemma2", [{"centre_unembed": {}}], "Leave the step out.", []),
    Hinted("vit", [{"centre_unembed": {}}], "Leave the step out.", []),
    Hinted("bert", [{"fold_value_biases": {}}], "Leave the step out.", []),
    Hinted("llama", [{"fold_value_biases": {}}], "Leave the step out.", []),
    Hinted("qwen2", [{"fold_value_biases": {}}], "Leave the step out.", []),
    Hinted("mixtral", [{"experts": {"names": "stacked"}}, {"fold_norm": {}}],
           "Put `- experts: {names: separate}` before this step.",
           [{"experts": {"names": "stacked"}}, {"experts": {"names": "separate"}}, {"fold_norm": {}}]),
    Hinted("llama", [{"unfuse": {}}], "Name the tensors: `concat` joins them, `split` cuts them.",
           [{"split": {"from": LAYER, "to": ["a", "b"], "parts": 2}}]),
    Hinted("gpt2", [{"unfuse": {}}], "or turn it back by the other step.", [{"unfuse": {}}, {"fuse": {}}], note=True),
    Hinted("llama", [{"layers": {}}], "Any mix is an `order`: `layers: {order: ['0:8', '4:8', 12]}`.",
           [{"layers": {"order": ["0:2", "1:2", 2]}}]),
    Hinted("llama", [{"layers": {"drop": [":"]}}], "Keep at least one.", [{"layers": {"drop": ["1:"]}}]),
    Hinted("bert", [{"layers": {"repeat": [1], "scale_copies": 0}}], "Leave `scale_copies` out.",
           [{"layers": {"repeat": [1]}}]),
    Hinted("llama", [*OTHER, {"layers": {"order": ["b::0"], "alias": "model"}}],
           "Rename them first, with a step `move`.",
           [*OTHER, {"move": {"from": "b::(.*)", "to": r"b::model.\1"}},
            {"layers": {"order": ["b::0"], "alias": "model"}}]),
    Hinted("llama", [{"layers": {"keep": [3]}}], "Layers count from -3 to 2.", [{"layers": {"keep": [-3, 2]}}]),
    Hinted("llama", [{"layers": {"keep": ["0:4"]}}], "Ranges lie within `0:3`.", [{"layers": {"keep": ["0:3"]}}]),
    Hinted("llama", [{"layers": {"keep": ["last"]}}], "Write numbers, and ranges as Python does:",
           [{"layers": {"keep": [0, "-2:"]}}]),
    Hinted("deepseek_v3", [{"layers": {"order": [1, 0]}}], "Put the layers 0 to 0 before all others.",
           [{"layers": {"order": [0, 1]}}]),
    Hinted("gpt2", [{"prune": {"heads": [1]}}], "`config: keep` says that this is meant.",
           [{"prune": {"heads": [1], "config": "keep"}}], note=True),
    Hinted("t5", [{"prune": {"heads": 1}}], "Give the numbers of those that go, for all layers.",
           [{"prune": {"heads": [1]}}]),
    Hinted("llama", [{"prune": {"kv_groups": [0, 1]}}], "Leave at least one.", [{"prune": {"kv_groups": [0]}}]),
    Hinted("llama", [INNER, PRUNE], "Move it to another alias before this step, change it there, and move it back.",
           [INNER, *put_aside(r"model\.layers\.0\.mlp\.extra", PRUNE)]),
    Hinted("llama", [EXTRA, VOCAB], "Move it to another alias before this step, change it there, and move it back.",
           [EXTRA, *put_aside("extra", VOCAB)]),
    Hinted("llama", [{"prune": {"kv_groups": {0: [1]}}}], "Name as many for each layer, and every layer;",
           [{"prune": {"kv_groups": [1]}}]),
    Hinted("llama", [{"delete": {"target": r".*self_attn.*"}}, {"prune": {"heads": [0]}}],
           "Name what there is: heads, kv_groups or neurons.",
           [{"delete": {"target": r".*self_attn.*"}}, {"prune": {"neurons": [0]}}]),
    Hinted("phi3", [{"prune": {"kv_groups": 1}}], "Put `- unfuse: {}` before this step, and `- fuse: {}` behind it.",
           [{"unfuse": {}}, {"prune": {"kv_groups": 1}}, {"fuse": {}}]),
    Hinted("llama", [{"prune": {"heads": [0]}}], "Take as many out of each group, or whole groups: `kv_groups`.",
           [{"prune": {"heads": [0, 2]}}]),
    Hinted("llama", [{"prune": {"kv_groups": [0], "neurons": 3}}], "Take each out in a step of its own.",
           [{"prune": {"kv_groups": [0]}}, {"prune": {"neurons": 3}}]),
    Hinted("llama", [{"prune": {"neurons": 40}}], "Take out 1 to 39, or a share such as 0.25.",
           [{"prune": {"neurons": 39}}]),
    Hinted("llama", [{"prune": {"kv_groups": [2]}}], "Valid are 0 to 1.", [{"prune": {"kv_groups": [1]}}]),
    Hinted("llama", [{"prune": {"heads": 2}}], "Write `kv_groups` instead, or the numbers of the heads.",
           [{"prune": {"kv_groups": 1}}]),
    Hinted("llama-tied", [{"tie": {}}], "Leave the step out.", []),
    Hinted("gpt2", [{"upcycle": {"experts": 2}}], "Dense models that have one are llama, mistral, olmo2, qwen3.",
           [{"upcycle": {"experts": 2}}], instead="olmo2"),
    Hinted("llama", [{"upcycle": {"experts": 2, "to": "olmoe"}}], "For a model that computes the same,",
           [{"upcycle": {"experts": 2, "to": "mixtral"}}], note=True),
    Hinted("llama", [{"upcycle": {"experts": 2, "per_token": 3}}], "Give 1 to 2.",
           [{"upcycle": {"experts": 2, "per_token": 1}}]),
    Hinted("llama", [{"upcycle": {"experts": 6, "per_token": 3, "shards": 2}}], "Give multiples of `shards`,",
           [{"upcycle": {"experts": 6, "per_token": 2, "shards": 2}}]),
    Hinted("llama", [{"upcycle": {"experts": 4, "shards": 2, "router": "zero"}}], "Write `router: random`.",
           [{"upcycle": {"experts": 4, "shards": 2, "router": "random"}}]),
    Hinted("llama", [{"upcycle": {"experts": 41}}], "Give fewer.", [{"upcycle": {"experts": 40}}]),
    Hinted("llama-biased", [{"upcycle": {"experts": 2}}], "Name another class, or delete the biases before this step.",
           [{"delete": {"target": r".*\.bias"}}, {"upcycle": {"experts": 2}}]),
    Hinted("mistral", [{"upcycle": {"experts": 2, "to": "olmoe"}}], "Name another class.",
           [{"upcycle": {"experts": 2, "to": "mixtral"}}]),
    Hinted("llama", [{"vocab": {"order": [*range(2, 91)]}}], "Set it by a step behind this: `config: {alias: mod",
           [{"vocab": {"order": [*range(2, 91)]}}, {"config": {"patch": {"bos_token_id": 3}}}], note=True),
    Hinted("llama", [{"vocab": {"order": [91]}}], "Valid are 0 to 90.", [{"vocab": {"order": [*range(91)]}}]),
    Hinted("llama", [{"vocab": {}}], "Write `vocab: {multiple_of: 64}`, for instance.",
           [{"vocab": {"multiple_of": 64}}]),
)  # fmt: skip


def plan(folder: Path, steps: Sequence[Any]) -> bs.Plan:
    output = {"path": f"{folder.parent / 'out'}/", "alias": "model"}
    return bs.load({"inputs": [f"model::{folder}"], "transforms": [*steps], "output": output})


def hints(asked: bs.Plan) -> list[str]:
    try:
        return [found.hint for found in bs.check(asked)]
    except PlanError as refused:
        return [found.hint for found in refused.diagnostics]


@pytest.mark.parametrize("case", HINTS, ids=lambda case: case.says)
def test_what_a_hint_on_structure_says_mends_the_plan(case: Hinted, tmp_path: Path) -> None:
    make(case.model, tmp_path / "in", **case.settings)
    assert any(case.says in hint for hint in hints(plan(tmp_path / "in", case.wrong)))
    if case.instead:
        shutil.rmtree(tmp_path / "in")
        make(case.instead, tmp_path / "in")
    plan(tmp_path / "in", case.mended).run(durable=False)


def test_the_model_that_is_meant_is_named_where_there_are_several(tmp_path: Path) -> None:
    make("llama", tmp_path / "a")
    inputs = {
        "inputs": [f"a::{tmp_path / 'a'}", f"b::{tmp_path / 'a'}"],
        "output": {"path": f"{tmp_path}/o/", "alias": "b"},
    }
    assert "Add `alias: NAME`." in hints(bs.load({**inputs, "transforms": [{"untie": {}}]}))
    bs.load({**inputs, "transforms": [{"layers": {"drop": [0], "alias": "b"}}]}).run(durable=False)
    assert not [n for n in bs.open(str(tmp_path / "o")) if n.startswith("model.layers.2.")]


def test_a_file_without_its_config_is_read_with_the_folder(tmp_path: Path) -> None:
    make("llama", tmp_path / "a")
    alone = tmp_path / "model.safetensors"
    shutil.copy(tmp_path / "a/model.safetensors", alone)
    said = hints(
        bs.load({"inputs": [str(alone)], "transforms": [{"layers": {"drop": [0]}}], "output": f"{tmp_path}/o/"})
    )
    assert any("Read the folder with config.json and not the file" in hint for hint in said)
    plan(tmp_path / "a", [{"layers": {"drop": [0]}}]).run(durable=False)


@pytest.mark.parametrize(("wrong", "says", "mended"), [
    ({"tokenizer": "other", "size": 3}, "Give 7 or more.", {"tokenizer": "other", "size": 7}),
    ({"tokenizer": "strange"}, "Name the alias of another tokenizer.", {"tokenizer": "other"}),
    ({"tokenizer": "bare"}, "Name an alias whose folder has the files of its tokenizer.", {"tokenizer": "other"}),
    ({"tokenizer": "broken"}, "Save the tokenizer as tokenizer.json.", {"tokenizer": "other"}),
    ({"tokenizer": "other", "order": [0]}, "Put `order` into a step of its own, before this one.", {"order": [0]}),
    ({"tokenizer": "other", "rows": "few"}, "Give tables with a row for every word of the tokenizer.",
     {"tokenizer": "other", "rows": "many"}),
    ({"tokenizer": "other"}, "Their rows hold what `rows` says (mean);", {"tokenizer": "other", "rows": "many"}),
])  # fmt: skip
def test_what_a_hint_on_tokenizers_says_mends_the_plan(wrong: Any, says: str, mended: Any, tmp_path: Path) -> None:
    _, other = two_models(tmp_path)
    for name, words in (("strange", ["x", "y"]), ("broken", ["x"]), ("bare", ["x"])):
        write_tokenizer(tmp_path / name, words, ())
        save_file({"x": torch.zeros(1)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "broken/tokenizer.json").write_text("{}")
    (tmp_path / "bare/tokenizer.json").unlink()
    for name, rows in (("few", 2), ("many", 7)):
        tables = {table: torch.ones(rows, 32) for table in ("lm_head.weight", "model.embed_tokens.weight")}
        save_file(tables, tmp_path / f"{name}.safetensors")
    aliases = {"other": other, **{name: tmp_path / name for name in ("strange", "broken", "bare")},
               **{name: tmp_path / f"{name}.safetensors" for name in ("few", "many")}}  # fmt: skip

    def asked(words: Any) -> bs.Plan:
        return bs.load({
            "inputs": [f"model::{tmp_path / 'whole'}", *(f"{alias}::{path}" for alias, path in aliases.items())],
            "transforms": [{"vocab": {"alias": "model", **words}}],
            "output": {"path": f"{tmp_path}/out/", "alias": "model"},
        })  # fmt: skip

    assert any(says in hint for hint in hints(asked(wrong)))
    asked(mended).run(durable=False)


def test_a_damaged_generation_config_is_corrected(tmp_path: Path) -> None:
    make("llama", tmp_path / "in")
    (tmp_path / "in/generation_config.json").write_text("{")
    asked = plan(tmp_path / "in", [{"vocab": {"order": [*range(91)]}}])
    assert "Correct its text." in hints(asked)
    (tmp_path / "in/generation_config.json").write_text("{}")
    asked.run(durable=False)


JOINED = {"expert_join": {"alias": "a", "others": ["b"]}}
APART = {"experts": {"names": "stacked", "alias": "b"}}


@pytest.mark.parametrize(
    ("other", "wrong", "says", "mended"),
    [
        ("flex_olmo", [APART, JOINED], "Put `- experts: {names: separate, alias: b}` before this step.",
         [APART, {"experts": {"names": "separate", "alias": "b"}}, JOINED]),
        ("flex_olmo", [{"expert_join": {"alias": "a", "others": ["b"], "public": 4}}],
         "Give fewer: 1, or 0 if they share none.", [JOINED]),
        ("olmoe", [JOINED], "Join models that were trained from the same one.", None),
    ],
)  # fmt: skip
def test_what_a_hint_on_joined_experts_says_mends_the_plan(
    other: str, wrong: list[Any], says: str, mended: list[Any] | None, tmp_path: Path
) -> None:
    make("flex_olmo", tmp_path / "a")
    make(other, tmp_path / "b")

    def plan(steps: list[Any], second: str = "b") -> bs.Plan:
        inputs = [f"a::{tmp_path / 'a'}", f"b::{tmp_path / second}"]
        return bs.load({"inputs": inputs, "transforms": steps, "output": {"path": f"{tmp_path}/o/", "alias": "a"}})

    assert any(says in hint for hint in hints(plan(wrong)))
    (plan(wrong, "a") if mended is None else plan(mended)).run(durable=False)
