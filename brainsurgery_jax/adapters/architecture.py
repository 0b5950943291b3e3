"""What config.json and names say of a model, as far as PEFT must know it: the names of its modules, and their kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from brainsurgery_jax.adapters.heads import TOKENS, tied_bias, tied_head
from brainsurgery_jax.adapters.renaming import module_name
from brainsurgery_jax.families.adapters import CONV1D
from brainsurgery_jax.protocol import View

_TABLES = ("wpe", "shared", "relative_attention_bias")
"""Tables whose names do not say so."""

_ROUTERS = ("gate", "router", "wg")
"""Routers of experts: parameters, and no linear modules, in what PEFT loads."""

_PREFIXES = {
    "gpt2": "transformer", "gpt_neo": "transformer", "gptj": "transformer", "bloom": "transformer",
    "falcon": "transformer", "codegen": "transformer", "mpt": "transformer", "bert": "bert", "roberta": "roberta",
    "distilbert": "distilbert", "gpt_neox": "gpt_neox", "llama": "model", "mistral": "model", "qwen2": "model",
    "qwen3": "model", "gemma": "model", "gemma2": "model", "phi3": "model", "olmo2": "model",
}  # fmt: skip
"""By the type of a model, where its class with a head keeps the model without one."""

_OUTSIDE = (
    "lm_head", "embed_out", "score", "classifier", "cls", "qa_outputs", "pre_classifier", "vocab_transform",
    "vocab_layer_norm", "vocab_projector",
)  # fmt: skip
"""Modules of a class with a head that are not within the model without one."""

_TIED = "tie_word_embeddings"

_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")

_TASKS = {
    "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS",
}  # fmt: skip


_CLASSIFIERS = {
    "SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)
}  # fmt: skip
"""By PEFT's word for a task, the modules that it saves whole whatever the config says."""

_GROUPED = {
    "squeezebert": {
        r"\.query$": "q_groups", r"\.key$": "k_groups", r"\.value$": "v_groups",
        r"\.intermediate\.": "intermediate_groups", r"\.post_attention\.": "post_attention_groups",
        r"\.output\.": "output_groups",
    },
}  # fmt: skip
"""By the type of a model, the settings that say how many groups convolutions have."""

_NUMBERED = re.compile(r"(.+\.)(\d+)(\.[^.]+)?")


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
        own = _PREFIXES.get(self.kind, "")
        if not own or not self.name or self._is_headless or any(name.startswith(f"{own}.") for name in self.shapes):
            return ""
        return f"{own}."

    @property
    def kind(self) -> str:
        """The type of the model."""
        return str(self.config.get("model_type"))

    @property
    def _is_headless(self) -> bool:
        return self.name.endswith("Model") and not self.name.endswith("LMHeadModel")

    def module_of(self, name: str) -> str:
        """The module that PEFT knows by this name of the checkpoint."""
        own = name if name.partition(".")[0] in _OUTSIDE else self.prefix + name
        return module_name(self.kind, self._is_headless, own)

    def is_factorable(self, module: str) -> bool:
        """Whether PEFT adapts the weight of this module, if it is a matrix, by two factors."""
        last = module.rpartition(".")[2]
        if last in TOKENS or last == "embed_out":
            return True
        return last not in (*_TABLES, *_ROUTERS) and "embed" not in last

    def is_convolution(self, module: str, shape: Sequence[int]) -> bool:
        """Whether a weight of this shape is a kernel that PEFT adapts [out, in, ...], of one to three axes; those of
        groups of channels it cannot."""
        return 3 <= len(shape) <= 5 and shape[1] > 1 and not self._is_grouped(module, shape)

    def _is_grouped(self, module: str, shape: Sequence[int]) -> bool:
        """Whether a convolution has groups of channels: its config says so, or what comes before it in a sequence has
        a multiple of the channels that its kernel takes."""
        settings = _GROUPED.get(self.kind, {})
        if any(re.search(ends, module) and self.config.get(key, 1) != 1 for ends, key in settings.items()):
            return True
        if "pos_conv_embed" in module and self.config.get("num_conv_pos_embedding_groups", 1) != 1:
            return True
        if (match := _NUMBERED.fullmatch(module)) is None or not int(match[2]):
            return False
        before = self.shapes.get(f"{match[1]}{int(match[2]) - 1}{match[3] or ''}.weight", ())
        groups, rest = divmod(before[0], shape[1]) if len(before) == len(shape) else (1, 0)
        return groups > 1 and not rest and shape[0] % groups == 0

    def whole_of(self, name: str) -> str | None:
        """The module that PEFT saves whole since the class is one for classification, if a tensor is within it."""
        parts = name.split(".")[:-1]
        outer = (".".join(parts[: at + 1]) for at in range(len(parts)))
        return next((module for module in outer if module.endswith(_CLASSIFIERS.get(self.task or "", ()))), None)

    def is_table(self, module: str) -> bool:
        """Whether the module is a table of tokens."""
        return module.rpartition(".")[2] in TOKENS

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

    @property
    def _is_seq2seq(self) -> bool:
        return bool(self.config.get("is_encoder_decoder"))

    def head_of(self, module: str) -> str | None:
        """The head that may share this table of tokens; None if the module is no such table, or no head is known: of
        several tables in one model, which the head shares is not told by their names."""
        if self.name.endswith("ForConditionalGeneration") and sum(map(self.is_table, self._weighted)) > 1:
            return None
        return tied_head(self.name, module, seq2seq=self._is_seq2seq)

    def shares_otherwise(self, module: str) -> bool:
        """Whether other modules hold this table, under names that are not known."""
        last = module.rpartition(".")[2]
        if self.head_of(module) is not None:
            return False
        masked = self.name.endswith(("ForMaskedLM", "ForPreTraining")) and last in TOKENS
        return masked or (self._is_seq2seq and last in ("shared", "embed_tokens"))

    @cached_property
    def tied(self) -> dict[str, str]:
        """The heads that are not stored, since they are the table of tokens, with that table."""
        text = self.config.get("text_config")
        inner = text.get(_TIED, True) if isinstance(text, Mapping) else True
        if self.name.endswith("ForConditionalGeneration") and self.config.get(_TIED, inner) is False:
            return {}  # the head is there under another name
        return {
            head: table for table, head in self.tables
            if head is not None and f"{head}.weight" not in self.shapes
        }  # fmt: skip

    @cached_property
    def tables(self) -> list[tuple[str, str | None]]:
        """The tables of tokens, and the heads that may share them."""
        heads = ((module, self.head_of(module)) for module in self._weighted)
        return [(module, head) for module, head in heads if head is not None or self.is_table(module)]

    @cached_property
    def _weighted(self) -> list[str]:
        """The modules that have a weight."""
        return [name.removesuffix(".weight") for name in self.shapes if name.endswith(".weight")]

    def bias_of(self, head: str) -> str | None:
        """The bias that a head which is the table has under another name."""
        return tied_bias(head, self.shapes)


def read_architecture(view: View, alias: str) -> Architecture:
    """The architecture of a base."""
    known = view.config(alias, "base")
    config = known[1] if known is not None and isinstance(known[1], Mapping) else {}
    return Architecture(config, {name: view.fetch(alias, name, "base").aval.shape for name in view.names(alias)})
