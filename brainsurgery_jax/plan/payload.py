"""An op's payload from YAML to typed parameters, with every mistake named at its key."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from brainsurgery_jax import plugins
from brainsurgery_jax.dtypes import BY_NAME, DTYPES, parse_dtype
from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, Span, did_you_mean
from brainsurgery_jax.op import ASSERTS, OPS, Assertion, Field, Op, Role, element_role, fewest
from brainsurgery_jax.plan.cut_texts import cut_texts
from brainsurgery_jax.plan.model import Location
from brainsurgery_jax.plan.source import Map, Node, flow_yaml, get
from brainsurgery_jax.plan.subplans import sub_plan
from brainsurgery_jax.select import Ref, parse_ref

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Payload:
    """One payload being read: collects diagnostics, each at the place of the key it is about."""

    def __init__(
        self,
        places: Mapping[Location, Span],
        at: Location,
        label: str,
        default_alias: str | None,
        node: Node | None = None,
    ):
        self.places, self.at, self.label, self.default_alias = places, at, label, default_alias
        self.node = node  # the payload as it was composed, for keys that hold steps of their own
        self.problems: list[Diagnostic] = []

    def complain(self, code: str, message: str, *key: str | int, hint: str = "") -> None:
        where = next((s for n in range(len(key), -1, -1) if (s := self.places.get(self.at + key[:n]))), None)
        self.problems.append(Diagnostic(code, f"{'.'.join([self.label, *map(str, key)])}: {message}", where, hint))


_OTHER_KEYS: Mapping[str, tuple[str, ...]] = {
    "axis": ("dim", "axes"), "axes": ("dim", "order"), "dims": ("axes", "dim", "order", "shape"), "weight": ("t",),
    "alpha": ("t", "by"), "by": ("t",), "index": ("indices",), "keepdim": ("keepdims",), "op": ("mode",),
    "reduction": ("mode",), "size": ("shape", "sizes"), "pad_width": ("width",), "repeats": ("times",),
    "chunks": ("parts",), "factor": ("by",), "name": ("target",),
}  # fmt: skip
"""Names that other tools use for our keys."""


def parse_payload(op: Op, payload: object, reading: Payload, known: Sequence[Field] | None = None) -> dict[str, Any]:
    """The parameters of `op` that a payload spells; mistakes go to `reading.problems`. `known`: its keys, if not just
    the op's own."""
    fields = {f.key: f for f in (op.fields() if known is None else known)}
    given = _as_mapping(op, payload, fields, reading)
    if given is None:
        return {}
    if given.get("over") is None:
        fields = {key: f.without_over for key, f in fields.items()}
    given, meant = _without_cut_texts(given, fields, reading)
    unknown = [key for key in given if key not in fields]
    needed = [f.key for f in fields.values() if f.default is inspect.Parameter.empty and f.key not in meant]
    missing = [key for key in needed if key not in given]
    for key in given:
        if key not in fields:
            free = [k for k in fields if k not in given]
            is_own = not _may_be_parameter(key, fields)
            near = _nearest_key(key, free) if is_own else ""
            if is_own and not near and len(unknown) == len(missing) == 1 and not _fits(sibling_of(op), given):
                near = f" Did you mean '{missing[0]}'?"
            meant.update(k for k in fields if near.endswith(f"'{k}'?") or key.startswith(f"{k}:"))
            meant.update(fields if _fits(sibling_of(op), given) else ())
            words = ", ".join(fields) or "none"
            reading.complain(
                "key-unknown",
                f"unknown key '{key}'.{near}",
                key,
                hint=_unknown_key_hint(op, key, f"Keys of {op.name}: {words}."),
            )
    for key in missing:
        if key not in meant:
            reading.complain("key-missing", f"missing key '{key}'", hint=_example(op))
    return _read_params(op, fields, given, reading)


def _read_params(
    op: Op, fields: Mapping[str, Field], given: Mapping[str, object], reading: Payload
) -> dict[str, object]:
    """The values of the keys that an op has; mistakes go to `reading.problems`."""
    params: dict[str, object] = {}
    for f in sorted((fields[k] for k in given if k in fields), key=lambda f: bool(f.role and f.role.beside)):
        at = () if op.bare else (f.key,)
        try:
            params[f.param] = _value(f, given[f.key], params, reading, at)
        except Refusal as bad:
            hint = bad.hint or _variable_hint(given[f.key]) or _over_hint(op, f, given) or _example(op, f.key)
            reading.complain(bad.code, bad.message, *at, hint=hint)
        except PlanError as bad:  # of a plan within this one, with places of its own
            reading.problems.extend(bad.diagnostics)
    return params


def _without_cut_texts(
    given: Mapping[str, object], fields: Mapping[str, Field], reading: Payload
) -> tuple[dict[str, object], set[str]]:
    """A payload without the texts that a comma has cut, each of which is one mistake; and the keys of these."""
    left, meant = dict(given), set[str]()
    for cut in cut_texts(given, fields):
        message = "the text ends at a comma, because it is inside { } without quotes"
        reading.complain("yaml-syntax", message, cut.key, hint=f"Quote it: `{cut.quoted}`.")
        left = {key: value for key, value in left.items() if key not in (cut.key, *cut.rest)}
        meant.add(cut.key)
    return left, meant


def _as_mapping(op: Op, payload: object, fields: Mapping[str, Field], reading: Payload) -> dict[str, object] | None:
    if op.bare:
        return {op.bare: payload}
    if isinstance(payload, dict):
        return payload
    if payload is None:
        return {}
    if op.shorthand:
        return {op.shorthand: payload}
    wanted = f"a mapping with the keys {', '.join(fields)}" if fields else "no payload"
    reading.complain("payload-type", f"expected {wanted}, got {payload!r}", hint=_example(op))
    return None


def sibling_of(op: Op) -> Op | None:
    """The op that does the same in place, or into new names: `cast_` of `cast`, and the reverse."""
    return OPS.get(op.name[:-1] if op.name.endswith("_") else f"{op.name}_")


def _fits(op: Op | None, given: Mapping[str, object]) -> bool:
    return op is not None and set(given) <= {f.key for f in op.step_fields()}


def _nearest_key(key: str, free: Sequence[str]) -> str:
    known_as = next((k for k in _OTHER_KEYS.get(key, ()) if k in free), "")
    return f" Did you mean '{known_as}'?" if known_as else did_you_mean(key, free)


def _may_be_parameter(key: str, fields: Iterable[str]) -> bool:
    """Whether an unknown key may belong under the key `parameters` of an op: `t` of a slerp is no misspelt `to`."""
    return "parameters" in fields and len(key) == 1


def _unknown_key_hint(op: Op, key: str, known: str) -> str:
    """Which keys there are; or that a space is missing, or that another key or the op's sibling takes such a key."""
    head, colon, tail = key.partition(":")
    keys = {f.key for f in op.step_fields()}
    if colon and head in keys:
        return f"Put a space behind the colon: `{head}: {tail}`."
    if "parameters" in keys:
        return f"{known} Parameters of a method go under `parameters`: `parameters: {{{key}: ...}}`."
    sibling = sibling_of(op)
    if sibling is None or key not in {f.key for f in sibling.fields()}:
        return known
    how = "works in place" if sibling.name.endswith("_") else "creates new tensors"
    return f"{known} `{sibling.name}`, which {how}, has '{key}'."


def _example(op: Op, key: str = "") -> str:
    """The first example of an op, or the first that has a key."""
    lines = [line.strip() for line in op.doc.splitlines() if line.strip().startswith("Example:")]
    return next((line for line in lines if f"{key}:" in line), next(iter(lines), ""))


def _variable_hint(value: object) -> str:
    """For a text that stands for a variable elsewhere."""
    found = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
    return f"A variable of the plan is written ${{vars.{found[1]}}}." if found is not None else ""


def _over_hint(op: Op, f: Field, given: Mapping[str, object]) -> str:
    """For one pattern where a list is expected: a set of tensors goes by the key `over`."""
    sets = next((own.role for own in op.fields() if own.key == f.key and own != f), None)
    if sets is None or not isinstance(given[f.key], str):
        return ""
    return "One pattern or template stands for several tensors with `over: NAME`, the number in their names."


def _value(f: Field, value: object, params: Mapping[str, object], reading: Payload, at: Location) -> object:
    if (role := element_role(f.annotation)) is not None and not role.is_assert:
        return _references(f, role, value, params, reading)
    if f.role is None:
        return _validate(f.annotation, value)
    if value is None and f.default is None and not f.role.is_number:
        return None
    match f.role.kind:
        case "number":
            if f.role.takes_tensor and (
                (isinstance(value, dict) and value) or (isinstance(value, str) and "::" in value)
            ):
                return _reference(Role("template", slices=True, read=True), value, params, reading)
            return _number(value)
        case "dtype":
            return _dtype(value)
        case "assert":
            return _assertion(value, reading, at)
        case "asserts":
            return _assertions(value, reading, at)
        case "operands":
            return _operands(f, value, params, reading)
        case "steps" | "plan" | "plan-text" | "plan-file" | "recipe" as kind:
            node = get(reading.node, f.key) if isinstance(reading.node, Map) else None
            assert node is not None
            return sub_plan(kind, node)
    return _reference(f.role, value, params, reading)


def _references(f: Field, role: Role, value: object, params: Mapping[str, object], reading: Payload) -> tuple[Ref, ...]:
    least = fewest(f.annotation)
    items = [value] if isinstance(value, str) and least < 2 else value
    if not isinstance(items, list) or len(items) < least:
        raise Refusal("value-type", f"expected a list of at least {least} references, got {value!r}")
    out = []
    for at, item in enumerate(items):
        try:
            out.append(_reference(role, item, params, reading))
        except Refusal as bad:
            reading.complain(bad.code, bad.message, f.key, at, hint=bad.hint)
    return tuple(out)


def _operands(f: Field, value: object, params: Mapping[str, object], reading: Payload) -> dict[str, Ref]:
    """References by name, the first a pattern, the others templates."""
    if not isinstance(value, dict) or not value:
        hint = f"Name each tensor: `{f.key}: {_with_letters(value)}`."
        raise Refusal(
            "value-type", f"expected a mapping of names to references, got {_describe_value(value)}", hint=hint
        )
    out = {}
    for name, item in value.items():
        try:
            out[name] = _reference(
                Role("template" if out else "pattern", slices=True, read=True), item, params, reading
            )
        except Refusal as bad:
            reading.complain(bad.code, bad.message, f.key, name, hint=bad.hint)
    return out


def _with_letters(value: object) -> str:
    """References that stand without names, each with a letter."""
    given = value if isinstance(value, list) else [value]
    texts = [item for item in given if isinstance(item, str)] or [".*"]
    return flow_yaml(dict(zip("wvxyzabcdefgh", texts, strict=False)))


def _reference(role: Role, value: object, params: Mapping[str, Any], reading: Payload) -> Ref:
    beside = params.get(role.beside)
    alias = beside.alias if isinstance(beside, Ref) else beside or reading.default_alias or role.fallback
    ref = parse_ref(value, alias, literal=role.is_literal)
    if ref.index is not None and not role.slices:
        hint = "Copy the slice to a name of its own first." if role.is_pattern else ""
        raise Refusal("slice-not-allowed", f"a slice is not allowed here, got '{ref}'", hint=hint)
    if ref.kind is not None and not role.selects:
        hint = "Write it in the reference that is matched."
        raise Refusal(
            "kind-not-allowed", f"a `kind` is not allowed in a reference that creates names, got '{ref}'", hint=hint
        )
    return ref


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise Refusal("value-type", f"expected a number, got {_describe_value(value)}") from None
    if isinstance(value, int) and abs(value) < 1 << 64 and number != value:  # of an integer, the last digit counts
        hint = f"The nearest number of double precision is `{number:.0f}`; only `values` of `fill` takes all integers."
        raise Refusal("value-type", f"{value} has too many digits", hint=hint)
    return number


def _dtype(value: object) -> object:
    found = parse_dtype(value) if isinstance(value, str) else None
    if found is None or found.numpy is None:
        names = [d.name for d in DTYPES if d.numpy]
        near = _near_dtype(str(value), names)
        raise Refusal("dtype-unknown", f"unknown dtype {value!r}.{near}", hint=f"Known: {', '.join(names)}.")
    return found


def _near_dtype(word: str, names: Sequence[str]) -> str:
    """`" Did you mean 'bfloat16'?"`: for `bf-16` and `torch.bfloat16` that, for `float8` all that start so, for `e4m3`
    all that contain it."""
    plain = word.lower().rpartition(".")[2].replace("-", "").replace("_", "")
    if (same := parse_dtype(plain)) is not None:
        return f" Did you mean '{same.name}'?"
    part = plain.replace("fp", "float")
    longer = [name for name in names if name.startswith(part)] or [name for name in names if part in name]
    if longer and part:
        return f" Did you mean {' or '.join(map(repr, longer[:2]))}?"
    return did_you_mean(word, [word for word, dtype in BY_NAME.items() if dtype.numpy])


def _assertion(value: object, reading: Payload, at: Location) -> Assertion:
    if not isinstance(value, dict) or len(value) != 1:
        shown = f"{len(value)} keys" if isinstance(value, dict) else repr(value)
        hint = f"Operators: {', '.join(ASSERTS)}. Several conditions go under `all: [...]`."
        raise Refusal("assert-form", f"expected a mapping with exactly one operator, got {shown}", hint=hint)
    ((name, payload),) = value.items()
    if (op := plugins.find(ASSERTS, name)) is None:
        hint = f"Operators: {', '.join(ASSERTS)}."
        raise Refusal(
            "assert-unknown", f"unknown assert operator '{name}'.{did_you_mean(name, ASSERTS, ours=True)}", hint=hint
        )
    inner = Payload(reading.places, (*reading.at, *at, name), f"{reading.label}.{name}", reading.default_alias)
    params = parse_payload(op, payload, inner)
    reading.problems.extend(inner.problems)
    return Assertion(op, params)


def _assertions(value: object, reading: Payload, at: Location) -> tuple[Assertion, ...]:
    if not isinstance(value, list) or not value:
        raise Refusal("assert-form", f"expected a non-empty list of asserts, got {value!r}")
    parts = [_assertion(item, reading, (*at, i)) for i, item in enumerate(value)]
    return tuple(replace(part, at=(*reading.at, *at, i)) for i, part in enumerate(parts))


@cache
def adapter(annotation: Any) -> TypeAdapter[object]:
    """The validator of one key's annotation, built once."""
    return TypeAdapter(annotation)


def _validate(annotation: object, value: object) -> object:
    try:
        return adapter(annotation).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Refusal("value-type", _sentence(first)) from error


def _describe_value(value: object) -> str:
    """A value as a message shows it; that a text is one is said, since `'8'` looks so much like `8`."""
    return f"the text {value!r}" if isinstance(value, str) else repr(value)


def _context(error: ErrorDetails) -> dict[str, object]:
    """What pydantic says of a mistake besides its kind."""
    return error.get("ctx", {})


_SENTENCES: dict[str, Callable[[ErrorDetails], str]] = {
    "value_error": lambda e: str(_context(e)["error"]),
    "literal_error": lambda e: _choices(str(_context(e)["expected"]), e["input"]),
    "int_type": lambda e: f"expected an integer, got {_describe_value(e['input'])}",
    "bool_type": lambda e: f"expected true or false, got {_describe_value(e['input'])}",
    "tuple_type": lambda e: f"expected a list, got {_describe_value(e['input'])}",
    "string_type": lambda e: f"expected text, got {e['input']!r}. Quote it if it is text",
    "string_too_short": lambda e: "expected text, got an empty one",
    "dict_type": lambda e: f"expected a mapping, got {_describe_value(e['input'])}",
    "too_short": lambda e: f"expected {_container(e)} of at least {_context(e)['min_length']}, got {len(e['input'])}",
    "too_long": lambda e: f"expected {_container(e)} of at most {_context(e)['max_length']}, got {len(e['input'])}",
}


def _container(error: ErrorDetails) -> str:
    return "a mapping" if isinstance(error["input"], Mapping) else "a list"


def _choices(expected: str, found: object) -> str:
    near = did_you_mean(found, re.findall(r"'([^']*)'", expected)) if isinstance(found, str) else ""
    return f"expected {expected}, got {found!r}.{near}".removesuffix(".")


def _sentence(error: ErrorDetails) -> str:
    known = _SENTENCES.get(error["type"])
    text = known(error) if known else f"{error['msg'].replace('Input should be', 'expected')}, got {error['input']!r}"
    place = [str(p) for p in error["loc"] if isinstance(p, int)]
    return f"item {place[0]}: {text}" if place else text
