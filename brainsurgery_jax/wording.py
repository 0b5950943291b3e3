"""Numbers and lists of names in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def counted(number: int, thing: str) -> str:
    """`1 step`, `12 steps`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def quoted(text: str) -> str:
    """A text in quotes, as YAML reads it."""
    return "'" + text.replace("'", "''") + "'"


def few(names: Collection[str], most: int | None = 6) -> str:
    """The first names, and how many more there are. `most` None: all names."""
    shown = list(names)[:most]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f", and {more:,} more" if more else "")


def list_changes(names: Mapping[str, Collection[str]], most: int | None) -> str:
    """`created 2: a, b; deleted 1: c`, by what became of the names; kinds without names are left out."""
    return "; ".join(f"{word} {len(found):,}: {few(found, most)}" for word, found in names.items() if found)


def few_or_counted(names: Sequence[str], thing: str, most: int = 4) -> str:
    """The names where they are few, else how many there are."""
    if len(names) > most:
        return counted(len(names), thing)
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def show_side_files(names: Sequence[str], most: int = 12) -> str:
    """The names of side files, up to so many of them; and how many there are, where that is not seen at once."""
    shown = few_or_counted(names, "side file")
    if len(names) <= 4:
        return shown
    return f"{shown}: {', '.join(names[:most])}" + (" ..." if len(names) > most else "")
