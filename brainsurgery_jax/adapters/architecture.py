"""What config.json and names say of a model, as far as PEFT must know it: the names of its modules, and their kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from brainsurgery_jax.families.adapters import CONV1D
from brainsurgery_jax.protocol import View

_TOKENS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")
"""Tables of tokens, which PEFT adapts by `lora_embedding_A` and `lora_embedding_B`."""

_TABLES = ("wpe", "shared", "relative_attention_bias")
"""Tables whose names do not say so."""

_ROUTERS = ("gate", "router", "wg")
"""Routers of experts: parameters, and no linear modules, in what PEFT loads."""

_HEADS = {"embed_tokens": "lm_head", "wte": "lm_head", "word_embeddings": "lm_head", "embed_in": "embed_out"}
"""By the name of a table of tokens, the head that may share it."""

_PREFIXES = {
    "gpt2": "transformer", "gpt_neo": "transformer", "gptj": "transformer", "bloom": "transformer",
    "falcon": "transformer", "codegen": "transformer", "mpt": "transformer", "bert": "bert", "roberta": "roberta",
    "distilbert": "distilbert", "gpt_neox": "gpt_neox", "llama": "model", "mistral": "model", "qwen2": "model",
    "qwen3": "model", "gemma": "model", "gemma2": "model", "phi3": "model", "olmo2": "model",
}  # fmt: skip
"""By the type of a model, where its class with a head keeps the model without one."""

_OUTSIDE = ("lm_head", "embed_out", "score", "classifier", "cls")
"""Modules of a class with a head that are not within the model without one."""

_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")

_TASKS = {
    "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS",
}  # fmt: skip
_CAUSAL = "CAUSAL_LM"


@dataclass(frozen=True)
class Architecture:
    """A model: what its config.json holds, and the shapes of its tensors by name."""

    config: Mapping[str, object]
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def name(self) -> str:
        """The class of the model; empty if it is not known."""
        found = self.config.get("architectures")
        return str(found[0]) if isinstance(found, list) and found else ""

    @cached_property
    def task(self) -> str | None:
        """PEFT's word for what the class is for."""
        if self.name.endswith("ForConditionalGeneration") and self.config.get("is_encoder_decoder"):
            return "SEQ_2_SEQ_LM"
        return next((task for end, task in _TASKS.items() if self.name.endswith(end)), None)

    @cached_property
    def prefix(self) -> str:
        """What PEFT has before the names of the checkpoint, which may be those of a model without its head."""
        own = _PREFIXES.get(str(self.config.get("model_type")), "")
        headless = not self.name or (self.name.endswith("Model") and not self.name.endswith("LMHeadModel"))
        if not own or headless or any(name.startswith(f"{own}.") for name in self.shapes):
            return ""
        return f"{own}."

    def module_of(self, name: str) -> str:
        """The module that PEFT knows by this name of the checkpoint."""
        return name if name.partition(".")[0] in _OUTSIDE else self.prefix + name

    def is_factorable(self, module: str) -> bool:
        """Whether PEFT adapts the weight of this module, if it is a matrix, by two factors."""
        last = module.rpartition(".")[2]
        if last in _TOKENS or last == "embed_out":
            return True
        return last not in (*_TABLES, *_ROUTERS) and "embed" not in last

    @staticmethod
    def is_convolution(shape: Sequence[int]) -> bool:
        """Whether a weight of this shape is a kernel that PEFT adapts [out, in, ...], of one to three axes; those of
        one channel for each group it cannot."""
        return 3 <= len(shape) <= 5 and shape[1] > 1

    def is_table(self, module: str) -> bool:
        """Whether the module is a table of tokens."""
        return module.rpartition(".")[2] in _TOKENS

    @cached_property
    def _is_transposed(self) -> bool:
        kind = self.config.get("model_type")
        if kind is not None:
            return kind in _TRANSPOSED
        pairs = ((shape, self.shapes.get(f"{name.removesuffix('.weight')}.bias")) for name, shape in self.shapes.items()
                 if name.removesuffix(".weight").endswith(CONV1D))  # fmt: skip
        return any(b is not None and len(w) == 2 and w[0] != w[1] == b[0] for w, b in pairs)

    def is_transposed(self, module: str) -> bool:
        """Whether the module keeps its weight as [in, out]."""
        return self._is_transposed and module.endswith(CONV1D)

    def head_of(self, module: str) -> str | None:
        """The head that may share this table of tokens; None if the module is no such table, or the model has no
        head."""
        if self.task != _CAUSAL or not self.is_table(module):
            return None
        return _HEADS.get(module.rpartition(".")[2])

    def shares_otherwise(self, module: str) -> bool:
        """Whether other modules hold this table, under names that are not known."""
        last = module.rpartition(".")[2]
        masked = self.name.endswith(("ForMaskedLM", "ForPreTraining")) and last in _TOKENS
        return masked or (bool(self.config.get("is_encoder_decoder")) and last in ("shared", "embed_tokens"))


def read_architecture(view: View, alias: str) -> Architecture:
    """The architecture of a base."""
    known = view.config(alias, "base")
    config = known[1] if known is not None and isinstance(known[1], Mapping) else {}
    return Architecture(config, {name: view.fetch(alias, name, "base").aval.shape for name in view.names(alias)})
