"""A plan as data: what the user wrote, checked and typed, with the place of every part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from brainsurgery_jax.errors import Span
from brainsurgery_jax.op import Op

Location = tuple[str | int, ...]


class Input(NamedTuple):
    """A checkpoint to read, under an alias. `path` empty: it could not be understood."""

    alias: str
    path: str
    span: Span | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step: an op with its checked parameters. `op` is None where the step could not be understood."""

    op: Op | None
    params: Mapping[str, Any]
    span: Span | None
    spans: Mapping[Location, Span] = field(default_factory=dict)
    text: Any = None

    def place(self, *key: str | int) -> Span | None:
        """Where a key of the payload stands, or the step itself."""
        return self.spans.get(key, self.span)


@dataclass(frozen=True, slots=True)
class Output:
    """A checkpoint to write. `alias` None: inferred from what the steps wrote."""

    path: str
    alias: str | None = None
    format: str | None = None
    shard: str | None = None
    overwrite: bool = False
    sidecars: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    span: Span | None = None
    spans: Mapping[Location, Span] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Inputs, steps and outputs, in the order of the file. The default alias is that of the only input.

    `doubtful`: an input without a usable alias was left out, so there may be aliases that are not known.
    """

    inputs: tuple[Input, ...] = ()
    steps: tuple[Step, ...] = ()
    outputs: tuple[Output, ...] = ()
    seed: int = 0
    doubtful: bool = False

    @property
    def default_alias(self) -> str | None:
        return self.inputs[0].alias if len(self.inputs) == 1 else None
