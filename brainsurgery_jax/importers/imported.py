"""A plan that was made of a file of another tool: data that is checked as a plan's, and printed for who goes on with
it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import yaml

import brainsurgery_jax.ops  # noqa: F401  (says which ops there are, by which plans are checked)
from brainsurgery_jax.errors import PlanError, Span
from brainsurgery_jax.plan.build import node_of
from brainsurgery_jax.plan.parse import parse
from brainsurgery_jax.plan.scalars import read_scalar
from brainsurgery_jax.plan.source import Map
from brainsurgery_jax.protocol import Substep
from brainsurgery_jax.wording import quoted

_WIDTH = 110


class StepComment(NamedTuple):
    """A comment between steps."""

    text: str


class ImportedInput(NamedTuple):
    """An input: its alias, its path, and the command that downloads it (empty if it is there)."""

    alias: str
    path: str
    fetch: str


@dataclass(frozen=True)
class Imported:
    """Inputs, steps and the output. `notes` are the comments above them."""

    file: str
    notes: tuple[str, ...]
    inputs: tuple[ImportedInput, ...]
    steps: tuple[Substep | StepComment, ...]
    output: Mapping[str, object]

    def data(self) -> dict[str, Any]:
        """The plan as plain data, without comments."""
        steps = [{step.op: step.payload} for step in self.steps if isinstance(step, Substep)]
        inputs = [f"{origin.alias}::{origin.path}" for origin in self.inputs]
        return {"inputs": inputs, "transforms": steps, "output": self.output}

    def check(self) -> None:
        """Raise PlanError for what is wrong with the plan, at the file that it was made of."""
        root = node_of(self.data(), Span(self.file))
        assert isinstance(root, Map)
        _, problems = parse(root)
        if errors := [problem for problem in problems if problem.severity == "error"]:
            raise PlanError(errors)

    def text(self) -> str:
        """The plan as YAML with comments."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from (f"# {note}" for note in self.notes)
        yield "inputs:"
        for alias, path, fetch in self.inputs:
            yield f"  - {flow(f'{alias}::{path}')}" + (f"  # {fetch}" if fetch else "")
        yield "transforms:" if self.steps else "transforms: []"
        for step in self.steps:
            yield f"  # {step.text}" if isinstance(step, StepComment) else _step(step)
        yield f"output: {flow(self.output)}"


def _step(step: Substep) -> str:
    line = f"  - {step.op}: {flow(step.payload)}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"  - {step.op}:", *(f"      {key}: {flow(value)}" for key, value in step.payload.items())])


def flow(value: object) -> str:
    """A value in YAML's flow style, with quotes only where needed."""
    match value:
        case dict():
            return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(flow, value)) + "]"
        case str() if not value.isprintable():
            return yaml.safe_dump(value, default_style='"', width=inf, allow_unicode=True).rstrip("\n")
        case str():
            plain = re.fullmatch(r"[A-Za-z./~][\w./~:-]*", value) and not value.endswith(":")
            return value if plain and isinstance(read_scalar(value), str) else quoted(value)
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case float() if value == int(value):
            return str(int(value))
    return repr(value)
