"""Which head is the table of tokens, by the name of a class: what `_tied_weights_keys` of transformers says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_HEADS = {"embed_tokens": "lm_head", "wte": "lm_head", "word_embeddings": "lm_head", "embed_in": "embed_out"}
"""By the last name of a table, the head of a language model whose class is none of those below."""

TOKENS = (*_HEADS, "tok_embeddings")
"""Tables of tokens, which PEFT adapts by `lora_embedding_A` and `lora_embedding_B`."""


class TiedNames(NamedTuple):
    """The whole name of a head, and the last of the table that it is."""

    head: str
    table: str = "word_embeddings"


_GROUPS: dict[TiedNames, str] = {
    TiedNames("cls.predictions.decoder"): (
        "Bert MegatronBert BigBird RoCBert Deberta DebertaV2 Ernie FNet MobileBert RoFormer LayoutLM Mra NomicBert "
        "Nystromformer SqueezeBert Tapas Yoso VisualBert Lxmert"
    ),
    TiedNames("lm_head.decoder"): (
        "Roberta Camembert XLMRoberta XLMRobertaXL Xmod JinaEmbeddingsV3 Data2VecText RobertaPreLayerNorm "
        "BertGeneration Esm Gte IBert Longformer MPNet"
    ),
    TiedNames("predictions.decoder"): "Albert",
    TiedNames("generator_lm_head"): "Electra ConvBert",
    TiedNames("vocab_projector"): "DistilBert",
    TiedNames("mlm_score.decoder"): "BridgeTower Vilt",
    TiedNames("output"): "Git",
    TiedNames("lm_head"): "Funnel",
    TiedNames("decoder", "tok_embeddings"): "ModernBert ModernBertDecoder",
    TiedNames("lm_head", "embeddings"): "Mamba Mamba2 FalconMamba",
    TiedNames("head", "embeddings"): "Rwkv",
    TiedNames("pred_layer.proj", "embeddings"): "XLM Flaubert",
    TiedNames("lm_head", "w"): "CTRL",
    TiedNames("lm_head", "tokens_embed"): "OpenAIGPT",
    TiedNames("lm_loss", "word_embedding"): "XLNet",
    TiedNames("output_projection", "embed_tokens"): "BioGpt TrOCR",
    TiedNames("proj_out", "embed_tokens"): "Whisper Moonshine MoonshineStreaming CohereAsr Canary",
}
_TIED = {stem: names for names, stems in _GROUPS.items() for stem in stems.split()}

_CLASS = re.compile(
    r"(.+?)(?:For(?:MaskedLM|PreTraining|CausalLM|ConditionalGeneration)|(?:With)?LMHeadModel|DoubleHeadsModel|Decoder)"
)
"""Classes that have a head for tokens."""


def tied_head(name: str, module: str, *, seq2seq: bool) -> str | None:
    """The head that may be this module, a table of tokens; None if it is no such table, if the class `name` has no
    head, or if its name is not known. `seq2seq`: an encoder may share the table, too."""
    if (stem := _CLASS.fullmatch(name)) is None:
        return None
    last = module.rpartition(".")[2]
    if (own := _TIED.get(stem[1])) is not None:
        return own.head if last == own.table else None
    if seq2seq or name.endswith(("ForMaskedLM", "ForPreTraining")):
        return None
    if (head := _HEADS.get(last)) is None:
        return None
    within = module.removesuffix(f".model.{last}")  # a language model within another keeps its head beside `model`
    return head if within == module else f"{within}.{head}"


def tied_bias(head: str, names: Iterable[str]) -> str | None:
    """The bias that a head uses and has not under its own name: the classes of BERT keep it beside the head.
    `names`: those of the tensors that there are."""
    beside = f"{head.removesuffix('.decoder')}.bias"
    is_beside = head.endswith(".decoder") and f"{head}.bias" not in names and beside in names
    return beside if is_beside else None
