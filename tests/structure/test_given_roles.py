"""Models of no known family whose modules a step names by their roles, judged by a forward pass in NumPy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import brainsurgery_jax as bs

LAYERS, WIDTH, INNER, HEADS, HEAD, WORDS, PLACES = 2, 6, 10, 2, 4, 17, 8
CONFIG = {"model_type": "mine", "n_blocks": LAYERS, "d_ff": INNER, "n_words": WORDS, "width": WIDTH, "n_heads": HEADS,
          "d_head": HEAD, "places": PLACES, "tie_word_embeddings": False}  # fmt: skip
B = "blocks.*"
WIDE = f"{B}.attn.{{q,k,v}}"
FAMILY: dict[str, Any] = {
    "dims": {"L": "n_blocks", "D": "width", "F": "d_ff", "V": "n_words", "N": "n_heads", "H": "d_head"},
    "layers": B,
    "norms": "layer_norm",
    "shapes": {
        "embed.weight": ["V", "D"], "head.weight": ["V", "D"], "place.weight": ["_", "D"],
        f"{WIDE}.weight": ["N*H", "D"], f"{WIDE}.bias": "N*H", f"{B}.attn.out.weight": ["D", "N*H"],
        f"{B}.attn.out.bias": "D", f"{B}.ff.up.weight": ["D", "F"], f"{B}.ff.up.bias": "F",
        f"{B}.ff.down.weight": ["F", "D"], f"{B}.ff.down.bias": "D",
    },
    "roles": {
        "embed": "embed", "head": "head", "norm": "last", "positions": "place",
        "attention_norm": "n1", "mlp_norm": "n2",
        "q": "attn.q", "k": "attn.k", "v": "attn.v", "o": "attn.out", "up": "ff.up", "down": "ff.down",
        "attention": "attn", "mlp": "ff",
    },
}  # fmt: skip
FUSED = {
    **FAMILY, "roles": {**FAMILY["roles"], "qkv": "attn.qkv"},
    "shapes": {**FAMILY["shapes"], f"{B}.attn.qkv.weight": ["3*N*H", "D"], f"{B}.attn.qkv.bias": "3*N*H"},
}  # fmt: skip
WORDS_ALONE = {"roles": {"embed": "embed", "head": "head"}}
TOKENS = np.array([3, 11, 0, 16, 5])
Tensors = Mapping[str, np.ndarray]


def make_tensors() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5).standard_normal
    tensors = {"embed.weight": draw((WORDS, WIDTH)), "head.weight": draw((WORDS, WIDTH)), "place.weight":
               draw((PLACES, WIDTH)), "last.weight": 1 + 0.3 * draw(WIDTH), "last.bias": draw(WIDTH)}  # fmt: skip
    for at in range(LAYERS):
        block = {"n1.weight": 1 + 0.3 * draw(WIDTH), "n1.bias": draw(WIDTH), "n2.weight": 1 + 0.3 * draw(WIDTH),
                 "n2.bias": draw(WIDTH), "attn.out.weight": draw((WIDTH, HEADS * HEAD)), "attn.out.bias": draw(WIDTH),
                 "ff.up.weight": draw((WIDTH, INNER)), "ff.up.bias": draw(INNER), "ff.down.weight":
                 draw((INNER, WIDTH)), "ff.down.bias": draw(WIDTH)}  # fmt: skip
        for name in "qkv":
            block |= {f"attn.{name}.weight": draw((HEADS * HEAD, WIDTH)), f"attn.{name}.bias": draw(HEADS * HEAD)}
        tensors |= {f"blocks.{at}.{name}": x for name, x in block.items()}
    return {name: x.astype(np.float32) for name, x in tensors.items()}


TENSORS = make_tensors()


def normalize(x: np.ndarray, t: Tensors, name: str, *, centred: bool = True) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True) if centred else x
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * t[f"{name}.weight"] + t.get(f"{name}.bias", 0)


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def forward(given: Tensors, *, centred: bool = True) -> np.ndarray:
    """The logits of `TOKENS` [tokens, words], in float64: a decoder with positions in a table."""
    t = {name: x.astype(np.float64) for name, x in given.items()}
    x = t["embed.weight"][TOKENS] + t["place.weight"][: len(TOKENS)]
    for at in range(LAYERS):
        b = {name.removeprefix(f"blocks.{at}."): w for name, w in t.items()}
        y = normalize(x, b, "n1", centred=centred)
        q, k, v = ((y @ b[f"attn.{n}.weight"].T + b[f"attn.{n}.bias"]).reshape(-1, HEADS, HEAD) for n in "qkv")
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(HEAD)
        seen = softmax(np.where(np.tril(np.ones(scores.shape[1:])), scores, -np.inf))
        mixed = np.einsum("hqk,khd->qhd", seen, v).reshape(len(TOKENS), -1)
        x = x + mixed @ b["attn.out.weight"].T + b["attn.out.bias"]
        y = normalize(x, b, "n2", centred=centred)
        x = x + np.maximum(y @ b["ff.up.weight"] + b["ff.up.bias"], 0) @ b["ff.down.weight"] + b["ff.down.bias"]
    return normalize(x, t, "last", centred=centred) @ t["head.weight"].T


def run(
    tmp_path: Path,
    *steps: Mapping[str, Any],
    tensors: Tensors = TENSORS,
    config: Mapping[str, Any] = CONFIG,
    out: str = "out",
) -> dict[str, np.ndarray]:
    """The tensors after some steps on the model."""
    (tmp_path / "in").mkdir(exist_ok=True)
    save_file(dict(tensors), tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    plan = {"inputs": [f"model::{tmp_path / 'in'}/"], "transforms": [*steps], "output": f"{tmp_path / out}/"}
    bs.load(plan).run(durable=False)
    return load_file(tmp_path / out / "model.safetensors")


def config_of(tmp_path: Path, out: str = "out") -> dict[str, Any]:
    return json.loads((tmp_path / out / "config.json").read_text())


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("op", ["fold_norm", "centre_writing", "fold_value_biases", "refactor_attention"])
def test_the_logits_stay_what_they_were(op: str, tmp_path: Path) -> None:
    found = run(tmp_path, {op: {"family": FAMILY}})
    assert found.keys() == TENSORS.keys()
    assert any(not np.array_equal(found[name], x) for name, x in TENSORS.items())
    assert_close(forward(found), forward(TENSORS))


def test_folded_norms_have_a_gain_of_one_and_no_bias_but_that_of_a_head_without_one(tmp_path: Path) -> None:
    found = run(tmp_path, {"fold_norm": {"family": FAMILY}})
    for name in ("blocks.0.n1", "blocks.1.n2", "last"):
        np.testing.assert_array_equal(found[f"{name}.weight"], np.ones(WIDTH, np.float32))
    np.testing.assert_array_equal(found["blocks.1.n1.bias"], np.zeros(WIDTH, np.float32))
    assert found["last.bias"].any()


def test_a_gain_less_one_is_folded_and_left_at_zero(tmp_path: Path) -> None:
    rms = {name: x for name, x in TENSORS.items() if not re.search(r"(n1|n2|last)\.bias", name)}
    stored = {name: x - 1 if re.search(r"(n1|n2|last)\.weight", name) else x for name, x in rms.items()}
    family = {**FAMILY, "norms": "rms_norm_plus_one"}
    found = run(tmp_path, {"fold_norm": {"family": family}}, tensors=stored)
    assert not found["blocks.0.n1.weight"].any()
    back = {name: x + 1 if re.search(r"(n1|n2|last)\.weight", name) else x for name, x in found.items()}
    assert_close(forward(back, centred=False), forward(rms, centred=False))


def test_attention_and_mlp_that_read_one_norm_take_its_gain_once(tmp_path: Path) -> None:
    alone = {name: x for name, x in TENSORS.items() if ".n2." not in name}
    family = {**FAMILY, "roles": {**FAMILY["roles"], "mlp_norm": "n1"}}
    found = run(tmp_path, {"fold_norm": {"family": family}}, tensors=alone)
    gain = TENSORS["blocks.0.n1.weight"]
    np.testing.assert_allclose(found["blocks.0.attn.q.weight"], TENSORS["blocks.0.attn.q.weight"] * gain, rtol=1e-6)
    up = TENSORS["blocks.0.ff.up.weight"] * gain[:, None]
    np.testing.assert_allclose(found["blocks.0.ff.up.weight"], up, rtol=1e-6)


def test_centred_logits_sum_to_zero_and_keep_their_probabilities(tmp_path: Path) -> None:
    logits = forward(run(tmp_path, {"centre_unembed": {"family": FAMILY}}))
    assert_close(softmax(logits), softmax(forward(TENSORS)))
    np.testing.assert_allclose(logits.mean(-1), 0, atol=1e-4)


def test_queries_keys_and_values_are_joined_in_their_order_and_cut_again(tmp_path: Path) -> None:
    found = run(tmp_path, {"fuse": {"family": FUSED}})
    for kind in ("weight", "bias"):
        whole = np.concatenate([TENSORS[f"blocks.1.attn.{name}.{kind}"] for name in "qkv"])
        np.testing.assert_array_equal(found[f"blocks.1.attn.qkv.{kind}"], whole)
    assert "blocks.1.attn.q.weight" not in found
    back = run(tmp_path, {"unfuse": {"family": FUSED}}, tensors=found, out="back")
    assert back.keys() == TENSORS.keys()
    assert all(np.array_equal(back[name], x) for name, x in TENSORS.items())


@pytest.mark.parametrize("op", ["fold_norm", "fold_value_biases", "refactor_attention"])
def test_a_tensor_of_all_three_is_changed_as_they_are(op: str, tmp_path: Path) -> None:
    steps = {"fuse": {"family": FUSED}}, {op: {"family": FUSED}}, {"unfuse": {"family": FUSED}}
    assert_close(forward(run(tmp_path, *steps)), forward(TENSORS))


def test_words_are_tied_and_untied_and_config_says_so(tmp_path: Path) -> None:
    same = {**TENSORS, "head.weight": TENSORS["embed.weight"]}
    found = run(tmp_path, {"tie": {"family": WORDS_ALONE}}, tensors=same)
    assert found.keys() == TENSORS.keys() - {"head.weight"}
    assert config_of(tmp_path)["tie_word_embeddings"] is True
    back = run(tmp_path, {"untie": {"family": WORDS_ALONE}}, tensors=found, out="back")
    np.testing.assert_array_equal(back["head.weight"], TENSORS["embed.weight"])
    assert config_of(tmp_path, "back")["tie_word_embeddings"] is False


def test_a_lens_and_the_readout_become_matrices_around_one_normalization(tmp_path: Path) -> None:
    draw = np.random.default_rng(8).standard_normal
    lens = {"0.weight": draw((WIDTH, WIDTH)).astype(np.float32), "0.bias": draw(WIDTH).astype(np.float32)}
    (tmp_path / "in").mkdir()
    save_file(TENSORS, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps(CONFIG))
    save_file(lens, tmp_path / "lens.safetensors")
    plan = {"inputs": [f"model::{tmp_path / 'in'}/", f"lens::{tmp_path / 'lens.safetensors'}"],
            "transforms": [{"fold_lens": {"lens": "lens", "alias": "model", "family": FAMILY}}],
            "output": {"path": f"{tmp_path / 'out'}/", "alias": "lens"}}  # fmt: skip
    bs.load(plan).run(durable=False)
    found = load_file(tmp_path / "out" / "model.safetensors")
    x = draw((3, WIDTH))
    wanted = normalize(x + x @ lens["0.weight"].T + lens["0.bias"], TENSORS, "last") @ TENSORS["head.weight"].T
    y = x @ found["0.weight"].T + found["0.bias"]
    scaled = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    assert_close(scaled @ found["readout.weight"].T + found["readout.bias"], wanted)


def test_modules_get_their_standard_names(tmp_path: Path) -> None:
    found = run(tmp_path, {"standard_names": {"family": FAMILY}})
    assert {"embed_tokens.weight", "ln_final.bias", "lm_head.weight", "layers.1.self_attn.q.weight",
            "layers.0.mlp.up.weight", "layers.0.n1.weight"} <= found.keys()  # fmt: skip
    assert len(found) == len(TENSORS)


def test_the_steps_that_stand_for_upcycle_give_experts_that_are_the_mlp(tmp_path: Path) -> None:
    with pytest.raises(bs.PlanError, match="no class with experts") as raised:
        run(tmp_path, {"upcycle": {"experts": 3, "family": FAMILY}})
    told = [yaml.safe_load(step) for step in re.findall(r"`(- .+?)`", str(raised.value))]
    (copy,), *others = told
    copies = [
        {"copy": {**copy["copy"], "to": copy["copy"]["to"].replace("experts.0", f"experts.{n}")}} for n in range(3)
    ]
    found = run(tmp_path, *copies, *(step for (step,) in others))
    for n in range(3):
        np.testing.assert_array_equal(found[f"blocks.1.experts.{n}.up.weight"], TENSORS["blocks.1.ff.up.weight"])
    assert found["blocks.0.router.weight"].shape == (WIDTH, 3)
    assert not any(".ff." in name for name in found)
    assert config_of(tmp_path)["num_experts"] == 3


EXPERTS = 4
MIXED = {
    "dims": {"L": "n_blocks", "D": "width", "E": "n_experts", "T": "n_taken"}, "layers": B,
    "shapes": {f"{B}.moe.router.weight": ["E", "D"]},
    "roles": {"router": "moe.router", "expert.*.gate": "moe.experts.*.gate", "expert.*.up": "moe.experts.*.up",
              "expert.*.down": "moe.experts.*.down"},
}  # fmt: skip
MIXED_CONFIG = {**CONFIG, "n_experts": EXPERTS, "n_taken": 3}


def make_experts() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(6).standard_normal
    sizes = {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}
    tensors = {f"blocks.{at}.moe.router.weight": draw((EXPERTS, WIDTH)) for at in range(LAYERS)}
    for at, n in np.ndindex(LAYERS, EXPERTS):
        tensors |= {f"blocks.{at}.moe.experts.{n}.{part}.weight": draw(size) for part, size in sizes.items()}
    return {name: x.astype(np.float32) for name, x in tensors.items()}


def test_experts_go_with_their_rows_of_the_router_and_config_says_how_many_are_left(tmp_path: Path) -> None:
    tensors = make_experts()
    found = run(tmp_path, {"expert_prune": {"keep": [3, 0], "family": MIXED}}, tensors=tensors, config=MIXED_CONFIG)
    np.testing.assert_array_equal(found["blocks.1.moe.router.weight"], tensors["blocks.1.moe.router.weight"][[3, 0]])
    for new, old in enumerate((3, 0)):
        name = "blocks.1.moe.experts.{}.down.weight"
        np.testing.assert_array_equal(found[name.format(new)], tensors[name.format(old)])
    assert len(found) == LAYERS * (2 * 3 + 1)
    assert config_of(tmp_path) == {**MIXED_CONFIG, "n_experts": 2, "n_taken": 2}


def test_experts_are_stacked_and_separated_again(tmp_path: Path) -> None:
    tensors = make_experts()
    stacked = {**MIXED, "dims": {**MIXED["dims"], "M": "d_ff"}, "shapes": {
        **MIXED["shapes"], f"{B}.moe.experts.gate_up_proj": ["E", "2*M", "D"],
        f"{B}.moe.experts.down_proj": ["E", "D", "M"]}}  # fmt: skip
    found = run(tmp_path, {"experts": {"names": "stacked", "family": MIXED}}, tensors=tensors, config=MIXED_CONFIG)
    gates = [tensors[f"blocks.0.moe.experts.{n}.gate.weight"] for n in range(EXPERTS)]
    np.testing.assert_array_equal(found["blocks.0.moe.experts.gate_up_proj"][:, :INNER], np.stack(gates))
    asked = {"experts": {"names": "separate", "family": stacked}}
    back = run(tmp_path, asked, tensors=found, config=MIXED_CONFIG, out="back")
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], x) for name, x in tensors.items())


CORRECTED = {f"blocks.{at}.moe.correction": np.zeros(EXPERTS, np.float32) for at in range(LAYERS)}
WHOLE = {**MIXED, "shapes": {**MIXED["shapes"], f"{B}.moe.correction": ["E"]}}


def move(old: str, new: str) -> dict[str, Any]:
    return {"move": {"from": rf"(blocks\.\d+\.moe)\.{old}", "to": rf"\1.{new}"}}


@pytest.mark.parametrize(("wrong", "why", "first"), [
    ({**WHOLE, "roles": {"expert.*.up": "moe.experts.*.up"}}, "no module for the role router", []),
    ({**WHOLE, "shapes": {}}, "which axis of 'blocks.*.moe.router.weight' has an entry for each E", []),
    ({**WHOLE, "roles": {**MIXED["roles"], "expert.*.down": "moe.out"}}, "are not in one module `experts`",
     [move(r"out\.(.+)", r"experts.\2")]),
    ({**WHOLE, "shapes": {}, "roles": {**MIXED["roles"], "router": "choose"}}, "'choose' is not in the module 'moe'",
     [{"move": {"from": r"(blocks\.\d+)\.choose\.weight", "to": r"\1.moe.router.weight"}}]),
    (MIXED, "'blocks.*.moe.correction' may have an entry for each of 4 experts", []),
])  # fmt: skip
def test_what_experts_need_is_asked_for(wrong: Any, why: str, first: list[Any], tmp_path: Path) -> None:
    tensors = {**make_experts(), **CORRECTED}
    if "out" in str(first):
        tensors = {re.sub(r"experts\.(\d+)\.down", r"out.\1.down", name): x for name, x in tensors.items()}
    if "choose" in str(first):
        tensors = {name.replace("moe.router", "choose"): x for name, x in tensors.items()}
    with pytest.raises(bs.PlanError, match=re.escape(why)):
        run(tmp_path, {"expert_prune": {"drop": [0], "family": wrong}}, tensors=tensors, config=MIXED_CONFIG)
    assert not (tmp_path / "out").exists()
    mended = run(tmp_path, *first, {"expert_prune": {"drop": [0], "family": WHOLE}}, tensors=tensors,
                 config=MIXED_CONFIG)  # fmt: skip
    assert mended["blocks.0.moe.router.weight"].shape == (EXPERTS - 1, WIDTH)


def without(key: str, *names: str) -> dict[str, Any]:
    return {**FAMILY, key: {name: x for name, x in FAMILY[key].items() if name not in names}}


UNFIT = {**FUSED, "dims": {**FUSED["dims"], "M": "3 * n_heads"},
         "shapes": {**FUSED["shapes"], f"{B}.attn.qkv.weight": ["M*H", "D"]}}  # fmt: skip


@pytest.mark.parametrize(("op", "family", "why", "mended"), [
    ("fold_norm", without("roles", "attention_norm"), "no module for the role attention_norm", FAMILY),
    ("fold_norm", without("roles", "up"), "has no 'gate', which reads a norm", FAMILY),
    ("fold_norm", without("roles", "k"), "it is not known whether 'blocks.*.attn.k.weight' reads a norm", FAMILY),
    ("fold_norm", without("shapes", f"{B}.ff.up.weight"),
     "which axis of 'blocks.*.ff.up.weight' has an entry for each D", FAMILY),
    ("fold_norm", {**FAMILY, "norms": None}, "does not say how norms compute", FAMILY),
    ("fold_norm", {**FAMILY, "norms": "layernorm"}, "no norms 'layernorm'. Did you mean 'layer_norm'?", FAMILY),
    ("centre_writing", {**FAMILY, "norms": "rms_norm"}, "RMSNorm sees it", FAMILY),
    ("centre_unembed", without("roles", "head"), "no module for the role embed and head", FAMILY),
    ("fuse", FAMILY, "have no tensors that belong into one", FUSED),
    ("refactor_attention", without("roles", "positions"), "turns queries and keys by their positions", FAMILY),
    ("refactor_attention", without("dims", "N"), "uses N, which is no dim", FAMILY),
    ("refactor_attention", {**FAMILY, "shapes": {f"{B}.attn.{n}.weight": ["_", "D"] for n in "qk"}, "dims":
     {"L": "n_blocks", "D": "width"}}, "has no dim N", FAMILY),
    ("fold_value_biases", without("roles", "o"), "no module for the role o", FAMILY),
    ("fold_norm", {**FAMILY, "roles": {"embd": "embed"}}, "there is no role 'embd'. Did you mean 'embed'?", FAMILY),
    ("fold_norm", {**FAMILY, "roles": {"embed": ["embed"]}}, "expected the name of a module for the role", FAMILY),
    ("fold_norm", {**FAMILY, "roles": {"embed": "emb"}}, "there is no module 'emb' for the role embed.", FAMILY),
    ("fold_norm", {"roles": {"q": "attn.q"}}, "the role q is one within layers", FAMILY),
    ("fold_norm", {**FAMILY, "shape": {}}, "a family has no key 'shape'. Did you mean 'shapes'?", FAMILY),
    ("fold_norm", {**FAMILY, "dims": [1]}, "expected a mapping for dims, got [1]", FAMILY),
    ("fold_norm", {**FAMILY, "dims": {"L": [True]}}, "expected texts for the dim L, got True", FAMILY),
    ("fold_norm", {**FAMILY, "shapes": {"embd.weight": ["_"]}}, "there is no tensor 'embd.weight'", FAMILY),
    ("upcycle", without("roles", "mlp"), "no module for the role mlp", None),
    ("upcycle", None, "no family that is known; model_type 'mine' says no more", None),
])  # fmt: skip
def test_what_the_step_should_say_is_asked_for_and_then_it_runs(
    op: str, family: Any, why: str, mended: Any, tmp_path: Path
) -> None:
    more = {"experts": 2} if op == "upcycle" else {}
    with pytest.raises(bs.PlanError, match=re.escape(why)):
        run(tmp_path, {op: {**more, **({"family": family} if family else {})}})
    assert not (tmp_path / "out").exists()
    if mended:
        run(tmp_path, {op: {"family": mended}})


def test_a_tensor_that_does_not_hold_three_parts_is_refused_and_one_that_does_is_not(tmp_path: Path) -> None:
    fused = run(tmp_path, {"fuse": {"family": FUSED}})
    with pytest.raises(bs.PlanError, match=r"an axis M\*H does not hold three parts"):
        run(tmp_path, {"refactor_attention": {"family": UNFIT}}, tensors=fused, out="back")
    assert run(tmp_path, {"refactor_attention": {"family": FUSED}}, tensors=fused, out="back").keys() == fused.keys()


def test_a_proof_is_refused_as_nothing_is_known_of_what_the_model_computes(tmp_path: Path) -> None:
    with pytest.raises(bs.PlanError, match="it is not known what a model computes whose family the step describes"):
        run(tmp_path, {"fold_norm": {"family": FAMILY, "prove": True}})
    run(tmp_path, {"fold_norm": {"family": FAMILY}})


def test_a_part_that_config_lacks_is_refused_and_the_whole_is_not(tmp_path: Path) -> None:
    with pytest.raises(bs.PlanError, match="has no part 'text'"):
        run(tmp_path, {"fold_norm": {"part": "text", "family": FAMILY}})
    run(tmp_path, {"fold_norm": {"family": FAMILY}})
