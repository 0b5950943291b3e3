"""Which model an op on structure is about, and the lists of numbers that these ops share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt

from brainsurgery_jax.keys import KeyGroup, Text
from brainsurgery_jax.ops._chosen import UnitChoice, choose
from brainsurgery_jax.protocol import ModelAsked, View

NUMBERS = {"type": "array", "items": {"type": "integer"}}
"""The schema of a list of numbers."""

Count = Annotated[StrictInt, Field(gt=0)]


@dataclass(frozen=True)
class ModelKeys(KeyGroup):
    """Which model is meant."""

    alias: Annotated[Text, Field(description="the model, if there are several")] | None = None
    part: Annotated[Text, Field(description="of a model of several: the key of its part of config.json")] | None = None
    family: (
        Annotated[
            dict[str, Any],
            Field(description="a model of no known family: names, shapes and roles, as docs/structure.md says"),
        ]
        | None
    ) = None

    @property
    def asked(self) -> ModelAsked:
        """The same, for what carries the step out."""
        return ModelAsked(self.alias, self.part, self.family)


@dataclass(frozen=True)
class ProvenKeys(ModelKeys):
    """Which model is meant, and whether it is to be shown that it computes what it did."""

    prove: Annotated[StrictBool, Field(description="assert that no logit of 32 tokens changes by more than 1e-3")] = (
        False
    )


def numbers_of(view: View, given: object, key: str) -> Any:
    """A list as it stands, or the numbers of a choice by data."""
    return choose(view, given, key, drops=key == "drop") if isinstance(given, UnitChoice) else given
