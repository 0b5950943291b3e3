"""A plan as data: what the user wrote, checked and typed, with the place of every part."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from brainsurgery_jax.errors import Diagnostic, Span
from brainsurgery_jax.op import Assertion, ControlOp, Op
from brainsurgery_jax.plan.source import Node, public

Location = tuple[str | int, ...]


class Input(NamedTuple):
    """A checkpoint to read, under an alias. `path` empty: it could not be understood. `fingerprint`: that of its
    content, if the plan says it."""

    alias: str
    path: str
    span: Span | None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: an op with its checked parameters. `op` is None where the step could not be understood.

    `lenient`: where nothing matches, or a tensor that it needs is missing, it does nothing (`if_missing: skip`).
    `unmatched`: what it does with tensors that stand on one side alone, if the plan says so (see `op.UNMATCHED`).
    `node`: what it was read from, to read it again with another default alias.
    """

    op: Op | None
    params: Mapping[str, Any]
    span: Span | None
    spans: Mapping[Location, Span] = field(default_factory=dict)
    text: object = None
    lenient: bool = False
    unmatched: Literal["error", "keep", "drop"] | None = None
    node: Node | None = field(default=None, compare=False, repr=False)

    @property
    def summary(self) -> Any:
        """The step as data, with references to the environment in place of what they stand for."""
        said = None if self.node is None else public(self.node)
        return (
            {key: {} if value is None else value for key, value in said.items()}
            if isinstance(said, dict)
            else self.text
        )

    @property
    def operator(self) -> Op | None:
        """The operator of an assert; None for all other steps."""
        return next((value.op for value in self.params.values() if isinstance(value, Assertion)), None)

    @property
    def label(self) -> str:
        """The name of the op, for an assert with its operator; empty for a step that could not be understood."""
        return ".".join(op.name for op in (self.op, self.operator) if op is not None)

    @property
    def checkpoint(self) -> str | None:
        """The path of the checkpoint that it reads or writes."""
        path = self.params.get(self.op.checkpoint) if isinstance(self.op, ControlOp) else None
        return path if isinstance(path, str) else None

    def place(self, *key: str | int) -> Span | None:
        """Return the place of a key of the payload, or of the step itself."""
        return self.spans.get(key, self.span)


@dataclass(frozen=True, slots=True)
class Output:
    """A checkpoint to write. `alias` None: inferred from what the steps wrote. `config`: changes to its config.json,
    mappings key by key. `options`: for its format alone. `asserts`: what must hold of the alias when it is written."""

    path: str
    alias: str | None = None
    format: str | None = None
    shard: str | None = None
    overwrite: bool = False
    sidecars: bool = True
    config: Mapping[str, object] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    asserts: Sequence[object] = ()
    span: Span | None = None
    spans: Mapping[Location, Span] = field(default_factory=dict)

    def plain(self) -> object:
        """Return the output as a plan writes it: its path, and all settings that are not the default."""
        usual = Output(self.path)
        keys = (f.name for f in fields(self) if f.name not in _NO_SETTINGS)
        changed = {key: getattr(self, key) for key in keys if getattr(self, key) != getattr(usual, key)}
        return {"path": self.path, **changed} if changed else self.path


_NO_SETTINGS = frozenset({"path", "span", "spans"})


@dataclass(frozen=True, slots=True)
class PlanData:
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

    @property
    def written(self) -> Hashable:
        """Steps and outputs as plain data, equal for the same data alone."""
        return _freeze([*(step.text for step in self.steps), *(output.plain() for output in self.outputs)])


def _freeze(data: object) -> Hashable:
    """Plain data as something with a hash. Numbers as text, since `0.0` equals `-0.0`, and `1` equals `True`."""
    match data:
        case Mapping():
            return frozenset((key, _freeze(value)) for key, value in data.items())
        case list() | tuple():
            return tuple(map(_freeze, data))
    return repr(data)


def in_order(plan: PlanData, found: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Diagnostics in the order of the plan: by line where all stand in one file, else by the step they belong to."""
    listed = list(found)
    if len({d.span.file if d.span.line else "" for d in listed if d.span}) <= 1:
        return tuple(sorted(listed, key=lambda d: (d.span.line, d.span.col) if d.span else (-1, 0)))
    steps = {s: i for i, step in enumerate(plan.steps) for s in (step.span, *step.spans.values())}
    outputs = {s: len(plan.steps) for out in plan.outputs for s in (out.span, *out.spans.values())}
    own = {s.file for s in (*steps, *outputs) if s}  # what stands in no file of the plan stands in a plan within it
    return tuple(
        sorted(
            listed,
            key=lambda d: (steps | outputs).get(d.span, -1 if not d.span or d.span.file in own else len(plan.steps)),
        )
    )
