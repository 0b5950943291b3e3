"""`ops` and `schema`: what the registry knows, as a table, as a page, as JSON."""

from __future__ import annotations

import inspect
import json as jsonlib
from collections.abc import Iterator, Mapping
from typing import Any

import typer

import brainsurgery_jax.ops  # noqa: F401  (fills the registry)
from brainsurgery_jax.cli import show
from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.op import ASSERTS, OPS, ControlOp, Field, Op, SinkOp, TensorOp, element_role
from brainsurgery_jax.plan.schema import field_schema, plan_schema


def schema() -> None:
    """Print the JSON Schema of plans."""
    show.result(jsonlib.dumps(plan_schema(), indent=2))


def ops(name: str | None, *, json: bool) -> None:
    """Print the table of all ops, or the page of one."""
    if name is None:
        everything = {"schema_version": 1, "ops": [_as_json(o) for o in OPS.values()],
                      "asserts": [_as_json(o) for o in ASSERTS.values()]}  # fmt: skip
        show.result(jsonlib.dumps(everything, indent=2) if json else "\n".join(_overview()))
        return
    op = _named(name)
    if json:
        show.result(jsonlib.dumps({"schema_version": 1, **_as_json(op)}, indent=2))
    else:
        show.result("\n".join(_page(op)))


def _named(name: str) -> Op:
    if name in OPS:
        return OPS[name]
    if (operator := name.removeprefix("assert.")) in ASSERTS:
        return ASSERTS[operator]
    known = [*OPS, *ASSERTS, *(f"assert.{a}" for a in ASSERTS)]
    raise typer.BadParameter(f"there is no op '{name}'.{did_you_mean(name, known)}", param_hint="NAME")


def _family(op: Op) -> str:
    """The module that an op is written in: one family, one module."""
    match op:
        case TensorOp(kernel=k):
            return k.fn.__module__.rpartition(".")[2]
        case ControlOp(fn=fn) | SinkOp(fn=fn):
            return fn.__module__.rpartition(".")[2]
    raise AssertionError(op)


def _overview() -> list[str]:
    families: dict[str, list[Op]] = {}
    for op in OPS.values():
        families.setdefault(_family(op), []).append(op)
    lines = []
    for family in sorted(families):
        lines += [family, *_table({o.name: o for o in families[family]}), ""]
    return [*lines, "operators of assert", *_table(ASSERTS), "", "brainsurgery-jax ops NAME tells all about one."]


def _table(ops: Mapping[str, Op]) -> Iterator[str]:
    width = max(map(len, ops))
    for name, op in sorted(ops.items()):
        yield from show.hanging(f"  {name.ljust(width)}  ", op.doc.splitlines()[0])


def _page(op: Op) -> list[str]:
    title = f"assert.{op.name}" if ASSERTS.get(op.name) is op else op.name
    fields = op.fields()
    lines = [title, "", *op.doc.splitlines(), ""]
    if fields:
        width = max(len(f.key) for f in fields)
        lines += ["keys", *(line for f in fields for line in show.hanging(f"  {f.key.ljust(width)}  ", _field(f)))]
    if op.shorthand or op.bare:
        lines += ["", f"`{op.name}: VALUE` stands for the key '{op.shorthand or op.bare}'."]
    if op is OPS.get("assert"):
        lines += ["", "operators", *_table(ASSERTS)]
    return lines


def _field(field: Field) -> str:
    if field.default is inspect.Parameter.empty:
        return f"{_kind(field)}; required"
    return f"{_kind(field)}; " + ("optional" if field.default is None else f"default {jsonlib.dumps(field.default)}")


_REFERENCES = {"pattern": "tensors, by pattern", "template": "name made from each match", "name": "one literal name"}


def _kind(field: Field) -> str:
    role = field.role
    if (element := element_role(field.annotation)) is not None and element.kind in _REFERENCES:
        return f"list of: {_REFERENCES[element.kind]}{' (a slice may follow)' if element.slices else ''}"
    if role is not None and role.kind in _REFERENCES:
        return _REFERENCES[role.kind] + (" (a slice may follow)" if role.slices else "")
    if role is not None:
        return {"assert": "one operator of assert", "asserts": "list of operators of assert"}.get(role.kind, role.kind)
    return _words(field_schema(field))


_TYPES = {"boolean": "true or false", "string": "text", "object": "mapping", "null": ""}


def _words(schema: Mapping[str, Any]) -> str:
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
    kind = str(schema.get("type", "any value"))
    return _TYPES.get(kind, kind) + (told if kind != "null" else "")


def _as_json(op: Op) -> dict[str, Any]:
    keys = [
        {
            "key": f.key,
            "required": f.default is inspect.Parameter.empty,
            "default": None if f.default is inspect.Parameter.empty else f.default,
            "kind": _kind(f),
            "slices": bool((role := f.role or element_role(f.annotation)) and role.slices),
        }
        for f in op.fields()
    ]
    return {"name": op.name, "family": _family(op), "doc": op.doc, "keys": keys}
