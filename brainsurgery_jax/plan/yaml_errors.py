"""Explain YAML syntax errors to people who write plans: the traps of the language, in plain English.

libyaml and PyYAML word the same mistake differently, so each trap is one pattern over both wordings.
"""

from __future__ import annotations

import re
from string import Template
from typing import NamedTuple

import yaml

from brainsurgery_jax.errors import Diagnostic, Span


class _Trap(NamedTuple):
    """One common mistake. `$char` is the character at the error; `$open` and `$line` are where its context began."""

    pattern: str
    message: str
    hint: str
    at_open: bool = False
    code: str = "yaml-syntax"


_CLOSE = "Close it, or quote the bracket if it belongs to a text."
_LINE_UP = "Line up the keys of a mapping and the dashes of a list; quote a text as a whole, such as '[a-z]+'."

LESS_DEEP = "Nest less deeply."
BY_EIGHT_DIGITS = r'Write characters beyond U+FFFF as themselves, or with eight digits: "\U0001f600".'

# Tried from the top, each against "CONTEXT: PROBLEM: CHAR"; CHAR is `end` behind the last character of the file.
_TRAPS = (
    _Trap(
        r"\t$",
        "there is a tab where YAML allows only spaces",
        "Indent, and separate a key from its value, with spaces.",
    ),
    _Trap(r"nesting depth", "lists and mappings are nested too deeply", LESS_DEEP, code="yaml-too-large"),
    _Trap(r"start any token", "a text cannot start with '$char'", "Put it into single quotes."),
    _Trap(r"an alias", "'*' starts a YAML alias, and no name follows it", "Quote a text that starts with *.", True),
    _Trap(r"an anchor", "'&' starts a YAML anchor, and no name follows it", "Quote a text that starts with &.", True),
    _Trap(r"Unicode character escape", "an escape in this text is not a character", BY_EIGHT_DIGITS),
    _Trap(
        r"escape|hexadecimal|hexdecimal",
        "this backslash escape is not one that double quotes know",
        r"Use single quotes, in which a backslash is just a backslash: 'h\.0'.",
    ),
    _Trap(
        r"quoted scalar",
        "the quote $open opened here is never closed",
        "Close it; a single quote inside single quotes is written twice: 'it''s'.",
        True,
    ),
    _Trap(r"a flow (mapping|sequence).*end$", "the '$open' opened here is never closed", _CLOSE, True),
    _Trap(r"flow.*end$", "the file ends inside a { or [ that is never closed", _CLOSE),
    _Trap(
        r"a flow (mapping|sequence)",
        "'$char' is not allowed here, inside the '$open' opened in line $line",
        "Inside { } and [ ], quote a text that contains any of { } [ ] , or ': '; or close the bracket first.",
    ),
    _Trap(
        r"found unexpected ':'",
        "a ':' is not allowed in an unquoted text here",
        "Quote references as a whole: 'wte.weight::[0, :8]'.",
    ),
    _Trap(
        r"node content",
        "a value cannot start with '$char'",
        "Quote a text that starts with it; or remove an extra comma or bracket.",
    ),
    _Trap(
        r"mapping values",
        "a key is not allowed in this place",
        "Quote a text that contains ': '; line up the keys of a mapping; "
        "give the line above its ':' if it starts with a key.",
    ),
    _Trap(
        r"sequence entries",
        "a list cannot start on this line",
        "Put '- ' on a line of its own, or write a list as [a, b].",
    ),
    _Trap(
        r"simple key",
        "this line is neither 'key: value' nor '- item'",
        "Is the ':' missing, or the space behind it? Or is the line above a text that should go on, and not indented?",
        True,
    ),
    _Trap(
        r"block scalar",
        "'|' and '>' start a block of text on the next line",
        "Quote a text that starts with | or >.",
        True,
    ),
    _Trap(r"a block (mapping|collection)", "this does not continue what starts in line $line", _LINE_UP),
    _Trap(
        r"directive|incompatible YAML",
        "a line that starts with '%' is a YAML directive",
        "Remove it, or quote the text.",
        True,
    ),
    _Trap(r"document start", "this does not continue the lines above it", _LINE_UP),
    _Trap(
        r"\btag\b", "'!' starts a YAML tag, and plans have none", "Quote a text that starts with !.", True, "yaml-tag"
    ),
)


_NO_COLON = re.compile(r"\s*(?:- +)?(?P<key>\w+)(?::(?=[{\[])| +(?=\{))(?P<bracket>.)")
"""A line whose key lacks the colon, or the space behind it, before a mapping or list in brackets."""


class _MissingColon(NamedTuple):
    """The key, where its colon belongs (line and column from 0), and what follows it."""

    key: str
    place: tuple[int, int]
    value: str


_LINE_END = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")  # those of YAML 1.1; str.splitlines knows more


def explain_yaml_error(error: yaml.YAMLError, text: str, file: str) -> Diagnostic:
    """The diagnostic of a syntax error: its place, what is wrong in a plan writer's words, and what to do."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return Diagnostic("yaml-syntax", f"this is not YAML: {' '.join(str(error).split())}", Span(file))
    lines = _LINE_END.split(text)
    problem = _place(error.problem_mark, lines)
    opened = problem if error.context_mark is None else _place(error.context_mark, lines)
    if "flow" not in str(error.context) and (missing := _find_missing_colon(lines, problem[0])) is not None:
        message = f"the key '{missing.key}' is not followed by ': '"
        return Diagnostic(
            "yaml-syntax", message, _span(file, missing.place), f"Write `{missing.key}: {missing.value}`."
        )
    char = _char(lines, *problem)
    wording = f"{error.context}: {error.problem}: {char or 'end'}"
    trap = next((t for t in _TRAPS if re.search(t.pattern, wording)), None)
    if trap is None:
        return Diagnostic("yaml-syntax", f"this is not YAML: {error.problem}", _span(file, problem))
    words = {"char": char, "open": _char(lines, *opened), "line": opened[0] + 1}
    place = _span(file, opened if trap.at_open else problem)
    return Diagnostic(trap.code, Template(trap.message).substitute(words), place, trap.hint)


def _find_missing_colon(lines: list[str], at: int) -> _MissingColon | None:
    """The key without its colon on the line of an error or on the line above it, which YAML takes for a text."""
    for line in (at, at - 1):
        if line >= 0 and (found := _NO_COLON.match(lines[line])) is not None:
            value = "{...}" if found["bracket"] == "{" else "[...]"
            return _MissingColon(found["key"], (line, found.end("key")), value)
    return None


def _span(file: str, place: tuple[int, int]) -> Span:
    return Span(file, place[0] + 1, place[1] + 1)


def _place(mark: yaml.Mark, lines: list[str]) -> tuple[int, int]:
    """Line and column from 0; libyaml puts the end of a file on a line of its own, which may not be there."""
    return (mark.line, mark.column) if mark.line < len(lines) else (len(lines) - 1, len(lines[-1]))


def _char(lines: list[str], line: int, column: int) -> str:
    """The character at a place; a line end if the place is behind the line, nothing if behind the text."""
    if column < len(lines[line]):
        return lines[line][column]
    return "\n" if line < len(lines) - 1 else ""
