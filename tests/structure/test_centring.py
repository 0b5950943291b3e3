"""`centre_writing`, `centre_unembed` and `fold_value_biases`, judged by `transformers`, and by their formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from brainsurgery_jax.errors import PlanError
from tests.structure.judged import assert_same, edit, load, logits, make

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

PROVEN = {"prove": True}
BIASED = {"attention_bias": True}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


@pytest.mark.parametrize(("name", "ends", "axis"), [
    ("gpt2", ("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias"), -1),
    ("gpt_neox", ("embed_in.weight", "dense.weight", "dense.bias", "4h_to_h.weight", "4h_to_h.bias"), 0),
])  # fmt: skip
def test_what_writes_the_stream_loses_its_mean(name: str, ends: tuple[str, ...], axis: int, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole", tie_word_embeddings=False)
    edit(tmp_path / "whole", tmp_path / "out", {"centre_writing": PROVEN})
    found = load(tmp_path / "out")
    assert_same(logits(found), logits(model))
    before, after = weights(model), weights(found)
    written = {n for n in before if n.endswith(ends)}
    assert len(written) > 8
    for n, w in before.items():
        over = 1 if "embed_in" in n else axis
        wanted = w - w.mean(over, keepdim=True) if n in written else w
        torch.testing.assert_close(after[n], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral", "gpt_neox"])
def test_the_mean_over_words_leaves_the_probabilities_what_they_were(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole", tie_word_embeddings=False)
    edit(tmp_path / "whole", tmp_path / "out", {"centre_unembed": PROVEN})
    found, wanted = logits(load(tmp_path / "out")), logits(model)
    assert_same(found, wanted - wanted.mean(-1, keepdim=True))
    assert not torch.allclose(found, wanted, atol=1e-2)


@pytest.mark.parametrize(("name", "settings"), [
    ("gpt2", {}), ("gpt_neox", {}), ("llama", BIASED), ("qwen3", BIASED), ("olmo2", BIASED),
])  # fmt: skip
def test_biases_of_values_go_where_they_end_up(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = make(name, tmp_path / "whole", **settings)
    edit(tmp_path / "whole", tmp_path / "out", {"fold_value_biases": PROVEN})
    found = load(tmp_path / "out")
    assert_same(logits(found), logits(model))
    biases = [
        w for n, w in weights(found).items() if n.endswith(("c_attn.bias", "query_key_value.bias", "v_proj.bias"))
    ]
    assert biases
    for bias in biases:
        rows = {"gpt2": (1, 3), "gpt_neox": (found.config.num_attention_heads, 3)}.get(name, (1, 1))
        each = bias.reshape(*rows, -1)
        assert (each[:, -1] == 0).all() and (each[:, :-1] != 0).all()


def test_the_proof_takes_no_more_tokens_than_there_are_positions(tmp_path: Path) -> None:
    model = make("gpt2", tmp_path / "whole", n_positions=9, tie_word_embeddings=False)
    edit(tmp_path / "whole", tmp_path / "out", {"fold_value_biases": PROVEN})
    assert_same(logits(load(tmp_path / "out")), logits(model))


def test_a_fold_notes_nothing(tmp_path: Path) -> None:
    make("gpt2", tmp_path / "whole", tie_word_embeddings=False)
    steps = [{"fold_norm": {}}, {"centre_writing": {}}, {"centre_unembed": {}}, {"fold_value_biases": {}}]
    assert not [note for note in edit(tmp_path / "whole", tmp_path / "out", *steps) if note.code == "operand-unused"]


def test_all_of_transformer_lens_in_its_order(tmp_path: Path) -> None:
    model = make("gpt2", tmp_path / "whole")
    steps = [{"untie": {}}, {"fold_norm": PROVEN}, {"centre_writing": PROVEN}, {"centre_unembed": PROVEN},
             {"fold_value_biases": PROVEN}]  # fmt: skip
    edit(tmp_path / "whole", tmp_path / "out", *steps)
    wanted = logits(model)
    assert_same(logits(load(tmp_path / "out")), wanted - wanted.mean(-1, keepdim=True))


@pytest.mark.parametrize(("name", "op", "why", "settings"), [
    ("llama", "centre_writing", "is a llama: only where LayerNorm", {}),
    ("olmo2", "centre_writing", "is a olmo2: only where LayerNorm", {}),
    ("gpt2", "centre_writing", "the mean of a row counts", {}),
    ("gpt2", "centre_unembed", "its mean counts for words that come in", {}),
    ("gemma2", "centre_unembed", "has final_logit_softcapping", {"final_logit_softcapping": 30.0}),
    ("vit", "centre_unembed", "the family vit have no output table", {}),
    ("qwen2", "fold_value_biases", r"has no 'model\.layers\.\*\.self_attn\.o_proj\.bias'", {}),
    ("llama", "fold_value_biases", "no bias of values is known", {}),
    ("bert", "fold_value_biases", "it is not known that the weights of attention of a bert", {}),
    ("olmoe", "fold_value_biases", "has clip_qkv", {"attention_bias": True, "clip_qkv": 4.0}),
])  # fmt: skip
def test_models_for_which_the_identity_does_not_hold_are_refused(
    name: str, op: str, why: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    make(name, tmp_path / "whole", **settings)
    with pytest.raises(PlanError, match=why):
        edit(tmp_path / "whole", tmp_path / "out", {op: {}})
    assert not (tmp_path / "out").exists()
