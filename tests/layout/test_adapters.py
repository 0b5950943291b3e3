"""LoRA adapters go the way of their base: a base merged and converted is the converted base with converted factors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.layout.adapters import DOWN, HEAD, UP
from tests.checkpoints import bits, normal, read, write
from tests.layout.test_convert import GPT2, LLAMA, gpt2, llama

RANK = 3
LAYERED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.down_proj")  # fmt: skip
GEMMA = LLAMA | {"model_type": "gemma3_text", "query_pre_attn_scalar": 4}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 2, "tie_word_embeddings": False}
MINE = """
layout: mine
doc: Layers stacked first, heads first, a padded output
target: {format: orbax, prefix: params}
dims: {D: hidden_size, N: num_attention_heads, H: head_dim, L: num_hidden_layers, F: intermediate_size}
ranges: {i: L}
rules:
  - hf: 'model.layers.{i}.self_attn.q_proj.weight'
    to: q
    shape: [N*H, D]
    ops: [{reshape: [N, H, D]}, {permute: [0, 2, 1]}, {interleave: 2}, {multiply: 2}, {stack: {over: i, axis: 0}}]
  - hf: 'model.layers.{i}.mlp.down_proj.weight'
    to: down
    shape: [D, F]
    ops: [{pad: {axis: 0, to: D + 2}}, {stack: {over: i, axis: -1}}]
  - {hf: 'model.layers.{i}.mlp.up_proj.weight', to: up, shape: [F, D], ops: [{add: 1}, {stack: {over: i, axis: 0}}]}
  - {hf: 'model.layers.{i}.mlp.gate_proj.weight', to: gate, shape: [F, D],
     ops: [{reshape: [D, F]}, {stack: {over: i, axis: 0}}]}
"""


def mixtral() -> dict[str, np.ndarray]:
    found = {n: x for n, x in llama().items() if ".mlp." not in n} | {"lm_head.weight": normal((7, 6), seed=70)}
    for i in range(2):
        moe = f"model.layers.{i}.block_sparse_moe"
        found[f"{moe}.gate.weight"] = normal((2, 6), seed=80 + i)
        for e in range(2):
            shapes = {"w1": (5, 6), "w3": (5, 6), "w2": (6, 5)}
            found |= {f"{moe}.experts.{e}.{n}.weight": normal(s, seed=90 + 4 * i + e) for n, s in shapes.items()}
    return found


class Base(NamedTuple):
    """A model, and which of its modules are adapted."""

    weights: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    modules: Sequence[str]
    conv: bool = False

    def factors(self) -> dict[str, np.ndarray]:
        """An adapter as PEFT names it: factors of a Linear, also where the weight is that of a Conv1D."""
        found = {}
        for at, module in enumerate(self.modules):
            shape = self.weights[f"{module}.weight"].shape
            out, in_ = shape[::-1] if self.conv else shape
            found[HEAD + module + DOWN] = normal((RANK, in_), seed=at)
            found[HEAD + module + UP] = normal((out, RANK), seed=50 + at)
        return found

    def merged(self) -> dict[str, np.ndarray]:
        """The base with the adapter added to it."""
        adapter, weights = self.factors(), dict(self.weights)
        for module in self.modules:
            product = adapter[HEAD + module + UP] @ adapter[HEAD + module + DOWN]
            weights[f"{module}.weight"] = weights[f"{module}.weight"] + (product.T if self.conv else product)
        return weights


def layers(*modules: str) -> list[str]:
    return [f"model.layers.{i}.{m}" for i in range(2) for m in modules]


BASES = {
    "llama": Base(llama(), LLAMA, layers(*LAYERED)),
    "one layer": Base(llama(), LLAMA, [f"model.layers.1.{m}" for m in LAYERED]),
    "gpt2": Base({f"transformer.{n}": x for n, x in gpt2().items()}, GPT2,
                 [f"transformer.{m}" for m in ("h.0.attn.c_attn", "h.1.mlp.c_proj", "h.0.attn.c_proj")], conv=True),
    "mixtral": Base(mixtral(), MIXTRAL, [
        *layers("self_attn.q_proj", "block_sparse_moe.gate"),
        *layers(*(f"block_sparse_moe.experts.{e}.{w}" for e in range(2) for w in ("w1", "w2"))),
    ]),
}  # fmt: skip


class Row(NamedTuple):
    """A base, what is asked of the conversion, and how a product of its factors is made: for which names (by an end),
    and the rest otherwise."""

    base: str
    wishes: Mapping[str, Any]
    products: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.base} {' '.join(map(str, self.wishes.values()))}"


# In the order in which they are tried: x, y are axes of inputs, p, q of outputs, l and e of layers and experts.
ROWS = (
    Row("one layer", {"layout": "tunix"}, {"o_proj.w": "xyr,rp->xyp", "_proj.w": "xr,rpq->xpq", "": "xr,rp->xp"}),
    Row("one layer", {"layout": "maxtext", "scan": False}, {"": "xr,rp->xp"}),
    Row("llama", {"layout": "maxtext", "scan": True}, {"": "xlr,rlp->lxp"}),
    Row("gpt2", {"layout": "flax-gpt2"}, {"": "xr,rp->xp"}),
    Row("mixtral", {"layout": "flax-mixtral"}, {"w1.kernel": "exr,erp->exp", "w2.kernel": "exr,erp->exp",
                                                "": "xr,rp->xp"}),
    Row("mixtral", {"layout": "maxtext", "scan": True}, {"wi_0": "elxr,elrp->elxp", "wo": "elxr,elrp->elxp",
                                                         "": "xlr,rlp->lxp"}),
)  # fmt: skip
EACH = pytest.mark.parametrize("row", ROWS, ids=str)


def converted(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], folder: Path, name: str, **wishes: Any
) -> dict[str, np.ndarray]:
    (folder / "config.json").write_text(json.dumps(config))
    source = write(folder / f"{name}.safetensors", tensors)
    bs.convert(str(source), str(folder / f"{name}.out.safetensors"), durable=False, **wishes)
    return read(folder / f"{name}.out.safetensors")


def weight_of(factor: str, whole: Mapping[str, np.ndarray]) -> str:
    """The name of the weight that a factor belongs to: MaxText has its weights below `params.params`."""
    name = factor.removesuffix(".value").removesuffix("_lora_a")
    return name if name in whole else f"params.params.{name}"


@EACH
def test_a_merged_base_is_the_converted_base_with_the_converted_factors(row: Row, tmp_path: Path) -> None:
    base = BASES[row.base]
    plain = converted(base.weights, base.config, tmp_path, "plain", **row.wishes)
    merged = converted(base.merged(), base.config, tmp_path, "merged", **row.wishes)
    found = converted(base.factors(), base.config, tmp_path, "adapter", **row.wishes)
    for down in (n for n in found if "_lora_a" in n):
        name = weight_of(down, merged)
        sums = next(sums for end, sums in row.products.items() if name.endswith(end))
        product = np.einsum(sums, found[down], found[down.replace("_lora_a", "_lora_b")])
        difference = merged.pop(name) - plain.pop(name)
        if sums.endswith(">lxp"):  # a weight may have several axes of inputs, [heads, layer, head, out]
            difference = np.moveaxis(difference, 1, 0)
        np.testing.assert_allclose(product.reshape(difference.shape), difference, rtol=1e-4, atol=1e-5, err_msg=name)
    assert all(bits(merged[name]) == bits(x) for name, x in plain.items()), "no other weight was adapted"


@EACH
def test_an_adapter_comes_back_with_every_bit(row: Row, tmp_path: Path) -> None:
    base = BASES[row.base]
    there = converted(base.factors(), base.config, tmp_path, "there", **row.wishes)
    back = converted(there, base.config, tmp_path, "back", **row.wishes)
    assert back.keys() == base.factors().keys()
    for name, x in base.factors().items():
        assert bits(back[name]) == bits(x) if "q_proj.lora_B" not in name else np.allclose(back[name], x), name


def test_a_layout_of_ones_own_says_what_becomes_of_factors(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    base = Base(llama(), LLAMA, layers("self_attn.q_proj", "mlp.down_proj"))
    found = converted(base.factors(), LLAMA, tmp_path, "there", layout=str(path))
    assert {n: x.shape for n, x in found.items()} == {
        "params.q_lora_a": (2, 6, 3), "params.q_lora_b": (2, 3, 2, 4),
        "params.down_lora_a": (5, 3, 2), "params.down_lora_b": (3, 8, 2),
    }  # fmt: skip
    halves = base.factors()[f"{HEAD}model.layers.1.self_attn.q_proj{UP}"].T.reshape(3, 2, 2, 2)
    np.testing.assert_array_equal(found["params.q_lora_b"][1], 2 * halves.swapaxes(2, 3).reshape(3, 2, 4))
    assert not found["params.down_lora_b"][:, 6:].any()
    back = converted(found, LLAMA, tmp_path, "back", layout=str(path))
    assert all(bits(back[name]) == bits(x) for name, x in base.factors().items())


def test_factors_in_common_are_given_to_each_on_the_way_back(tmp_path: Path) -> None:
    trained = {"layers.0.attn.kv_einsum.w_lora_a": normal((6, RANK)),
               "layers.0.attn.kv_einsum.w_lora_b": normal((RANK, 2, 1, 4), seed=1)}  # fmt: skip
    found = converted(trained, GEMMA, tmp_path, "trained", layout="tunix-gemma3")
    for at, module in enumerate(("k_proj", "v_proj")):
        stem = f"{HEAD}model.layers.0.self_attn.{module}"
        np.testing.assert_array_equal(found[stem + DOWN], trained["layers.0.attn.kv_einsum.w_lora_a"].T)
        np.testing.assert_array_equal(
            found[stem + UP], trained["layers.0.attn.kv_einsum.w_lora_b"][:, at].reshape(RANK, 4).T
        )


def test_the_config_of_an_adapter_comes_back_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write(folder / "adapter_model.safetensors", BASES["llama"].factors())
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    asked = {"layout": "tunix", "config": str(tmp_path / "config.json"), "durable": False}
    bs.convert(str(folder), str(tmp_path / "tunix"), **asked)
    bs.convert(str(tmp_path / "tunix"), str(tmp_path / "back"), verify=True, **asked)
    names = ["adapter_config.json", "adapter_model.safetensors", "brainsurgery.lock.json"]
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == names
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text())["lora_alpha"] == 6


# --- What factors cannot express --------------------------------------------------------------------------------------


def refused(base: Base, folder: Path, match: str, **wishes: Any) -> str:
    with pytest.raises(PlanError, match=match) as caught:
        converted(base.factors(), base.config, folder, "refused", **wishes)
    return str(caught.value)


def test_a_stack_of_which_some_layers_have_no_factors_is_refused(tmp_path: Path) -> None:
    message = refused(
        BASES["one layer"], tmp_path, "maxtext-llama stacks 2 such weights, but 1 of them have no", layout="maxtext"
    )
    assert "'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight' is missing. Fill it with zeros" in message


def test_factors_of_other_ranks_are_not_stacked(tmp_path: Path) -> None:
    tensors = BASES["llama"].factors()
    stem = f"{HEAD}model.layers.0.self_attn.q_proj"
    tensors |= {stem + DOWN: normal((5, 6)), stem + UP: normal((8, 5))}
    with pytest.raises(PlanError, match=r"q_proj\.weight': factors of ranks 3 and 5 cannot be stacked"):
        converted(tensors, LLAMA, tmp_path, "ranks", layout="maxtext")


def test_two_adapters_of_what_the_target_holds_as_one_are_refused(tmp_path: Path) -> None:
    base = Base(llama(), GEMMA, ["model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"])
    message = refused(
        base, tmp_path, "tunix-gemma3 stores 'k_proj', 'v_proj' as one tensor, but their", layout="tunix-gemma3"
    )
    assert "Merge the adapter into its base" in message


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("mlp.up_proj", "`add` cannot be expressed on factors"),
        ("mlp.gate_proj", "`reshape` mixes the axes of inputs and out"),
    ],
)
def test_an_op_that_does_not_carry_over_is_refused(module: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    refused(Base(llama(), LLAMA, layers(module)), tmp_path, why, layout=str(path))


def test_half_an_adapter_is_refused(tmp_path: Path) -> None:
    tensors = {n: x for n, x in BASES["gpt2"].factors().items() if "h.1" not in n or n.endswith(UP)}
    with pytest.raises(
        PlanError, match=r"missing \(1\): 'base_model\.model\.transformer\.h\.1\.mlp\.c_proj\.lora_A\.weight'"
    ):
        converted(tensors, GPT2, tmp_path, "half", layout="flax-gpt2")
