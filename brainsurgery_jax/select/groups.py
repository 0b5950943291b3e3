"""Sets of tensors whose names differ in one number: grouping for `over: e`, and names of parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.select.error import RefError, shown
from brainsurgery_jax.select.formula import is_integer
from brainsurgery_jax.select.pattern import Binding, Match, Pattern
from brainsurgery_jax.select.structured import is_variable
from brainsurgery_jax.select.template import Template, compile_template


class Group(NamedTuple):
    """Tensors that are joined, in the order of their numbers, and the name of the result."""

    target: str
    names: tuple[str, ...]


class Member(NamedTuple):
    """A tensor of a group: its number, its name, and the name of the result from its captures."""

    number: int
    name: str
    target: str


def gather(pattern: Pattern, matches: Sequence[Match], over: str, to: str | tuple[str, ...]) -> list[Group]:
    """Group matches that agree in every capture except `over`, in numeric order; groups are sorted by target.

    Raises RefError if the order is ambiguous: captures that are not numbers, or missing numbers.
    """
    at, template = _position(pattern, over), _template(to, pattern)
    groups: dict[Binding, list[Member]] = {}
    for name, binding in matches:
        rest = (*binding[:at], *binding[at + 1 :])
        groups.setdefault(rest, []).append(Member(_number(binding[at], name, over), name, template.fill(name, binding)))
    ordered = [sorted(members) for members in groups.values()]
    for members in ordered:
        _check(members, over)
    _alike(ordered, over)
    made = [Group(members[0].target, tuple(m.name for m in members)) for members in ordered]
    return sorted(_distinct(made, over))


def _template(to: str | tuple[str, ...], pattern: Pattern) -> Template:
    try:
        return compile_template(to, pattern)
    except RefError as bad:
        bad.key = "to"
        raise


def _position(pattern: Pattern, over: str) -> int:
    """Find the index in a binding of the capture that `over` names; for a regex `over` may be a number."""
    if isinstance(pattern.source, str) and over.isdecimal() and 1 <= int(over) <= pattern.width:
        return int(over) - 1
    if isinstance(pattern.source, str) and over.isdecimal():
        count = f"{pattern.width} group{'s' * (pattern.width != 1)}"
        message = f"the pattern {shown(pattern.source)} has {count}, no number {over}"
        raise _wrong("over", "over-capture", message, "Groups are the parts in parentheses, counted from 1.")
    if over not in pattern.names:
        known = ", ".join(pattern.names) or "nothing by name"
        how = f"(?P<{over}>[0-9]+)" if isinstance(pattern.source, str) else f"${over}"
        raise _wrong(
            "over",
            "over-capture",
            f"the pattern {shown(pattern.source)} does not capture '{over}'",
            f"It captures {known}; write '{how}' for the number.{did_you_mean(over, pattern.names)}",
        )
    return pattern.names[over]


def _number(text: object, name: str, over: str) -> int:
    if isinstance(text, str) and is_integer(text):
        return int(text)
    found = ".".join(text) if isinstance(text, tuple) else text
    raise _wrong(
        "over",
        "over-number",
        f"'{over}' is '{found}' in '{name}', which is not a number",
        "Tensors are joined in numeric order: capture digits only. In another order: `from` as a list, without `over`.",
    )


def _check(members: Sequence[Member], over: str) -> None:
    """Refuse missing or repeated numbers, and a result's name that depends on them."""
    for a, b in pairwise(members):
        if a.number == b.number:
            hint = "Capture the text in which they differ, or match fewer names."
            raise _wrong(
                "over", "over-number", f"'{a.name}' and '{b.name}' both have number {a.number} of '{over}'", hint
            )
        if a.number + 1 != b.number:
            raise _gap(a, b, over)
        if a.target != b.target:
            raise _wrong(
                "to",
                "over-template",
                f"'{a.name}' and '{b.name}' are joined over '{over}', but `to` gives '{a.target}' and '{b.target}'",
                f"Leave '{over}' out of `to`: it runs through all its numbers in one result.",
            )


def _gap(a: Member, b: Member, over: str) -> RefError:
    """The refusal of numbers that are missing between two tensors."""
    first, last = a.number + 1, b.number - 1
    missing = f"Number {first} is missing." if first == last else f"Numbers {first} to {last} are missing."
    backslash = "\\" if over.isdecimal() else ""
    formula = f"{backslash}{over}-{b.number - first}"
    return _wrong(
        "over",
        "over-gap",
        f"'{over}' jumps from {a.number} to {b.number} between '{a.name}' and '{b.name}'",
        f"{missing} Renumber those from {b.number} on first, with `move` and '${{{formula}}}', or list all in `from`, "
        "in order, without `over`.",
    )


def _alike(groups: Sequence[Sequence[Member]], over: str) -> None:
    """Refuse groups with different numbers: a tensor is missing from one of them."""
    for group in groups[1:]:
        (low, _, _), (high, _, _), first = group[0], group[-1], groups[0]
        if (low, high) != (first[0].number, first[-1].number):
            raise _wrong(
                "over",
                "over-gap",
                f"'{over}' runs from {low} to {high} for '{group[0].target}', "
                f"but from {first[0].number} to {first[-1].number} for '{first[0].target}'",
                "A tensor is missing in one of them; if this is intended, write a step for each kind.",
            )


def _distinct(groups: Sequence[Group], over: str) -> Sequence[Group]:
    seen: dict[str, Group] = {}
    for group in groups:
        if (other := seen.setdefault(group.target, group)) is not group:
            raise _wrong(
                "to",
                "names-collide",
                f"the sets of '{other.names[0]}' and of '{group.names[0]}' would both become '{group.target}'",
                f"Keep every capture except '{over}' in `to`, so that the names differ.",
            )
    return groups


def scatter(
    pattern: Pattern, matches: Sequence[Match], over: str, to: str | tuple[str, ...], counts: Sequence[int]
) -> list[tuple[str, ...]]:
    """Return the names of the parts of each match, `counts` of them.

    In the template, `over` is the number of a part, counted from 0, in addition to the captures.
    """
    return spread(pattern, matches, over, to, [list(map(str, range(count))) for count in counts], "parts")


def spread(
    pattern: Pattern,
    matches: Sequence[Match],
    over: str,
    to: str | tuple[str, ...],
    values: Sequence[Sequence[str]],
    noun: str,
) -> list[tuple[str, ...]]:
    """Return the names of what becomes of each match: one for each of its values, which `over` is in the template, in
    addition to the captures. `noun`: what messages call them."""
    if over in pattern.names:
        raise _wrong(
            "over",
            "over-capture",
            f"the pattern {shown(pattern.source)} captures '{over}' already",
            f"'${{{over}}}' in `to` tells the {noun} apart: choose another name for it.",
        )
    if not is_variable(over):
        hint = "Write it in `to` as '${NAME}': letters, digits and '_'."
        raise _wrong("over", "over-capture", f"'{over}' is not the name of a variable", hint)
    wider = replace(pattern, names={**pattern.names, over: pattern.width}, width=pattern.width + 1)
    template = _template(to, wider)
    made = [
        tuple(template.fill(name, (*binding, value)) for value in own)
        for (name, binding), own in zip(matches, values, strict=True)
    ]
    _refuse_shared(matches, made, over, noun)
    return made


def _refuse_shared(matches: Sequence[Match], made: Sequence[tuple[str, ...]], over: str, noun: str) -> None:
    seen: dict[str, str] = {}
    for (source, _), names in zip(matches, made, strict=True):
        for name in names:
            if (other := seen.setdefault(name, source)) != source:
                hint = "Keep the captures of the pattern in `to`, so that the names differ."
                raise _wrong(
                    "to", "names-collide", f"{noun} of '{other}' and of '{source}' would become '{name}'", hint
                )
        if len(set(names)) < len(names):
            hint = f"Put what tells them apart into `to`: '${{{over}}}'."
            raise _wrong(
                "to", "over-template", f"all {len(names)} {noun} of '{source}' would become '{names[0]}'", hint
            )


def _wrong(key: str, code: str, message: str, hint: str) -> RefError:
    error = RefError(code, message, hint)
    error.key = key
    return error
