"""Integer sums over captures, as in `layers.${i+4}` and `${n-1-i}`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from brainsurgery_jax.select.error import RefError

_SUM = re.compile(r"\s*[+-]?\s*\w+\s*(?:[+-]\s*\w+\s*)*")
_TERM = re.compile(r"([+-]?)\s*(\w+)")
# Far past any layer count, and safely below the length at which Python refuses to convert.
MAX_DIGITS = 18
SUM_HINT = "Between the braces write a capture, '+', '-' and whole numbers: '${i}', '${i+4}', '${n-1-i}'."

NUMBERS_HINT = "Digits are numbers here. Name the capture, as '(?P<i>[0-9]+)' or '~i::[0-9]+', and write '${i-1}'."


class Sum(NamedTuple):
    """A constant plus and minus captures: pairs of sign and position among the values."""

    text: str
    constant: int
    terms: tuple[tuple[int, int], ...]

    def of(self, values: Sequence[object]) -> str:
        """The sum over the captured values, in decimal."""
        result = self.constant
        for sign, at in self.terms:
            result += sign * self._integer(values[at])
        if result < 0:
            message = f"'${{{self.text}}}' gives {result} for the name '{values[0]}', and names count from 0"
            raise RefError("template-arithmetic", message, "Match fewer names, or correct the sum.")
        return str(result)

    def _integer(self, value: object) -> int:
        if isinstance(value, str) and is_integer(value):
            return int(value)
        message = f"'${{{self.text}}}' computes with the capture '{value}', which is not a whole number"
        raise RefError(
            "template-arithmetic", message, "Capture digits only: '(?P<i>[0-9]+)', or '~i::[0-9]+' in a list."
        )


def parse_sum(text: str, position: Callable[[str], int]) -> int | Sum:
    """The position of the one capture that the text names, or the sum that it spells.

    `position` gives a capture's place among the values, or raises a RefError.
    """
    if not _SUM.fullmatch(text):
        raise RefError("template-syntax", f"'${{{text}}}' is not a sum of captures", SUM_HINT)
    found = [(-1 if sign == "-" else 1, word) for sign, word in _TERM.findall(text)]
    terms = tuple((sign, position(word)) for sign, word in found if not word[0].isdigit())
    numbers = [(sign, word) for sign, word in found if word[0].isdigit()]
    if not terms or not all(is_integer(word) for _, word in numbers):
        hint = SUM_HINT if terms else NUMBERS_HINT
        raise RefError("template-syntax", f"'${{{text}}}' is not a sum of captures", hint)
    if len(found) == 1 and terms[0][0] == 1:
        return terms[0][1]
    return Sum(text, sum(sign * int(word) for sign, word in numbers), terms)


def is_integer(text: str) -> bool:
    """Whether a text is a whole number that names count with."""
    return text.isdecimal() and text.isascii() and len(text) <= MAX_DIGITS
