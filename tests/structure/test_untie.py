"""A model whose words are untied computes what it did, and `transformers` finds every tensor that it then looks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.structure.judged import edit, save_random

pytestmark = pytest.mark.filterwarnings("ignore")  # those that transformers gives for tiny configurations

TWO: dict[str, Any] = {"encoder_layers": 2, "decoder_layers": 2, "d_model": 16, "encoder_attention_heads": 4,
                       "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
                       "vocab_size": 40}  # fmt: skip
MARKS: dict[str, Any] = {"pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": 2}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "opt": ("OPTConfig", "OPTForCausalLM", {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 24,
        "word_embed_proj_dim": 16, "max_position_embeddings": 32}),
    "bart": ("BartConfig", "BartForConditionalGeneration", TWO | MARKS),
    "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", TWO | MARKS),
    "marian": ("MarianConfig", "MarianMTModel", TWO | MARKS),
    "m2m_100": ("M2M100Config", "M2M100ForConditionalGeneration", TWO | MARKS),
    "bert": ("BertConfig", "BertForMaskedLM", {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 24}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {
        "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 0,
        "eos_token_id": 0}),
}  # fmt: skip


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(3, 15)[None]
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(tokens, **more).logits


@pytest.mark.parametrize("name", MODELS)
def test_an_untied_model_loads_whole_and_computes_what_it_did(name: str, tmp_path: Path):
    config, kind, sizes = MODELS[name]
    torch.manual_seed(7)
    model = getattr(transformers, kind)(getattr(transformers, config)(**sizes))
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.dtype.is_floating_point and buffer.ndim == 2 and buffer.shape[0] == 1:
                buffer.normal_()  # the bias of BART's head
    save_random(model, tmp_path / "tied")
    before = logits(getattr(transformers, kind).from_pretrained(tmp_path / "tied"))
    edit(tmp_path / "tied", tmp_path / "out", {"untie": {}})
    again, told = getattr(transformers, kind).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not again.config.tie_word_embeddings
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    torch.testing.assert_close(logits(again), before)
