"""Patterns given as a list of tokens, matched against the dot-separated segments of a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from brainsurgery_jax.select.error import RefError
from brainsurgery_jax.select.limit import Deadline
from brainsurgery_jax.select.regexes import SHARINGS

# What a variable holds: one segment, or a run of them.
Value = str | tuple[str, ...]
TOKENS_HINT = "Tokens are 'text', '$x' (one segment), '*xs' (a run of segments), '~REGEX', '~x::REGEX', '~x,y::REGEX'."


class SegmentRegex(NamedTuple):
    """A compiled regex: how many groups, whether any is named, and how to find those of a full match by a deadline."""

    groups: int
    named: bool
    find: Callable[[str, Deadline], Sequence[str | None] | None]


class NameToken(NamedTuple):
    """One parsed token. A `fault` is raised when matching reaches the token, and not before."""

    kind: Literal["equal", "one", "many", "regex"]
    text: str
    names: tuple[str, ...] = ()
    regex: SegmentRegex | None = None
    fault: RefError | None = None

    @property
    def is_run(self) -> bool:
        """Whether it matches any number of segments."""
        return self.kind == "many"

    @property
    def is_plain(self) -> bool:
        """Whether it is a segment as it is written."""
        return self.kind == "equal"


class Search(NamedTuple):
    """A search through one name: its segments, when to give up, and the star positions known to lead nowhere."""

    tokens: tuple[NameToken, ...]
    segments: tuple[str, ...]
    deadline: Deadline
    dead: set[tuple[object, ...]]


def is_variable(text: str) -> bool:
    """Whether the text is an ASCII identifier, as names of variables must be."""
    return text.isascii() and text.isidentifier()


def parse_token(text: str, compile_regex: Callable[[str], SegmentRegex]) -> NameToken:
    """The token that the text spells; a malformed one carries its fault."""
    kind = _KINDS.get(text[:1]) if len(text) > 1 else None
    if kind is None:
        return NameToken("equal", text)
    try:
        if kind == "regex":
            return _regex_token(text, compile_regex)
        return NameToken(kind, text, (_check_name(text[1:], text),))
    except RefError as fault:
        return NameToken(kind, text, fault=fault)


def solve(tokens: tuple[NameToken, ...], segments: Sequence[str], deadline: Deadline) -> Mapping[str, Value] | None:
    """The variables of the first solution, each `*` taking the longest run that leads to one; None if there is none.

    Raises TimeoutError past the deadline: with a variable used twice the problem is NP-complete.
    """
    return _walk(Search(tokens, tuple(segments), deadline, set()), 0, 0, {})


def as_regex(tokens: tuple[NameToken, ...]) -> str | None:
    """A regex with one group a variable that solves "." + name as `solve` solves the name; None if there is no such.

    A regex is ten times faster. Greedy groups, too, take the longest run first and backtrack by whole segments.
    """
    names = [name for token in tokens for name in token.names]
    plain = all(token.regex is None and token.fault is None for token in tokens)
    stars = sum(token.is_run for token in tokens)
    if not plain or len(set(names)) < len(names) or stars >= len(SHARINGS):
        return None
    return "".join(_SEGMENTS.get(token.kind) or r"\." + _escape(token.text) for token in tokens)


_SEGMENTS: Mapping[str, str] = {"one": r"\.([^.]*)", "many": r"((?:\.[^.]*)*)"}
_KINDS: Mapping[str, Literal["one", "many", "regex"]] = {"$": "one", "*": "many", "~": "regex"}


def _escape(text: str) -> str:
    return "(?!)" if "." in text else re.escape(text)  # no segment contains a dot


def _check_name(name: str, token: str) -> str:
    if is_variable(name):
        return name
    message = f"token '{token}': '{name}' is not the name of a variable (letters, digits and '_', no spaces)"
    raise RefError("token-syntax", message, TOKENS_HINT)


def _regex_token(text: str, compile_regex: Callable[[str], SegmentRegex]) -> NameToken:
    head, separator, tail = text[1:].partition("::")
    body = tail if separator else head
    if not body:
        raise RefError("token-syntax", f"token '{text}' has an empty regular expression", TOKENS_HINT)
    names = tuple(_check_name(name, text) for name in head.split(",")) if separator else ()
    regex = compile_regex(body)
    if regex.named:
        hint = "Name the variables before '::' and use plain groups: '~x,y::(a+)(b+)'."
        raise RefError("token-syntax", f"token '{text}' has a named group", hint)
    return NameToken("regex", text, names, regex)


def _walk(search: Search, at: int, place: int, bound: dict[str, Value]) -> dict[str, Value] | None:
    """The completed bindings, from token `at` and segment `place` on."""
    segments = search.segments
    for offset, token in enumerate(search.tokens[at:]):
        if token.is_run:
            return _spread(search, at + offset, place + offset, bound)
        if place + offset == len(segments):
            return None
        taken = _take(token, segments[place + offset], search.deadline)
        extended = None if taken is None else _bind(bound, token.names, taken)
        if extended is None:
            return None
        bound = extended
    return bound if place + len(search.tokens) - at == len(segments) else None


def _spread(search: Search, at: int, place: int, bound: dict[str, Value]) -> dict[str, Value] | None:
    """The completed bindings with the star token `at` taking the longest run that works."""
    token = search.tokens[at]
    _raise_fault(token)
    # Whether the rest can match depends on nothing but this; so without a repeated variable the search is polynomial.
    state = (at, place, *(bound.get(name) for later in search.tokens[at:] for name in later.names))
    if state in search.dead:
        return None
    search.deadline.remaining()
    for end in range(len(search.segments), place - 1, -1):
        extended = _bind(bound, token.names, (search.segments[place:end],))
        if extended is not None and (found := _walk(search, at + 1, end, extended)) is not None:
            return found
    search.dead.add(state)
    return None


def _bind(bound: dict[str, Value], names: Sequence[str], values: Sequence[Value]) -> dict[str, Value] | None:
    """The bindings with some more, or None if a variable would hold two different values."""
    extended = dict(bound)
    for name, value in zip(names, values, strict=True):
        if extended.setdefault(name, value) != value:
            return None
    return extended


def _take(token: NameToken, segment: str, deadline: Deadline) -> Sequence[str] | None:
    """The values of the token's variables on this segment, or None if it does not match."""
    _raise_fault(token)
    if token.regex is not None:
        groups = token.regex.find(segment, deadline)
        return None if groups is None else _values(token, token.regex, groups, segment)
    if token.is_plain:
        return () if segment == token.text else None
    return (segment,)


def _values(token: NameToken, regex: SegmentRegex, groups: Sequence[str | None], segment: str) -> Sequence[str]:
    if not token.names:
        return ()
    if len(token.names) == 1 and not regex.groups:
        return (segment,)
    if regex.groups != len(token.names):
        message = f"token '{token.text}' has {len(token.names)} variables and {regex.groups} groups"
        raise RefError(
            "token-group", message, "Give each variable one group; write a group that binds nothing as '(?:...)'."
        )
    values = [group for group in groups if group is not None]
    if len(values) < len(groups):
        message = f"token '{token.text}' matches segment '{segment}' without one of its groups taking part"
        raise RefError(
            "token-group",
            message,
            "Let every group take part in every match: '(a|b)', not '(a)|(b)'; '(a?)', not '(a)?'.",
        )
    return values


def _raise_fault(token: NameToken) -> None:
    if token.fault is not None:
        raise RefError(*token.fault.args)  # a new one: a raised exception gathers the traceback of whoever raised it
