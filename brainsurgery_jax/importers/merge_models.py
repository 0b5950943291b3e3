"""The models of a merge, if they are on this machine: tensors by name, layers, config.json, and an adapter."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from brainsurgery_jax.codes import ACTIVATIONS, quantized_among
from brainsurgery_jax.errors import Diagnostic, PlanError, Span
from brainsurgery_jax.importers.config_reader import FORM, UNSUPPORTED
from brainsurgery_jax.importers.imported import ImportedInput
from brainsurgery_jax.importers.patterns import Stack, stacks
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.protocol import Substep
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.detect import open_source

_FLOATS = ("float16", "bfloat16", "float32")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


_ON_HUB = re.compile(r"\w[\w.-]*/[\w.-]+(?:@\w[\w./-]*)?")
"""The name of a model on the Hugging Face hub, and which revision of it."""


def refuse(message: str, span: Span | None, hint: str = "", code: str = UNSUPPORTED) -> PlanError:
    """The error of one mistake in a configuration."""
    return PlanError([Diagnostic(code, message, span, hint)])


@dataclass(frozen=True)
class Model:
    """A model and its alias in the plan. `dtypes`: those of its tensors, or None if the model is not on this
    machine. `adapter`: the path of a LoRA adapter that is merged into the model first, or empty. `floats`: the dtype
    that its quantized weights become before anything else, or empty if it has none. `scaled_inputs`: whether it also
    has scales of activations, which say nothing of floats."""

    path: str
    alias: str
    span: Span | None
    dtypes: Mapping[str, str] | None
    config: Mapping[str, object] = field(default_factory=dict)
    adapter: str = ""
    floats: str = ""
    scaled_inputs: bool = False

    @classmethod
    def find(cls, reference: str, alias: str, span: Span | None) -> Model:
        """The model of a reference, `PATH` or `PATH+ADAPTER`. Its headers are read if the path exists."""
        path, _, adapter = reference.partition("+")
        for what, place in (("model", path), ("adapter", adapter)):
            name, _, revision = place.partition("@")
            if revision and not _is_here(place) and _is_here(name):
                message = f"'{name}' is on this machine, where {what}s have no revisions such as '{revision}'"
                raise refuse(message, span, f"If that revision lies there, name the path alone: `{name}`.", FORM)
            if place and not _is_here(place) and not _ON_HUB.fullmatch(place):
                message = f"there is no {what} at '{place}'"
                raise refuse(message, span, "Paths are relative to the working directory.", FORM)
        if not _is_here(path):
            return cls(path, alias, span, None, adapter=adapter)
        held = {name: info.aval.dtype for name, info in open_source(path).header.tensors.items()}
        config = read_json_file(os.path.join(os.path.expanduser(path), "config.json"))
        if not (codes := quantized_among(held)):
            return cls(path, alias, span, {name: dtype.name for name, dtype in held.items()}, config, adapter)
        scales = {name for name in held if name.rpartition(".")[2] in ACTIVATIONS}
        gone = scales.union(*(each.parts for each in codes))
        floats, made = _floats_of(config), {each.name: each.result for each in codes}
        kept = ((name, dtype) for name, dtype in held.items() if name not in gone)
        dtypes = {made.get(name, name): floats if name in made else dtype.name for name, dtype in kept}
        return cls(path, alias, span, dtypes, config, adapter, floats, bool(scales))

    @property
    def inputs(self) -> Iterator[ImportedInput]:
        """The inputs of the plan that it needs: itself and its adapter."""
        yield ImportedInput(self.alias, self.path, self.fetch)
        if self.adapter:
            fetch = "" if _is_here(self.adapter) else _download(self.adapter)
            yield ImportedInput(f"{self.alias}_lora", self.adapter, fetch)

    @property
    def preparations(self) -> Iterator[Substep]:
        """The steps before it is merged: they make floats of quantized weights, and merge its adapter into it."""
        if self.floats:
            yield Substep("dequantize", {"target": f"{self.alias}::.*", "to": self.floats})
        if self.scaled_inputs:
            yield Substep("delete", {"target": rf"{self.alias}::.*\.({'|'.join(ACTIVATIONS)})"})
        if self.adapter:
            yield Substep("lora_merge", {"base": self.alias, "adapters": f"{self.alias}_lora"})

    def refuse_new_head(self) -> None:
        """Raise PlanError if its adapter may give it a head of its own: a tensor whose name no header holds yet, so
        that slices would lose it."""
        if not self.adapter or any("lm_head" in name or "embed_out" in name for name in self.names):
            return
        if not _is_here(self.adapter):
            hint = f"Download it, then import again: `{_download(self.adapter)}`."
            raise refuse(f"'{self.adapter}' is not on this machine, and slices depend on what it changes", self.span,
                         hint, FORM)  # fmt: skip
        for name in open_source(self.adapter).header.tensors:
            if any(table in name for table in ("embed_tokens", "wte", "lm_head", "embed_in", "embed_out")):
                message = f"'{name}' of '{self.adapter}' changes a table that '{self.path}' uses as its head, too"
                hint = (f"Merge it first, by a plan of its own: inputs `[m::{self.path}, l::{self.adapter}]`, a step "
                        "`lora_merge: {base: m, adapters: l}`, output `{path: merged-lora/, alias: m}`; then name "
                        "`merged-lora/` as the model.")  # fmt: skip
                raise refuse(message, self.span, hint)

    @property
    def fetch(self) -> str:
        """The command that downloads a missing model, whose path is its name on the Hugging Face hub; else empty."""
        return _download(self.path) if self.dtypes is None else ""

    def refuse_missing(self, needed: str) -> None:
        """Raise PlanError if the model is not on this machine. `needed`: what the plan depends on."""
        if self.dtypes is None:
            hint = f"Download it, then import again: `{self.fetch}`."
            message = f"'{self.path}' is not on this machine, and this plan depends on its {needed}"
            raise refuse(message, self.span, hint, FORM)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors. Raises PlanError if the model is missing."""
        self.refuse_missing("names")
        return tuple(self.dtypes or ())

    @property
    def kinds(self) -> frozenset[str]:
        """The dtypes of its tensors."""
        return frozenset((self.dtypes or {}).values())

    @cached_property
    def stack(self) -> Stack:
        """Its layers. Raises PlanError unless there is exactly one stack."""
        match stacks(self.names):
            case [only]:
                return only
            case []:
                raise refuse(f"no tensor of '{self.path}' has the name of a layer's tensor", self.span)
            case several:
                known = ", ".join(f"{s.prefix}.0 to {s.size - 1}" for s in several)
                raise refuse(f"'{self.path}' has several stacks of layers: {known}", self.span)

    def template(self, pattern: str, shift: int) -> str:
        """The template of what a pattern of `selections` matches: layers of this model, numbered by so many more."""
        if "(?P<i>" not in pattern:
            return r"\g<0>"
        return f"{self.stack.prefix}.${{i{f'{shift:+d}' if shift else ''}}}.\\g<rest>"

    @property
    def count_key(self) -> str | None:
        """The key of config.json that holds the number of layers."""
        return next((key for key in _COUNTS if self.config.get(key) == self.stack.size), None)


def _floats_of(config: Mapping[str, object]) -> str:
    """What quantized weights of a model become: the dtype that its config.json names for the others."""
    named = config.get("dtype", config.get("torch_dtype"))
    return str(named) if named in _FLOATS else "bfloat16"


def _is_here(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def _download(path: str) -> str:
    name, _, revision = path.partition("@")
    return f"hf download {name}{f' --revision {revision}' if revision else ''} --local-dir {path}"


def read_json_file(path: str) -> Mapping[str, object]:
    """The mapping in a file; empty if it holds none, or cannot be read."""
    try:
        found = parse_json(read_regular(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
