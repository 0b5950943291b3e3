"""References to tensors as a plan writes them: `alias::name::[slice]`, a list of tokens, or a mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.select.error import RefError
from brainsurgery_jax.select.slices import SliceSpec, parse_slice

NOTHING_OPEN = "Nothing is open yet: name a checkpoint under `inputs`, or open it with `load` in an earlier step."
FORMS_HINT = "Write 'alias::name', 'alias::name::[slice]', a list of tokens, or {alias: ..., name: ..., slice: ...}."

KINDS: Mapping[str, frozenset[str]] = MappingProxyType({
    "float": frozenset({"float", "packed"}),
    "integer": frozenset({"int", "uint"}),
    "bool": frozenset({"bool"}),
    "complex": frozenset({"complex"}),
    "other": frozenset({"other"}),
})  # fmt: skip
"""The words of a reference for kinds of dtypes, and the kinds of `dtypes` that each denotes. Random keys are of
kind `other`."""

_OTHER_KINDS = {
    "int": "integer", "integers": "integer", "uint": "integer", "floating": "float", "floats": "float", "real": "float",
    "boolean": "bool",
}  # fmt: skip
"""What others call them."""


# Without a default alias `a::[bc]` is a regex, a set of characters; a slice is what is written like one.
_SLICE = re.compile(r"\[[-+\d:,\s]*\]")


@dataclass(frozen=True, slots=True)
class Ref:
    """Where to look (`alias`), for what (`name`, as written: text, or structured tokens), which part of it, and of what
    `kind` its dtype is (None: any)."""

    alias: str
    name: str | tuple[str, ...]
    index: SliceSpec | None = None
    kind: str | None = None

    def __str__(self) -> str:
        name = self.name if isinstance(self.name, str) else f"[{', '.join(self.name)}]"
        kind = "" if self.kind is None else f" ({self.kind})"
        return f"{self.alias}::{name}" + ("" if self.index is None else f"::{self.index}") + kind

    def takes(self, dtype: DType) -> bool:
        """Whether a tensor of this dtype is of the kind that is meant."""
        return self.kind is None or dtype.kind in KINDS[self.kind]


def kind_of(dtype: DType) -> str:
    """What references call the kind of a dtype."""
    return next(word for word, kinds in KINDS.items() if dtype.kind in kinds)


def parse_ref(value: object, default_alias: str | None, *, literal: bool = False) -> Ref:
    """Parse a reference from a value of a plan.

    **Arguments**: `value`, text, a list of tokens, or a mapping; `default_alias`, the alias of a reference that names
    none (None: it must name one); `literal`, whether the name is taken literally, so that a list is an error.
    """
    match value:
        case str():
            return _from_text(value, default_alias)
        case list() | tuple():
            return Ref(_alias("", default_alias, value), _tokens(cast("list[object]", value), literal))
        case Mapping():
            return _from_mapping(cast("Mapping[object, object]", value), default_alias, literal)
    raise RefError(
        "ref-type", f"expected a reference to tensors, found {value!r}", f"{FORMS_HINT} Quote it if it is text."
    )


def _from_text(text: str, default: str | None) -> Ref:
    match _split(text):
        case [name]:
            return _ref("", name, None, default, text)
        case [head, tail] if _is_bracketed(tail) and (default is not None or _SLICE.fullmatch(tail)):
            return _ref("", head, tail, default, text)
        case [alias, name]:
            return _ref(alias, name, None, default, text)
        case [alias, name, tail] if _is_bracketed(tail):
            return _ref(alias, name, tail, default, text)
        case [_, _, tail]:
            message = f"'{text}': the third part, '{tail}', is not a slice in brackets"
            raise RefError("ref-parts", message, "Write 'alias::name::[slice]', such as 'base::wte.weight::[:10, 0]'.")
        case parts:
            message = f"'{text}' has {len(parts)} parts separated by '::', but at most three are allowed"
            raise RefError("ref-parts", message, f"{FORMS_HINT} A name that contains '::' needs the mapping form.")


def _split(text: str) -> list[str]:
    """The parts between `::`, with a trailing bracketed slice kept whole, since `[::2]` holds a `::` itself."""
    parts = text.split("::")
    opening = [at for at, part in enumerate(parts) if at and part.startswith("[")]
    if opening and text.endswith("]"):
        parts[opening[-1] :] = ["::".join(parts[opening[-1] :])]
    return parts


def _is_bracketed(text: str) -> bool:
    return text.startswith("[") and text.endswith("]")


def _ref(alias: str, name: str, tail: str | None, default: str | None, found: object) -> Ref:
    if not name:
        raise RefError("ref-empty", f"{found!r} names no tensor: the name is empty", "To take every tensor write '.*'.")
    return Ref(_alias(alias, default, found), name, None if tail is None else parse_slice(tail))


def _alias(alias: str, default: str | None, found: object) -> str:
    if alias:
        return alias
    if default is not None:
        return default
    message = (
        f"{_describe(found)} has no alias, and there is no default alias (only a plan with exactly one input has one)"
    )
    raise RefError("ref-no-alias", message, _alias_hint(found))


def _alias_hint(found: object) -> str:
    if isinstance(found, str):
        head, colon, rest = found.partition(":")
        if colon and rest.startswith("[") and rest.endswith("]"):
            return f"Write which input is meant, and two colons before a slice: 'ALIAS::{head}::{rest}'."
        if colon and head.isidentifier() and not rest.startswith(":"):
            return f"An alias is set off by two colons: '{head}::{rest}'."
        return f"Write which input is meant: 'ALIAS::{found.removeprefix('::')}'."
    return f"Write which input is meant, in the mapping form: {{alias: ALIAS, {_keys(found)}}}."


def _keys(found: object) -> str:
    """The keys of a reference, as a plan writes them."""
    keys = found if isinstance(found, dict) else {"name": found}
    return ", ".join(f"{key}: {_spell(value)}" for key, value in keys.items() if key != "alias")


def _spell(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_spell, value))}]"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def name_aliases(hint: str, aliases: Sequence[str]) -> str:
    """The hint of a reference without an alias, with the aliases that there are."""
    if not aliases:
        return NOTHING_OPEN if "ALIAS" in hint else hint
    some = aliases[:3]
    texts = re.sub(r"'ALIAS::(.*)'", lambda m: " or ".join(f"'{a}::{m[1]}'" for a in some), hint)
    return re.sub(r"\{alias: ALIAS, (.*)\}", lambda m: " or ".join(f"{{alias: {a}, {m[1]}}}" for a in some), texts)


def _describe(found: object) -> str:
    return f"'{found}'" if isinstance(found, str) else f"the reference {found!r}"


def _from_mapping(value: Mapping[object, object], default: str | None, literal: bool) -> Ref:
    known = ("alias", "name", "slice", "kind")
    for key in value:
        if key not in known:
            message = f"a reference has no key '{key}'.{did_you_mean(str(key), known)}"
            raise RefError("ref-key", message, "Its keys are 'name' and, if needed, 'alias', 'slice' and 'kind'.")
    name, alias, tail = (value.get(key) for key in ("name", "alias", "slice"))
    if isinstance(name, list | tuple):
        name = _tokens(cast("list[object]", name), literal)
    elif not isinstance(name, str) or not name:
        raise RefError(
            "ref-empty", f"the reference {dict(value)!r} has no 'name' (text or a list of tokens)", FORMS_HINT
        )
    index = None if tail is None else _slice(tail)
    return Ref(_alias(_text("alias", alias), default, dict(value)), name, index, _kind(value.get("kind")))


def _kind(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value in KINDS):
        return value
    word = str(value).lower()
    near = f" Did you mean '{_OTHER_KINDS[word]}'?" if word in _OTHER_KINDS else did_you_mean(word, KINDS)
    raise RefError("ref-kind", f"unknown kind {value!r} of dtypes.{near}", f"Kinds: {', '.join(KINDS)}.")


def _text(key: str, value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise RefError("ref-type", f"'{key}' of a reference must be text, found {value!r}", f"Quote it: {key}: '{value}'.")


def _slice(value: object) -> SliceSpec:
    # YAML reads 1:30 as a number in base 60 and [1:30] as a list: text is the one safe form
    if isinstance(value, str):
        return parse_slice(value)
    raise RefError("slice-syntax", f"'slice' must be text in quotes, found {value!r}", "Write slice: '[0, 1:5]'.")


def _tokens(items: list[object] | tuple[object, ...], literal: bool) -> tuple[str, ...]:
    shown = list(items)
    if literal:
        message = f"the tokens {shown!r} are used where one literal name is expected"
        raise RefError("ref-literal", message, "Write the full name as text.")
    if not items:
        raise RefError("ref-empty", "a structured reference needs at least one token, found []", FORMS_HINT)
    for item in items:
        if not isinstance(item, str):
            message = f"token {item!r} of {shown!r} is not text"
            raise RefError("ref-type", message, f"Quote it: '{item}'.")
        if not item:
            raise RefError(
                "ref-empty", f"{shown!r} holds an empty token", "Leave it out, or write '$x' for any segment."
            )
    return tuple(str(item) for item in items)
