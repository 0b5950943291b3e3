"""Sizes in bytes as people write and read them; units are powers of 1024."""

from __future__ import annotations

import re
from functools import lru_cache
from operator import index
from typing import SupportsIndex

_UNITS = ("B", "KB", "MB", "GB", "TB")


def parse_size(text: str) -> int | None:
    """The bytes in `5GB`, `500 mb` or `2GiB`; None for `none`. ValueError says what is wrong with anything else."""
    word = text.strip()
    if word.lower() == "none":
        return None
    match = re.fullmatch(r"([0-9]{1,18})\s*(?:([kmgt])i?)?b", word, re.IGNORECASE)
    if match is None:
        raise ValueError(
            f"expected a size such as 5GB or 500MB, or none; got '{text}'. "
            "Write a whole number and a unit: B, KB, MB, GB or TB (powers of 1024)."
        )
    number = int(match[1]) << (10 * " KMGT".index((match[2] or " ").upper()))
    if not number:
        raise ValueError(f"a size must be more than zero, got '{text}'. To switch the limit off, write none.")
    return number


def read_size(size: int | str | None, name: str) -> int | None:
    """The bytes of the argument `name` of a call, which are given as such or as a text; None for none.

    Raises TypeError and ValueError.
    """
    if size is None:
        return None
    if isinstance(size, str):
        try:
            return parse_size(size)
        except ValueError as bad:
            raise ValueError(f"{name}={size!r}: {bad}") from None
    if isinstance(size, bool) or not isinstance(size, SupportsIndex):
        raise TypeError(f"{name} takes a number of bytes or a text, got {size!r}. Write {name}='5GB'.")
    if index(size) <= 0:
        raise ValueError(f"{name} must be more than zero, got {size}. Write {name}='5GB', or leave it out.")
    return index(size)


@lru_cache(maxsize=4096)  # the tensors of a large checkpoint have few sizes
def show_size(nbytes: int) -> str:
    """A size for messages, such as `1.5 GB`; the inverse of `parse_size` up to rounding."""
    power = min(max(nbytes.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    number = nbytes / (1 << 10 * power)
    return f"{number:.{0 if power == 0 else 1}f} {_UNITS[power]}"
