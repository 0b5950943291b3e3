"""The models of a merge, if they are on this machine: tensors by name, layers, config.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from brainsurgery_jax.errors import Diagnostic, PlanError, Span
from brainsurgery_jax.importers.mergekit_config import FORM, UNSUPPORTED
from brainsurgery_jax.importers.patterns import Stack, stacks
from brainsurgery_jax.store.detect import open_source

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def refuse(message: str, span: Span | None, hint: str = "", code: str = UNSUPPORTED) -> PlanError:
    """The error of one mistake in a configuration."""
    return PlanError([Diagnostic(code, message, span, hint)])


@dataclass(frozen=True)
class Model:
    """A model and its alias in the plan. `dtypes`: those of its tensors, or None if the model is not on this
    machine."""

    path: str
    alias: str
    span: Span | None
    dtypes: Mapping[str, str] | None
    config: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def find(cls, path: str, alias: str, span: Span | None) -> Model:
        """The model at a path. Its headers are read if the path exists."""
        folder = os.path.expanduser(path)
        if os.path.exists(folder):
            dtypes = {name: info.aval.dtype.name for name, info in open_source(path).header.tensors.items()}
            return cls(path, alias, span, dtypes, _read_json(os.path.join(folder, "config.json")))
        if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", path):
            raise refuse(f"there is no model at '{path}'", span, "Paths are relative to the working directory.", FORM)
        return cls(path, alias, span, None)

    @property
    def fetch(self) -> str:
        """The command that downloads a missing model, whose path is its name on the Hugging Face hub; else empty."""
        return f"hf download {self.path} --local-dir {self.path}" if self.dtypes is None else ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors. Raises PlanError if the model is missing."""
        if self.dtypes is None:
            hint = f"Download it, then import again: `{self.fetch}`."
            raise refuse(
                f"'{self.path}' is not on this machine, and this plan depends on its names", self.span, hint, FORM
            )
        return tuple(self.dtypes)

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

    @property
    def count_key(self) -> str | None:
        """The key of config.json that holds the number of layers."""
        return next((key for key in _COUNTS if self.config.get(key) == self.stack.size), None)


def _read_json(path: str) -> Mapping[str, object]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
