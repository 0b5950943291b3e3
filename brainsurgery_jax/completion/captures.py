"""Completion of templates: captures of the step's pattern, and the words of a formula after `${`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from brainsurgery_jax.select import FUNCTIONS, RefError
from brainsurgery_jax.select.regexes import check_regex

_OPEN = re.compile(r"(?P<head>.*\$\{(?:.*[^\w\\<>])?)(?P<begun>[\w\\<>]*)", re.DOTALL)


class Offer(NamedTuple):
    """A text for the whole word, what it is, and what a menu shows for it."""

    text: str
    meta: str
    display: str


def of_regex(source: str, word: str) -> Iterator[Offer]:
    """Yield continuations of a template for a regex; before anything is typed, the regex itself."""
    if not word:
        yield Offer(source, "as in the pattern", source)
    try:
        groups = check_regex(source.rpartition("::")[2] or source)
    except RefError:
        return
    named = {at: name for name, at in groups.groupindex.items()}
    told = {at: f"group {at} of the pattern" for at in range(1, groups.groups + 1)}
    if (opened := _open_formula(word)) is not None:
        yield from _of_formula(opened, {named.get(at, f"\\{at}"): meta for at, meta in told.items()})
        return
    for at, meta in told.items():
        text = f"\\g<{named[at]}>" if at in named else f"\\{at}"
        yield Offer(word + text, meta, text)


def of_tokens(source: object, word: str) -> Iterator[Offer]:
    """Yield continuations of a token in a template for a list of tokens."""
    bound = list(_captures(source)) if isinstance(source, list) else []
    if (opened := _open_formula(word)) is not None:
        yield from _of_formula(opened, {token[1:]: "captured by the pattern" for token in bound})
        return
    yield from (Offer(token, "captured by the pattern", token) for token in bound if token.startswith(word))


def _captures(source: list[object]) -> Iterator[str]:
    """Return the tokens that insert the captures of a pattern."""
    for token in source:
        if isinstance(token, str) and token[:1] in ("$", "*"):
            yield token
        elif isinstance(token, str) and token[:1] == "~":
            yield from (f"${name}" for name in token[1:].partition("::")[0].split(",") if name.isidentifier())


def is_open(word: str) -> bool:
    """Whether a formula is open."""
    return "${" in word and "}" not in word[word.rfind("${") :]


def _open_formula(word: str) -> tuple[str, str] | None:
    """All that is typed before the last word of a formula, and that word; None outside of braces."""
    found = _OPEN.fullmatch(word) if is_open(word) else None
    return None if found is None else (found["head"], found["begun"])


def _of_formula(opened: tuple[str, str], captures: Mapping[str, str]) -> Iterator[Offer]:
    """Captures, and functions, that begin as typed; where a capture is whole, what closes its bracket."""
    head, begun = opened
    if begun in captures:
        inside = head[head.rfind("${") :]
        closing = ")" if inside.count("(") > inside.count(")") else "}"
        yield Offer(head + begun + closing, "the end", closing)
    for text, meta in captures.items():
        if text.startswith(begun):
            yield Offer(head + text, meta, text)
    for name, function in FUNCTIONS.items():
        if name.startswith(begun):
            yield Offer(f"{head}{name}(", f"a function, {function.usage}", f"{name}(")
