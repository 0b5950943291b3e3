"""Searching what has a name and a description."""

from __future__ import annotations

from collections.abc import Mapping


def search_names(text: str, described: Mapping[str, str]) -> list[str]:
    """The names with all words of a text in the name or its description, in any case; those first that have them in
    the name."""
    words = text.lower().split()
    found = [name for name, about in described.items() if all(word in f"{name} {about}".lower() for word in words)]
    first = [name for name in found if all(word in name.lower() for word in words)]
    return list(dict.fromkeys((*first, *found))) if words else []
