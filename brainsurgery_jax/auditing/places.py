"""Where a plan says names, slices and numbers: the places at which errors are planted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from brainsurgery_jax.auditing.cases import Case, Path, key_of, leaves

_NO_REFERENCES = frozenset({"expr", "let", "path", "dtype", "recipe", "name", "method"})
_SLICE = re.compile(r"^(.*)::(\[[^\[\]]*\])$", re.DOTALL)
WORD = re.compile(r"(?<![\\\w])[A-Za-z]\w*(?=$|\\\.|\.|\(|\)|\|)")
"""A literal part of a name within a pattern."""
NUMBER = re.compile(r"(?<![\w\\{,\[])\d+(?=$|\\\.|\.|\)|\|)")
"""A number of a layer within a pattern or a template."""


class Reference(NamedTuple):
    """A reference at a place of a step: alias (with its mark, or empty), pattern or template, and slice or empty."""

    step: int
    path: Path
    alias: str
    pattern: str
    slice: str

    @property
    def text(self) -> str:
        """As the plan writes it."""
        return f"{self.alias}{self.pattern}{self.slice}"

    def put(
        self, case: Case, *, alias: str | None = None, pattern: str | None = None, slice: str | None = None
    ) -> Case:
        """The case with another alias, pattern or slice here."""
        changed = ((alias, self.alias), (pattern, self.pattern), (slice, self.slice))
        return case.put(self.step, self.path, "".join(own if new is None else new for new, own in changed))


def references(case: Case) -> Iterator[Reference]:
    """The references of all steps that are no asserts."""
    for at, op, _ in case.edits():
        for path, leaf in leaves(case.steps[at][op], (op,)):
            if isinstance(leaf, str) and not _NO_REFERENCES & set(map(str, path[1:])) and _is_reference(leaf, case):
                yield _read(at, path, leaf)


def _is_reference(text: str, case: Case) -> bool:
    if "/" in text or " " in text.partition("::[")[0]:
        return False
    return "::" in text or "\\" in text or any(text in stand_in.avals for stand_in in case.stand_ins.values())


def _read(at: int, path: Path, text: str) -> Reference:
    sliced = _SLICE.match(text)
    body, slice_ = (sliced[1], f"::{sliced[2]}") if sliced else (text, "")
    alias, mark, pattern = body.rpartition("::")
    return Reference(at, path, alias + mark, pattern, slice_)


def names_of(case: Case, alias: str) -> tuple[str, ...]:
    """The names that an alias begins with: of that input, without an alias of the only one; else of all."""
    wanted = alias.removesuffix("::")
    paths = [path for own, path in case.inputs if own == wanted or (not wanted and len(case.inputs) == 1)]
    keys = [key_of(path) for path in paths] or list(case.stand_ins)
    return tuple(dict.fromkeys(n for key in keys if key in case.stand_ins for n in case.stand_ins[key].avals))


def matches(pattern: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names that a pattern matches; none for what is no pattern."""
    found = _compile(pattern)
    return () if found is None else tuple(name for name in names if found(name))


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> Callable[[str], object] | None:
    try:
        return re.compile(pattern).fullmatch
    except re.error:
        return None
