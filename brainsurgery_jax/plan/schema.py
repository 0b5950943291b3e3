"""The JSON Schema of plans, made from the registry of ops: what an editor completes and underlines while one types."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from brainsurgery_jax.dtypes import DTYPES
from brainsurgery_jax.op import ASSERTS, OPS, Field, Op, Role, element_role, fewest
from brainsurgery_jax.plan.declarations import TYPES
from brainsurgery_jax.plan.endpoints import INPUT_KEYS, OUTPUT_KEYS
from brainsurgery_jax.plan.parse import KEYS
from brainsurgery_jax.plan.payload import adapter
from brainsurgery_jax.select import KINDS
from brainsurgery_jax.store.formats import NAMES

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE: Schema = {"$ref": "#/$defs/variable"}


def plan_schema() -> Schema:
    """The schema of a whole plan (JSON Schema, draft 2020-12)."""
    return {
        "$schema": DRAFT,
        "title": "brainsurgery-jax plan",
        "description": "A change to neural-network checkpoints: inputs, steps, output.",
        "type": "object",
        "properties": {key: _TOP.get(key, {}) for key in KEYS},
        "additionalProperties": False,
        "not": {"required": ["output", "outputs"]},
        "$defs": _definitions(),
    }


def _definitions() -> Schema:
    bare = sorted(op.name for op in OPS.values() if not _keys_required(op))
    return {
        "variable": {
            "type": "string",
            "pattern": r"\$\{vars\.[A-Za-z_][A-Za-z0-9_]*\}",
            "description": "A variable of the top-level `vars`.",
        },
        "reference": _reference(sliced=True, chosen=True),
        "whole": _reference(sliced=False, chosen=True),
        "made": _reference(sliced=False, chosen=False),
        "made-part": _reference(sliced=True, chosen=False),
        "name": {"type": ["string", "object"], "description": "One tensor's name, taken literally: `alias::name`."},
        "number": {"type": ["number", "string"]},
        "dtype": {"anyOf": [{"enum": dtype_words()}, _VARIABLE], "description": "An element type."},
        "input": _input(),
        "output": _output(),
        "step": {
            "description": "One step: an op and its keys.",
            "oneOf": [*({"$ref": f"#/$defs/op.{name}"} for name in OPS), {"enum": bare}],
        },
        "assert": {
            "description": "One operator and its keys.",
            "oneOf": [{"$ref": f"#/$defs/assert.{name}"} for name in ASSERTS],
        },
        **{f"op.{name}": _single(op, op.step_fields()) for name, op in OPS.items()},
        **{f"assert.{name}": _single(op, op.fields()) for name, op in ASSERTS.items()},
    }


def _or_list(item: Schema) -> Schema:
    return {"anyOf": [{"type": "array", "items": item}, item, {"type": "null"}]}


_DECLARATION: Schema = {
    "type": "object",
    "properties": {
        "type": {"enum": list(TYPES), "description": "What a value must be."},
        "default": {"type": ["string", "number", "boolean"], "description": "The value, unless one is given."},
        "help": {"type": "string", "description": "What it is for."},
    },
    "additionalProperties": False,
}

_TOP: Mapping[str, Schema] = {
    "inputs": {
        "type": ["array", "null"],
        "items": {"anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/input"}]},
        "description": "Checkpoints to read, each `alias::path` or `alias::path::part`; a single one needs no alias.",
    },
    "transforms": {**_or_list({"$ref": "#/$defs/step"}), "description": "The steps, in order."},
    "output": {"anyOf": [{"$ref": "#/$defs/output"}, {"type": "null"}], "description": "The checkpoint to write."},
    "outputs": {**_or_list({"$ref": "#/$defs/output"}), "description": "Several checkpoints to write."},
    "seed": {
        "anyOf": [{"type": ["integer", "null"]}, _VARIABLE],
        "description": "Seed of the steps that have none of their own.",
    },
    "vars": {
        "type": ["object", "null"],
        "additionalProperties": {"anyOf": [{"type": ["string", "number", "boolean", "null"]}, _DECLARATION]},
        "description": "Values for `${vars.NAME}` anywhere in the plan, or declarations: `<integer> 16`.",
    },
    "version": {"enum": [1, None], "description": "The version of the plan language."},
}

_OUTPUT: Mapping[str, Schema] = {
    "path": {"type": "string", "minLength": 1, "description": "A file, whose suffix selects the format, or a folder."},
    "alias": {"type": ["string", "null"], "description": "The alias to write; optional if only one is possible."},
    "format": {
        "anyOf": [{"enum": [*NAMES, None]}, _VARIABLE],
        "description": "The format, if the path does not determine it.",
    },
    "shard": {"type": ["string", "null"], "description": "Largest file of a folder, such as 5GB, or none."},
    "overwrite": {"anyOf": [{"type": "boolean"}, _VARIABLE], "description": "Replace an existing checkpoint."},
    "sidecars": {"anyOf": [{"type": "boolean"}, _VARIABLE], "description": "Copy config and tokenizer files."},
    "config": {
        "type": ["object", "null"],
        "description": "Changes to config.json: values, merged key by key; or a mapping with only the keys `from` "
        "(a part to extract), `remove` (keys) and `patch` (values).",
    },
    "metadata": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": "Text for the header of the file.",
    },
    "options": {"type": ["object", "null"], "description": "Options of the format."},
    "asserts": {
        "type": "array",
        "items": {"$ref": "#/$defs/assert"},
        "description": "Asserts on the alias that is written.",
    },
}


def _input() -> Schema:
    text = {"type": "string", "minLength": 1}
    keys = {
        "alias": text | {"description": "The alias in references."},
        "path": text | {"description": "A file or a folder."},
        "part": text | {"description": "The entry to read, with everything in it; `.` is the whole checkpoint."},
        "leave_out": {"type": "array", "items": text, "description": "Entries to skip."},
        "fingerprint": {"type": "string", "description": "The fingerprint of its content; empty: it is not checked."},
    }
    known = {key: keys[key] for key in INPUT_KEYS}
    return {"type": "object", "properties": known, "required": ["path"], "additionalProperties": False}


def _output() -> Schema:
    keys = {key: _OUTPUT.get(key, {}) for key in OUTPUT_KEYS}
    mapping = {"type": "object", "properties": keys, "required": ["path"], "additionalProperties": False}
    return {"anyOf": [{"type": "string", "minLength": 1}, mapping]}


def _reference(*, sliced: bool, chosen: bool) -> Schema:
    text: Schema = {"type": "string", "minLength": 1}
    name = {"anyOf": [text, {"type": "array", "items": text, "minItems": 1}]}
    kinds: Schema = {"enum": list(KINDS), "description": "Only tensors whose dtype is of this kind."}
    keys: Schema = {"alias": {"type": "string"}, "name": name}
    keys |= ({"slice": {"type": "string"}} if sliced else {}) | (
        {"kind": {"anyOf": [kinds, _VARIABLE]}} if chosen else {}
    )
    return {
        "anyOf": [
            text,
            {"type": "array", "items": text, "minItems": 1},
            {"type": "object", "properties": keys, "required": ["name"], "additionalProperties": False},
        ],
        "description": "Tensors: `alias::name`" + (", or `alias::name::[slice]`." if sliced else "."),
    }


def dtype_words() -> list[str]:
    """Every word that names a dtype in a plan."""
    return [word for d in DTYPES if d.numpy for word in dict.fromkeys((d.name, d.short, *d.aliases))]


def _keys_required(op: Op) -> list[str]:
    return [f.key for f in op.fields() if f.default is inspect.Parameter.empty]


def _single(op: Op, fields: tuple[Field, ...]) -> Schema:
    """A mapping whose one key is the op's name."""
    return {
        "type": "object",
        "description": op.doc.split("\n\n")[0],
        "properties": {op.name: _payload(op, fields)},
        "required": [op.name],
        "additionalProperties": False,
    }


def _payload(op: Op, known: tuple[Field, ...]) -> Schema:
    fields = {f.key: field_schema(f) for f in known}
    if op.bare:
        return {**fields[op.bare], "description": op.doc}
    mapping: Schema = {"type": "object", "properties": fields, "additionalProperties": False}
    required = _keys_required(op)
    mapping |= {"required": required} if required else {}
    forms = [mapping, *([fields[op.shorthand]] if op.shorthand else []), *([] if required else [{"type": "null"}])]
    return {**(forms[0] if len(forms) == 1 else {"anyOf": forms}), "description": op.doc}


_ROLES: Mapping[str, tuple[str, str]] = {
    "pattern": ("reference", "A regex over whole names (or a list of tokens) that selects tensors."),
    "template": ("reference", r"The name created from each match: \1, \g<name> and ${name} insert captures."),
    "name": ("name", "One tensor's name, taken literally."),
    "operands": ("", "Tensors by name: the first reference a pattern, the others names created from each match."),
    "number": ("number", "A number."),
    "dtype": ("dtype", "An element type."),
    "assert": ("assert", "One assert."),
    "asserts": ("", "Asserts."),
    "steps": ("", "Steps, as under the plan's own `transforms`."),
    "plan": ("", "A plan: its inputs are loaded first, its output is saved last."),
    "plan-text": ("", "The YAML text of a plan."),
    "plan-file": ("", "The path of a plan file, relative to the working directory."),
    "recipe": ("", "A recipe with its variables: `{NAME: {VARIABLE: value}}`."),
}
_SCHEMAS: Mapping[str, Schema] = {
    "steps": _or_list({"$ref": "#/$defs/step"}),
    "plan": {"type": ["object", "array", "null"]},
    "asserts": {"type": "array", "items": {"$ref": "#/$defs/assert"}, "minItems": 1},
    "plan-text": {"type": "string"},
    "plan-file": {"type": "string", "minLength": 1},
    "recipe": {"type": ["string", "object"], "minLength": 1, "minProperties": 1, "maxProperties": 1},
}


def field_schema(field: Field) -> Schema:
    """The schema of one key of a payload."""
    if (plain := field.without_over) != field:
        return {"anyOf": [field_schema(plain), field_schema(field._replace(role=_with_over(field)))]}
    if (element := element_role(field.annotation)) is not None and not element.is_assert:
        least = fewest(field.annotation)
        listed = {"type": "array", "items": _role_schema(element), "minItems": least}
        one = {} if least > 1 else {"type": "string"}
        return ({"anyOf": [listed, one]} if one else listed) | {"description": "References, in order."}
    if field.role is None:
        made = _clean(adapter(field.annotation).json_schema())
        made = _or_variable(made)
    else:
        made = _role_schema(field.role)
        made = made if field.default is not None else {"anyOf": [made, {"type": "null"}]}
    told = field.default not in (inspect.Parameter.empty, None, ())
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return made | ({"default": default} if told else {})


def _with_over(field: Field) -> Role:
    assert field.role is not None
    return field.role._replace(plain=None)


def _role_schema(role: Role) -> Schema:
    target, words = _ROLES[role.kind]
    if target == "reference":
        chosen = role.is_pattern or role.read
        defined = ("reference" if role.slices else "whole") if chosen else ("made-part" if role.slices else "made")
        return {"$ref": f"#/$defs/{defined}", "description": words}
    if role.is_operands:
        each = {"$ref": "#/$defs/reference"}
        return {"type": "object", "additionalProperties": each, "minProperties": 1, "description": words}
    if role.kind in _SCHEMAS:
        return _SCHEMAS[role.kind] | {"description": words}
    if role.takes_tensor:
        either = [{"$ref": "#/$defs/number"}, {"$ref": "#/$defs/reference"}]
        return {"anyOf": either, "description": "A number, or a tensor with one element."}
    return {"$ref": f"#/$defs/{target}", "description": words}


def _clean(made: Any) -> Any:
    """Pydantic's schema with the bounds that it leaves under its own names put into JSON Schema's."""
    names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    if isinstance(made, dict):
        return {names.get(key, key): _clean(value) for key, value in made.items()}
    return [_clean(m) for m in made] if isinstance(made, list) else made


def _or_variable(made: Schema) -> Schema:
    """What a value is, or a variable in its place, or in the place of an element."""
    made = _with_variable_elements(made)
    return made if _takes_text(made) else {"anyOf": [made, _VARIABLE]}


def _with_variable_elements(made: Schema) -> Schema:
    """What a value is, where elements of lists may be variables."""
    if "items" in made:
        made = made | {"items": _or_variable(made["items"])}
    if "anyOf" in made:
        made = made | {"anyOf": [_with_variable_elements(each) for each in made["anyOf"]]}
    return made


def _takes_text(made: Schema) -> bool:
    """Whether any text passes, so that a variable does."""
    if not set(made) - {"description", "default"}:
        return True
    return (made.get("type") == "string" and "enum" not in made) or any(map(_takes_text, made.get("anyOf", ())))
