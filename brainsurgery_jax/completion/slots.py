"""What is allowed at a place in a step, from the registry alone: keys of which op, a value of which kind."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from brainsurgery_jax.completion.cursor import Cursor, Path
from brainsurgery_jax.op import ASSERTS, OPS, Field, Op, Role, element_role
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.schema import Schema, field_schema
from brainsurgery_jax.select import KINDS, Ref

REFERENCES = ("pattern", "template", "name")


@dataclass(frozen=True, slots=True)
class Steps:
    """The name of an op."""


@dataclass(frozen=True, slots=True)
class Keys:
    """A mapping with the keys of an op; `beside`: the path to it."""

    op: Op
    path: Path


@dataclass(frozen=True, slots=True)
class ValueSlot:
    """The value of a key; `beside`: the path to the mapping that the key is in."""

    field: Field
    op: Op
    beside: Path


@dataclass(frozen=True, slots=True)
class Token:
    """A segment of a structured reference, after those of the list at `before`."""

    value: ValueSlot
    before: Path


@dataclass(frozen=True, slots=True)
class PlainSlot:
    """A value that a JSON Schema describes."""

    schema: Schema
    key: str


Slot = Steps | Keys | ValueSlot | Token | PlainSlot


def slot_of(place: Cursor) -> Slot | None:
    """Return what is allowed at a path; None if unknown."""
    slot: Slot | None = Steps()
    for depth, part in enumerate(place.path):
        path = place.path[: depth + 1]
        slot = None if slot is None else _below(slot, part, path, place)
    return slot


def payload(op: Op, path: Path) -> Slot:
    """Return what is allowed after the name of an op."""
    if op.bare:
        return ValueSlot(next(f for f in op.fields() if f.key == op.bare), op, path[:-1])
    return Keys(op, path)


def keys(op: Op) -> tuple[Field, ...]:
    """The keys of an op, required ones first."""
    return tuple(sorted(pages.keys(op), key=lambda f: not is_required(f)))


def is_required(field: Field) -> bool:
    """Whether a step without this key is refused."""
    return field.default is inspect.Parameter.empty


def _below(slot: Slot, part: str | int, path: Path, place: Cursor) -> Slot | None:
    match slot:
        case Steps():
            if isinstance(part, int):
                return slot
            return payload(OPS[part], path) if part in OPS else None
        case Keys(op, at):
            field = next((f for f in pages.keys(op) if f.key == part), None)
            if field is None:
                return None
            given = place.value(at)
            over = isinstance(given, dict) and "over" in given
            return ValueSlot(field if over else field.without_over, op, at)
        case ValueSlot():
            return _inside(slot, part, path)
        case PlainSlot(schema, key):
            found = next(_properties(schema, part), None)
            return None if found is None else PlainSlot(found, part if isinstance(part, str) else key)
    return None


def _inside(value: ValueSlot, part: str | int, path: Path) -> Slot | None:
    """Return what is allowed below a value: an operator of assert, an item of a list, a part of a reference."""
    field, role = value.field, value.field.role
    if (element := element_role(field.annotation)) is not None and isinstance(part, int):
        return ValueSlot(field._replace(role=element, annotation=Ref), value.op, value.beside)
    match role.kind if role else "":
        case "assert":
            return payload(ASSERTS[part], path) if isinstance(part, str) and part in ASSERTS else None
        case "asserts" if isinstance(part, int):
            return ValueSlot(field._replace(role=Role("assert")), value.op, value.beside)
        case "steps" if isinstance(part, int):
            return Steps()
        case "plan" if part == "transforms" or isinstance(part, int):
            return (
                ValueSlot(field._replace(role=Role("steps")), value.op, value.beside)
                if part == "transforms"
                else Steps()
            )
        case "operands" if isinstance(part, str):
            return ValueSlot(field._replace(role=Role("pattern", slices=True)), value.op, value.beside)
        case "pattern" | "template" | "name" if isinstance(part, int):
            return Token(value, path[:-1])
        case "pattern" | "template" | "name":
            return _part_of_reference(value, part)
        case "":
            found = next(_properties(field_schema(field), part), None)
            return None if found is None else PlainSlot(found, part if isinstance(part, str) else field.key)
    return None


def parts(role: Role) -> Iterator[str]:
    """The keys of a reference that is written as a mapping."""
    yield from ("alias", "name")
    if role.slices:
        yield "slice"
    if role.is_pattern or role.read:
        yield "kind"


def _part_of_reference(value: ValueSlot, part: str | int) -> Slot | None:
    match part:
        case "name":
            return value
        case "alias":
            return PlainSlot({"description": "an alias"}, "alias")
        case "kind":
            return PlainSlot({"enum": list(KINDS)}, "kind")
    return None


def _properties(schema: Schema, part: str | int) -> Iterator[Schema]:
    """The schemas of what is below a key or an index."""
    below = schema.get("items") if isinstance(part, int) else schema.get("properties", {}).get(part)
    if isinstance(below, dict):
        yield below
    for inner in schema.get("anyOf", ()):
        yield from _properties(inner, part)


def words(schema: Schema) -> Iterator[str]:
    """The values that a schema spells out, as a plan writes them."""
    if "const" in schema:
        yield _word(schema["const"])
    for value in schema.get("enum", ()):
        if value is not None:
            yield _word(value)
    if schema.get("type") == "boolean":
        yield from ("true", "false")
    for inner in schema.get("anyOf", ()):
        yield from words(inner)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def properties(schema: Schema) -> Iterator[tuple[str, str]]:
    """Yield the keys of a schema with their descriptions."""
    for key, inner in schema.get("properties", {}).items():
        yield key, str(inner.get("description", ""))
    for inner in schema.get("anyOf", ()):
        yield from properties(inner)


def descriptions(schema: Schema) -> Iterator[str]:
    """Return the description of a schema."""
    if "description" in schema:
        yield str(schema["description"])
    for inner in schema.get("anyOf", ()):
        yield from descriptions(inner)
