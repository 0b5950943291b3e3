"""`refactor_attention`: products of attention in another basis, judged by `transformers` and NumPy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from brainsurgery_jax.errors import PlanError
from tests.structure.judged import assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations


@pytest.mark.parametrize(("name", "products"), [
    ("gpt2", "both"), ("gpt2", "qk"), ("gpt_neox", "ov"), ("llama", "ov"), ("llama-biased", "ov"), ("qwen2", "ov"),
    ("qwen3", "ov"), ("gemma2", "ov"), ("olmo2", "ov"), ("mixtral", "ov"), ("phi3", "ov"),
])  # fmt: skip
def test_logits_stay_and_are_proven(name: str, products: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole")
    notes = edit(tmp_path / "whole", tmp_path / "out", {"refactor_attention": {"products": products, "prove": True}})
    assert "operand-unused" not in {note.code for note in notes}
    assert_same(logits(load(tmp_path / "out")), logits(model), 1e-4)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "out"))
    changed = [key for key in before if not np.array_equal(before[key], after[key])]
    assert changed and all("attn" in key or "attention" in key for key in changed)


def test_values_of_a_group_get_the_singular_values_of_their_product(tmp_path: Path) -> None:
    make("llama", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"refactor_attention": {"products": "ov"}})
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "out"))
    for group in range(2):  # 4 heads of width 8, in 2 groups

        def factors(tensors: dict[str, Any], group: int = group) -> tuple[np.ndarray, np.ndarray]:
            head = "model.layers.1.self_attn"
            value = tensors[f"{head}.v_proj.weight"][group * 8 : group * 8 + 8].T
            columns = [tensors[f"{head}.o_proj.weight"][:, n * 8 : n * 8 + 8].T for n in (2 * group, 2 * group + 1)]
            return value, np.concatenate(columns, axis=1)

        (v, o), (u, w) = factors(before), factors(after)
        np.testing.assert_allclose(w @ w.T, np.eye(8), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(u, axis=0), np.linalg.svd(v @ o)[1][:8], rtol=1e-4)
        np.testing.assert_allclose(u @ w, v @ o, atol=1e-5)


@pytest.mark.parametrize(("name", "asked", "why"), [
    ("llama", {}, "a llama turns queries and keys by their positions (RoPE)"),
    ("gpt_neox", {"products": "qk"}, "a gpt_neox turns queries and keys"),
    ("bert", {}, "it is not known that attention of a bert only sums up values"),
    ("deepseek_v3", {"products": "ov"}, "it is not known that attention of a deepseek_v3"),
])  # fmt: skip
def test_what_is_between_two_matrices_is_a_reason_to_refuse(name: str, asked: Any, why: str, tmp_path: Path) -> None:
    make(name, tmp_path / "whole")
    with pytest.raises(PlanError, match=re.escape(why)):
        edit(tmp_path / "whole", tmp_path / "out", {"refactor_attention": asked})


def test_clipped_values_and_fused_ones_are_refused(tmp_path: Path) -> None:
    make("olmoe", tmp_path / "clipped", clip_qkv=2.0)
    with pytest.raises(PlanError, match="has clip_qkv: values are clipped between"):
        edit(tmp_path / "clipped", tmp_path / "out", {"refactor_attention": {"products": "ov"}})
    make("granite", tmp_path / "fused")
    steps = {"fuse": {}}, {"refactor_attention": {"products": "ov"}}
    with pytest.raises(PlanError, match=r"has no 'model\.layers\.\*\.self_attn\.v_proj\.weight', as a granite has it"):
        edit(tmp_path / "fused", tmp_path / "out", *steps)


def test_queries_keys_and_values_may_be_in_one_tensor_or_apart(tmp_path: Path) -> None:
    model = make("gpt2", tmp_path / "whole")
    edit(tmp_path / "whole", tmp_path / "out", {"unfuse": {}}, {"refactor_attention": {}}, {"fuse": {}})
    assert_same(logits(load(tmp_path / "out")), logits(model), 1e-4)
