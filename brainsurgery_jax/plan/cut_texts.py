"""Texts that were split at a comma: `{expr: maximum(a, b), to: c}` is YAML for the keys `expr`, `b)` and `to`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple


class CutText(NamedTuple):
    """A text with a bracket that keys without a value close: its key, those keys, and the text as it was meant."""

    key: str
    rest: tuple[str, ...]
    whole: str

    @property
    def quoted(self) -> str:
        """Return the key and the text with correct quotes."""
        return f"{self.key}: '{self.whole.replace(chr(39), chr(39) * 2)}'"


def cut_texts(given: Mapping[str, object], known: Collection[str]) -> Iterator[CutText]:
    """Find the texts of a mapping that were split at a comma; `known` are its keys."""
    keys = list(given)
    for at, key in enumerate(keys):
        if key not in known or not isinstance(whole := given[key], str) or _open(whole) <= 0:
            continue
        for end in range(at + 1, len(keys)):
            if keys[end] in known or given[keys[end]] is not None:
                break
            whole += f", {keys[end]}"
            if _open(whole) == 0:
                yield CutText(key, tuple(keys[at + 1 : end + 1]), whole)
                break


def _open(text: str) -> int:
    return text.count("(") - text.count(")")
