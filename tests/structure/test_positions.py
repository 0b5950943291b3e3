"""Classes that count positions from the padding word: `vocab` moves positions along, judged by their logits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from brainsurgery_jax.errors import PlanError
from tests.structure.judged import assert_same, edit, load, save_random
from tests.structure.test_tokenizers import write_holder, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 24, "bos_token_id": 0, "pad_token_id": 3, "eos_token_id": 2,
}  # fmt: skip
CLASSES = {
    "RobertaForMaskedLM": {}, "XLMRobertaForMaskedLM": {}, "CamembertForMaskedLM": {}, "Data2VecTextForMaskedLM": {},
    "XLMRobertaXLForMaskedLM": {}, "XmodForMaskedLM": {"default_language": "en_XX"},
    "LongformerModel": {"attention_window": 8}, "LiltModel": {"hidden_size": 48}, "MarkupLMModel": {},
}  # fmt: skip
TOKENS = torch.tensor([[0, 17, 21, 5, 3, 39, 8, *range(10, 22), 2]])  # as many as there are positions for


def make(name: str, folder: Path, **settings: Any) -> Any:
    torch.manual_seed(7)
    cls = getattr(transformers, name)
    return save_random(cls(cls.config_class(**{**SIZES, **CLASSES.get(name, {}), **settings})).eval(), folder)


def compute(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens)[0]


def reorder(pad: int) -> torch.Tensor:
    """An order in which the padding word has this number."""
    rest = [n for n in torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist() if n != 3]
    return torch.tensor([*rest[:pad], 3, *rest[pad:]])


@pytest.mark.parametrize("pad", [1, 9])
@pytest.mark.parametrize("name", CLASSES)
def test_positions_follow_the_padding_word(name: str, pad: int, tmp_path: Path) -> None:
    model, order = make(name, tmp_path / "in"), reorder(pad)
    edit(tmp_path / "in", tmp_path / "out", {"vocab": {"order": order.tolist()}})
    found = load(tmp_path / "out")
    assert found.config.pad_token_id == pad and found.config.max_position_embeddings == 24 + pad - 3
    back = torch.argsort(order)
    made, wanted = compute(found, back[TOKENS]), compute(model, TOKENS)
    assert_same(made[..., back] if name.endswith("LM") else made, wanted)


WORDS = ["<s>", "a", "</s>", "<pad>", *(f"Ġword{n}" for n in range(36))]
OTHERS = ["</s>", *WORDS[4:], "<s>", "<pad>", "a"]


@pytest.mark.parametrize("several", [False, True])
def test_positions_follow_the_padding_word_of_another_tokenizer(several: bool, tmp_path: Path) -> None:
    model = make("RobertaForMaskedLM", tmp_path / "in")
    write_tokenizer(tmp_path / "in", WORDS)
    if several:
        make("RobertaForMaskedLM", tmp_path / "other", pad_token_id=38, bos_token_id=37, eos_token_id=0,
             max_position_embeddings=59)  # fmt: skip
        write_tokenizer(tmp_path / "other", OTHERS)
    else:
        other = write_holder(tmp_path / "other", OTHERS)
        (other / "config.json").write_text(json.dumps({"model_type": "roberta", "pad_token_id": 38}))
    asked = (
        {"models": ["model", "other"], "tokenizer": "other"} if several else {"alias": "model", "tokenizer": "other"}
    )
    edit(tmp_path / "in", tmp_path / "out", {"vocab": asked}, other=tmp_path / "other")
    found, numbers = load(tmp_path / "out"), torch.tensor([OTHERS.index(word) for word in WORDS])
    assert (found.config.pad_token_id, found.config.max_position_embeddings) == (38, 59)
    assert_same(compute(found, numbers[TOKENS])[..., numbers], compute(model, TOKENS))


def test_words_in_another_order_leave_positions_alone_where_the_padding_word_stays(tmp_path: Path) -> None:
    model, order = make("RobertaForMaskedLM", tmp_path / "in"), reorder(3)
    edit(tmp_path / "in", tmp_path / "out", {"vocab": {"order": order.tolist()}})
    found = load(tmp_path / "out")
    assert torch.equal(
        found.roberta.embeddings.position_embeddings.weight, model.roberta.embeddings.position_embeddings.weight
    )


def refused(tmp_path: Path, asked: dict[str, Any], why: str, hint: str, **more: Path) -> None:
    with pytest.raises(PlanError, match=re.escape(why)) as told:
        edit(tmp_path / "in", tmp_path / "out", {"vocab": {"alias": "model", **asked}}, **more)
    assert hint in str(told.value)
    assert not (tmp_path / "out").exists()


def test_a_padding_word_that_is_gone_is_refused(tmp_path: Path) -> None:
    make("RobertaForMaskedLM", tmp_path / "in")
    refused(tmp_path, {"order": [0, 1, 2, 9]}, "the new words have none for padding", "List 3 in `order`.")
    edit(tmp_path / "in", tmp_path / "out", {"vocab": {"order": [0, 1, 2, 9, 3]}})
    assert load(tmp_path / "out").config.pad_token_id == 4


def test_a_tokenizer_without_a_padding_word_is_refused_until_its_config_names_one(tmp_path: Path) -> None:
    make("RobertaForMaskedLM", tmp_path / "in")
    write_tokenizer(tmp_path / "in", WORDS)
    write_tokenizer(tmp_path / "other", ["a", "</s>", "<s>"], ("</s>", "<s>"))
    (write_holder(tmp_path / "held", OTHERS) / "model.safetensors").rename(tmp_path / "other/model.safetensors")
    (tmp_path / "other/config.json").write_text('{"model_type": "roberta"}')
    step = {"config": {"alias": "other", "patch": {"pad_token_id": 1}}}
    refused(tmp_path, {"tokenizer": "other"}, "the new words have none for padding",
            "Put `- config: {alias: other, patch: {pad_token_id: NUMBER}}` before this step.",
            other=tmp_path / "other")  # fmt: skip
    edit(tmp_path / "in", tmp_path / "out", step, {"vocab": {"alias": "model", "tokenizer": "other"}},
         other=tmp_path / "other")  # fmt: skip
    assert load(tmp_path / "out").config.pad_token_id == 1


def test_a_model_that_does_not_say_its_padding_word_is_refused(tmp_path: Path) -> None:
    make("RobertaForMaskedLM", tmp_path / "in", pad_token_id=None)
    refused(tmp_path, {"order": reorder(5).tolist()}, "counts positions from pad_token_id, which is not set",
            "Add `pad_token_id` by a step `config` before this.")  # fmt: skip
    steps = {"config": {"patch": {"pad_token_id": 3}}}, {"vocab": {"order": reorder(5).tolist()}}
    edit(tmp_path / "in", tmp_path / "out", *steps)
    assert load(tmp_path / "out").config.pad_token_id == 5


def test_positions_that_no_table_has_do_not_move(tmp_path: Path) -> None:
    """M2M100 computes them as sines."""
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
             "decoder_start_token_id": 2}  # fmt: skip
    make("M2M100ForConditionalGeneration", tmp_path / "in", **sizes)
    refused(tmp_path, {"order": reorder(5).tolist()}, "all would change if it were 5, not 3",
            "Use words among which 3 is the padding word.")  # fmt: skip
    edit(tmp_path / "in", tmp_path / "out", {"vocab": {"order": reorder(3).tolist()}})
    assert load(tmp_path / "out").config.pad_token_id == 3
