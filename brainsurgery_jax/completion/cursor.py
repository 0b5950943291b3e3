"""The position of the end of a text that is still being typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["key", "value", "entry", "after"]
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position of the end of a text.

    - `kind`: in a key of the mapping at `path`; in a value, that of `path`; at an entry, where a value may stand or a
      key of a mapping without braces; after a whole value.
    - `path`: keys and positions from the name of the op down; empty where the name itself is typed.
    - `word` begins at `start` and goes to the end; `quote` is the quote before it, if it is in one.
    - `given` is what was read of the step so far, `yaml` tells whether it is YAML, and `depth` how many brackets are
      open there.
    """

    kind: Kind
    path: Path
    start: int
    word: str = ""
    quote: str = ""
    given: object = None
    yaml: bool = False
    depth: int = 0

    def value(self, path: Path) -> object:
        """What was read so far at a path; None where nothing was."""
        found = self.given
        for part in path:
            if isinstance(found, dict):
                found = found.get(part)
            elif isinstance(found, list) and isinstance(part, int) and part < len(found):
                found = found[part]
            else:
                return None
        return found
