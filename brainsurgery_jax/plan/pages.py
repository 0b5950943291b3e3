"""What the registry knows of an op, as text: its first line in a table, its page, its keys in words."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping

from brainsurgery_jax import plugins
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.op import ASSERTS, OPS, ControlOp, Field, Op, SinkOp, TensorOp, element_role
from brainsurgery_jax.plan.parse import nearest_op, ops_hint
from brainsurgery_jax.plan.schema import Schema, field_schema
from brainsurgery_jax.plan.searching import search_names

Fold = Callable[[str, str], list[str]]
"""(head, text) -> lines: how a text that follows a head is folded to the width there is."""


def unfolded(head: str, text: str) -> list[str]:
    """One line, however long."""
    return [f"{head}{text}".rstrip()]


def find(name: str) -> Op:
    """The op, or the operator of assert (`assert.NAME`), of that name. Raises Refusal."""
    found = plugins.find(OPS, name) or plugins.find(ASSERTS, name.removeprefix("assert."))
    if found is not None:
        return found
    known = [*OPS, *ASSERTS, *(f"assert.{a}" for a in ASSERTS)]
    hint = "\n".join([ops_hint(), *plugins.left_out()])
    raise Refusal("op-unknown", f"there is no op '{name}'.{nearest_op(name, known)}", hint=hint)


def family(op: Op) -> str:
    """The module that an op is written in: one family, one module."""
    match op:
        case TensorOp(maker=maker):
            return maker.fn.__module__.rpartition(".")[2]
        case ControlOp(fn=fn) | SinkOp(fn=fn):
            return fn.__module__.rpartition(".")[2]
    raise AssertionError(op)


def overview(fold: Fold = unfolded) -> list[str]:
    """All ops by family, with the first line of each."""
    plugins.look_up()
    families: dict[str, list[Op]] = {}
    for op in OPS.values():
        families.setdefault(family(op), []).append(op)
    lines = []
    for name in sorted(families):
        lines += [name, *_table({o.name: o for o in families[name]}, fold), ""]
    return [*lines, "operators of assert", *_table(ASSERTS, fold), "", "brainsurgery-jax ops NAME describes one."]


def search(word: str) -> dict[str, Op]:
    """The ops, and the operators of assert as `assert.NAME`, that a search finds."""
    plugins.look_up()
    known = {**OPS, **{f"assert.{name}": op for name, op in ASSERTS.items()}}
    return {name: known[name] for name in search_names(word, {name: op.doc for name, op in known.items()})}


def search_table(found: Mapping[str, Op], fold: Fold = unfolded) -> list[str]:
    """The ops that a search found, in its order, with the first line of each."""
    width = max(map(len, found))
    return [line for name, op in found.items() for line in fold(f"{name.ljust(width)}  ", op.doc.splitlines()[0])]


def _table(ops: Mapping[str, Op], fold: Fold) -> Iterator[str]:
    width = max(map(len, ops))
    for name, op in sorted(ops.items()):
        yield from fold(f"  {name.ljust(width)}  ", op.doc.splitlines()[0])


def page(op: Op, fold: Fold = unfolded) -> list[str]:
    """Describe one op."""
    title = f"assert.{op.name}" if ASSERTS.get(op.name) is op else op.name
    fields = keys(op)
    lines = [title, "", *op.doc.splitlines(), ""]
    if fields:
        width = max(len(f.key) for f in fields)
        lines += ["keys", *(line for f in fields for line in fold(f"  {f.key.ljust(width)}  ", _field(f)))]
    if op.shorthand or op.bare:
        lines += ["", f"`{op.name}: VALUE` stands for the key '{op.shorthand or op.bare}'."]
    if op is OPS.get("assert"):
        lines += ["", "operators", *_table(ASSERTS, fold)]
    return lines


def keys(op: Op) -> tuple[Field, ...]:
    """The keys that a plan can give: of a step, or of an operator of assert."""
    return op.fields() if ASSERTS.get(op.name) is op else op.step_fields()


def _field(field: Field) -> str:
    if field.default is inspect.Parameter.empty:
        return f"{kind(field)}; required"
    return f"{kind(field)}; " + ("optional" if field.default in (None, ()) else f"default {json.dumps(field.default)}")


_REFERENCES = {"pattern": "tensors, by pattern", "template": "name created from each match", "name": "one literal name"}


_KINDS = {
    "assert": "one operator of assert", "asserts": "list of operators of assert",
    "operands": "tensors by name: {NAME: pattern, NAME: name created from each match, ...}", "steps": "list of steps",
    "plan": "a plan, or a list of steps", "plan-text": "the YAML text of a plan", "plan-file": "path of a plan file",
    "recipe": "a recipe and its variables: {NAME: {VARIABLE: value, ...}}",
}  # fmt: skip


def kind(field: Field) -> str:
    """What a key takes, in words."""
    role = field.role
    if role is not None and role.plain is not None:
        return f"{kind(field.without_over)}; with `over` {kind(field._replace(role=role._replace(plain=None)))}"
    if (element := element_role(field.annotation)) is not None and element.kind in _REFERENCES:
        return f"list of: {_REFERENCES[element.kind]}{' (a slice may follow)' if element.slices else ''}"
    if role is not None and role.takes_tensor:
        return "number, or name created from each match (a slice may follow)"
    if role is not None and role.kind in _REFERENCES:
        return _REFERENCES[role.kind] + (" (a slice may follow)" if role.slices else "")
    if role is not None:
        return _KINDS.get(role.kind) or role.kind
    return _words(field_schema(field))


_TYPES = {"boolean": "true or false", "string": "text", "object": "mapping", "null": ""}


def _words(schema: Schema) -> str:
    """A value's type in words, as its schema tells it."""
    told = f" ({schema['description']})" if "description" in schema and "$ref" not in schema else ""
    if "$ref" in schema:
        return ""
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")]))) + told
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(w for s in schema["anyOf"] if (w := _words(s)))) + told
    if schema.get("type") == "array":
        return f"list of {_words(schema.get('items', {})) or 'values'}" + told
    if set(schema.get("properties", ())) and schema.get("type") == "object":
        return "{" + ", ".join(f"{k}: {_words(v)}" for k, v in schema["properties"].items()) + "}" + told
    types = schema.get("type", "any value")
    kinds = [_TYPES.get(t, t) for t in ([types] if isinstance(types, str) else types)]
    return " or ".join(kinds) + (told if types != "null" else "")


def text_of(name: str | None, operator: str | None) -> str:
    """The text of `help`."""
    if name is None:
        return "\n".join(overview())
    return "\n".join(page(find(name if operator is None else f"{name}.{operator}")))
