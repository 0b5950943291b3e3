"""An extension of griffe: examples in our docstrings start with `>>> ` and would be quotations to Markdown."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_PART = re.compile(r"(?<!\n)\n(?=\*\*(?:Arguments|Returns|Raises|Example|Reference)s?\*\*)")
_EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!$).*\n?)*)", re.MULTILINE)


class Examples(Extension):
    """Put examples, and what they print, into fences, and each part of a docstring into a paragraph."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of an object that griffe has read."""
        if obj.docstring:
            obj.docstring.value = fence(obj.docstring.value)


def fence(text: str) -> str:
    """A docstring with each example in a fence of Python, and paragraphs between its parts."""
    return _EXAMPLE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", _PART.sub("\n\n", text))
