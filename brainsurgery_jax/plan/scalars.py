"""The values of unquoted texts in YAML 1.1, where `1e-6` is a number, and sexagesimals and dates are texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

Plain: TypeAlias = bool | int | float | str | None

_WORDS: Mapping[str, Plain] = {"": None, "~": None} | {
    spelling: value
    for words, value in (("null", None), ("true yes on", True), ("false no off", False))
    for word in words.split()
    for spelling in (word, word.title(), word.upper())
}
_INT = re.compile(r"[-+]?(?:0b_*[01][01_]*|0x_*[\da-fA-F][\da-fA-F_]*|0o?_*[0-7][0-7_]*|0_*|[1-9][\d_]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)", re.ASCII)
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAX_DIGITS = 1000  # far beyond any number in a plan; Python itself refuses to read integers of 4300


def read_scalar(text: str) -> Plain:
    """The value of an unquoted text: a number, a boolean or nothing if it looks like one, else the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _MAX_DIGITS:
        return text
    digits = text.replace("_", "")
    if _INT.fullmatch(text):
        return int(digits, _base(digits.lstrip("+-")))
    if _FLOAT.fullmatch(text):
        return float(digits)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _base(digits: str) -> int:
    named = {"0x": 16, "0b": 2, "0o": 8}.get(digits[:2])
    return named or (8 if digits.startswith("0") else 10)
