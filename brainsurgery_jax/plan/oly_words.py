"""The words of OLY: what ends a bare text, what value it has, how a text is quoted. See `plan/oly.py`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from brainsurgery_jax.plan.source import Plain, shorten

NAME = re.compile(r"[^\W\d][\w-]*")
KEY = re.compile(r"[^\W\d][\w-]*|\d+")
PAIR = re.compile(rf"(?:{KEY.pattern})[ \t]*:(?!:)")  # `base::x` is a reference, not the key `base`
UNWRITABLE = re.compile(r"[^\t\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
CLOSING = {"(": ")", "[": "]", "{": "}"}
ESCAPES = {
    "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b", '"': '"',
    "/": "/", "\\": "\\", " ": " ", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
MAX_DEPTH = 50  # brackets in brackets: reading recurses five calls a level

_WORDS: Mapping[str, Plain] = {
    "null": None, "NULL": None, "~": None, ".inf": math.inf, "-.inf": -math.inf, ".nan": math.nan,
}  # fmt: skip
_INT = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(?:[0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+|[0-9]+[eE][+-]?[0-9]+)")
_MAX_DIGITS = 1000  # Python itself refuses to read integers of 4300
_OPENING = {closing: opening for opening, closing in CLOSING.items()}


def bare_end(text: str, start: int) -> tuple[int, int | None]:
    """Where the bare text that starts here ends, and the place of a bracket in it that is never closed."""
    opened: dict[str, list[int]] = {"(": [], "[": [], "{": []}
    at = start
    while at < len(text):
        character = text[at]
        inside = any(opened.values())
        if character == "\\" and text[at + 1 : at + 2] in tuple("()[]{}\\" if inside else "([{\\"):
            at += 1
        elif not inside and character in ",]} \t":
            break
        elif not opened["["] or character in "[]":
            if character in opened:
                opened[character].append(at)
            elif character in _OPENING:
                del opened[_OPENING[character]][-1:]
        at += 1
    return at, next((places[0] for places in opened.values() if places), None)


def typed(text: str) -> Plain:
    """The value of a bare text: a number, a boolean or nothing if it looks like one, else the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if len(text) > _MAX_DIGITS:
        return text
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def written(value: object) -> str:
    """How a single value is written. Raises a ValueError for one that a line cannot say."""
    match value:
        case str():
            return value if _is_bare(value) else quoted(value)
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() if len(str(value)) <= _MAX_DIGITS:
            return str(value)
        case float() if math.isfinite(value):
            return repr(value)
        case float():
            return ".nan" if math.isnan(value) else f"{'-' * (value < 0)}.inf"
        case _:
            raise ValueError(f"one line cannot say {shorten(repr(value))}")


def quoted(text: str) -> str:
    """The text in single quotes; in double ones if it holds what must be escaped."""
    if any("\ud800" <= character <= "\udfff" or not ord(character) for character in text):
        raise ValueError(f"one line cannot say half a character or U+0000, as in {shorten(ascii(text))}")
    if not UNWRITABLE.search(text):
        return "'" + text.replace("'", "''") + "'"
    return '"' + UNWRITABLE.sub(_escape, re.sub(r'["\\]', r"\\\g<0>", text)) + '"'


def _is_bare(text: str) -> bool:
    """Whether the text reads back as itself without quotes, and reads well so."""
    if not text or text[0] in "[{'\",]}" or text.endswith(":") or UNWRITABLE.search(text):
        return False
    return bare_end(text, 0) == (len(text), None) and isinstance(typed(text), str)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    short = {"\n": "\\n", "\r": "\\r"}.get(found[0])
    return short or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
