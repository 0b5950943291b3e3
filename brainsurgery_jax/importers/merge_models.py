"""The models of a merge as far as they are at hand: their tensors by name, their layers, their config.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from brainsurgery_jax.errors import Diagnostic, PlanError, Span
from brainsurgery_jax.importers.mergekit_config import FORM, UNSUPPORTED
from brainsurgery_jax.importers.patterns import Stack, stacks
from brainsurgery_jax.store.detect import open_source

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def refused(message: str, span: Span | None, hint: str = "", code: str = UNSUPPORTED) -> PlanError:
    """The error of one mistake in a configuration."""
    return PlanError([Diagnostic(code, message, span, hint)])


@dataclass(frozen=True)
class Model:
    """A model and its alias in the plan. `dtypes` has those of its tensors, or is None if it is not here."""

    path: str
    alias: str
    span: Span | None
    dtypes: Mapping[str, str] | None
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, path: str, alias: str, span: Span | None) -> Model:
        """The model at a path; its headers are read if there is one."""
        folder = os.path.expanduser(path)
        if os.path.exists(folder):
            dtypes = {name: info.aval.dtype.name for name, info in open_source(path).header.tensors.items()}
            return cls(path, alias, span, dtypes, _read_json(os.path.join(folder, "config.json")))
        if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", path):
            raise refused(f"there is no model at '{path}'", span, "Paths are relative to the working directory.", FORM)
        return cls(path, alias, span, None)

    @property
    def fetch(self) -> str:
        """How to get a model that is not here: its path is then a name on the Hugging Face hub."""
        return f"hf download {self.path} --local-dir {self.path}" if self.dtypes is None else ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors. Raises PlanError if it is not here."""
        if self.dtypes is None:
            hint = f"Fetch it, then import again: `{self.fetch}`."
            raise refused(f"'{self.path}' is not here, and this plan depends on its names", self.span, hint, FORM)
        return tuple(self.dtypes)

    @property
    def kinds(self) -> frozenset[str]:
        """The dtypes of its tensors."""
        return frozenset((self.dtypes or {}).values())

    @cached_property
    def stack(self) -> Stack:
        """Its layers. Raises PlanError if there is not one stack of them."""
        match stacks(self.names):
            case [only]:
                return only
            case []:
                raise refused(f"no tensor of '{self.path}' is named like that of a layer", self.span)
            case several:
                known = ", ".join(f"{s.prefix}.0 to {s.size - 1}" for s in several)
                raise refused(f"'{self.path}' has several stacks of layers: {known}", self.span)

    @property
    def count_key(self) -> str | None:
        """The key of config.json that holds the number of layers."""
        return next((key for key in _COUNTS if self.config.get(key) == self.stack.size), None)


def _read_json(path: str) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
