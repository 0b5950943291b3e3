"""The natural order of names, in which numbers count by their size."""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"([0-9]+)")


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a key to sort names by, such that `a2` is before `a10`."""
    found: list[tuple[int, int, str]] = []
    for at, part in enumerate(_NUMBERS.split(text)):
        digits = part.lstrip("0")
        if part:
            found.append((0, len(digits), digits) if at % 2 else (1, 0, part))
    return found
