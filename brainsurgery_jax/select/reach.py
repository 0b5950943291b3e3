r"""The way back from names to matches: which names a template could have made, and of what.

For the pattern `(.*)\.lora_A\.weight` and the template `\1.lora_B.weight` every `.*\.lora_B\.weight` is in reach, and
`x.lora_B.weight` belongs to a match `x.lora_A.weight`. Where a pattern is no sequence of texts and captures, the match
cannot be told, and a name is in reach if it looks like what the template makes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from brainsurgery_jax.select.error import RefError
from brainsurgery_jax.select.formula import Formula, is_integer
from brainsurgery_jax.select.pattern import Pattern, compile_pattern
from brainsurgery_jax.select.regexes import PIECE
from brainsurgery_jax.select.structured import Value, is_variable
from brainsurgery_jax.select.template import Part as TemplatePart
from brainsurgery_jax.select.template import Splice, Template

_SEGMENT, _SEGMENTS, _ANY = "[^.]*", r"(?:\.[^.]*)*", "(?:.*)"

# A text, or the position of a capture among (name, *binding).
Part = str | int


class Origin(NamedTuple):
    """A name that a template can create, and the name of the match that it would come from, if known."""

    name: str
    source: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Reach:
    """The names that a template can create from matches of a pattern. Created by `reach_of`."""

    pattern: Pattern
    template: Template
    regex: Pattern
    """Matches the names of the template: `c1` is capture 1, `f0` the number from the first formula."""
    formulas: tuple[Formula, ...]
    parts: tuple[Part, ...] | None
    """The parts of a name that the pattern matches; None if they are unknown."""

    def of(self, names: Collection[str]) -> list[Origin]:
        """Return the names in reach, sorted."""
        dotted = not isinstance(self.template.source, str)
        found = self.regex.matches([f".{name}" for name in names] if dotted else names)
        known = {name[dotted:]: self._source(name[dotted:], self._values(binding)) for name, binding in found}
        matched = dict(self.pattern.matches([source for source in known.values() if source is not None]))
        return [
            Origin(name, source)
            for name, source in known.items()
            if source is None or (source in matched and self._makes(source, matched[source], name))
        ]

    def _values(self, binding: Sequence[Value]) -> dict[int, str]:
        """The captured texts by their position; a run of segments with its dots."""
        found = {group: str(binding[at]) for group, at in self.regex.names.items()}
        values = {int(group[1:]): text for group, text in found.items() if group.startswith("c")}
        for at, formula in enumerate(self.formulas):
            if is_integer(found[f"f{at}"]) and (text := formula.inverse(int(found[f"f{at}"]))) is not None:
                values.setdefault(min(formula.places), text)
        return values

    def _source(self, name: str, values: Mapping[int, str]) -> str | None:
        """Return the name of the match with these captures; None if they do not determine it."""
        if 0 in values:
            return values[0]
        if self.parts is None or not all(isinstance(part, str) or part in values for part in self.parts):
            return None
        source = "".join(part if isinstance(part, str) else values[part] for part in self.parts)
        return source if isinstance(self.template.source, str) else source[1:]

    def _makes(self, source: str, binding: tuple[Value, ...], name: str) -> bool:
        try:
            return self.template.fill(source, binding) == name
        except RefError:
            return False


def reach_of(template: Template, pattern: Pattern) -> Reach:
    """Compute the reach of a template that is filled from matches of a pattern."""
    if isinstance(pattern.source, str):
        groups = _groups(pattern.source, pattern.width)
        parts = _regex_parts(pattern.source)
    else:
        groups = _variables(pattern)
        parts = _token_parts(pattern)
    return Reach(pattern, template, _compile(template, groups), _formulas(template), parts)


# --- The regex of what a template makes -------------------------------------------------------------------------------


def _compile(template: Template, groups: Mapping[int, str]) -> Pattern:
    text = _regex(template, groups)
    try:
        return compile_pattern(text)
    except RefError:  # a group cannot stand outside of its pattern: any text may take its place
        return compile_pattern(_regex(template, {}))


def _regex(template: Template, groups: Mapping[int, str]) -> str:
    seen: set[int] = set()
    numbers = iter(range(len(_formulas(template))))
    dot = "" if isinstance(template.source, str) else r"\."

    def regex_of(part: TemplatePart) -> str:
        match part:
            case str():
                return re.escape(part)
            case Formula():
                return f"(?P<f{next(numbers)}>[0-9]+)" if part.numeric else _ANY
        return _capture(part, groups.get(part, _ANY), seen)

    return "".join(
        _capture(piece.at, _SEGMENTS, seen) if isinstance(piece, Splice) else dot + "".join(map(regex_of, piece))
        for piece in template.pieces
    )


def _formulas(template: Template) -> tuple[Formula, ...]:
    """The formulas of a template that yield numbers."""
    parts = (part for piece in template.pieces if not isinstance(piece, Splice) for part in piece)
    return tuple(part for part in parts if isinstance(part, Formula) and part.numeric)


def _capture(at: int, text: str, seen: set[int]) -> str:
    if at in seen:
        return f"(?P=c{at})"
    seen.add(at)
    return f"(?P<c{at}>{text})"


# --- Regexes ----------------------------------------------------------------------------------------------------------


def _groups(source: str, width: int) -> Mapping[int, str]:
    """Return a regex for each group of a regex (0 is the whole), without groups that depend on their context."""
    if re.match(r"\(\?[aiLmsux]+\)", source):  # flags are for the whole
        return {}
    pieces = list(PIECE.finditer(source))
    texts: dict[int, str | None] = {0: _alone(pieces)}
    opened: list[tuple[int, int]] = []  # number of the group (0: none) and place of its first piece
    count = 0
    for at, piece in enumerate(pieces):
        if piece["open"] is not None:
            captures = piece["open"] == "" or piece["open"].startswith("?P<")
            count += captures
            opened.append((count if captures else 0, at + 1))
        elif piece["close"] and opened:
            number, first = opened.pop()
            if number:
                texts[number] = _alone(pieces[first:at])
    return {n: f"(?:{text})" for n, text in texts.items() if text is not None} if count == width else {}


def _alone(pieces: Sequence[re.Match[str]]) -> str | None:
    """Pieces as a regex without groups of its own; None if it refers to others, or to an end of the name."""
    texts: list[str] = []
    for piece in pieces:
        if (piece["escape"] or "") in tuple("123456789AZ") or piece["char"] in ("^", "$"):
            return None
        capturing = piece["open"] == "" or (piece["open"] or "").startswith("?P<")
        texts.append("(?:" if capturing else piece[0])
    text = "".join(texts)
    return None if re.search(r"\(\?(?:P=|\(|[aiLmsux-]+[:)])", text) else text


def _regex_parts(source: str) -> tuple[Part, ...] | None:
    """A regex as texts and groups, if it is a sequence of these; what looks around and matches nothing is passed by."""
    parts: list[Part] = []
    depth = count = 0
    passing = False  # inside of brackets at the top
    for piece in PIECE.finditer(source):
        if piece["open"] is not None:
            captures = piece["open"] == "" or piece["open"].startswith("?P<")
            count += captures
            if depth == 0:
                passing = True
                if captures:
                    parts.append(count)
                elif not re.match(r"\(\?(?:<?[=!])", source[piece.start() :]):
                    return None
            depth += 1
        elif piece["close"]:
            depth -= 1
            passing = depth > 0
        elif passing:
            continue
        elif (text := _literal(piece)) is None:
            return None
        else:
            parts.append(text)
    return tuple(parts)


def _literal(piece: re.Match[str]) -> str | None:
    """The text that a piece matches: empty for an end of the name; None if there are several."""
    if piece["escape"] is not None:
        if piece["escape"] in ("A", "Z"):
            return ""
        return None if piece["escape"][0].isalnum() else piece["escape"]
    if piece["char"] in ("^", "$"):
        return ""
    return None if piece["char"] in (None, ".", "|") else piece["char"]


# --- Lists of tokens --------------------------------------------------------------------------------------------------


def _variables(pattern: Pattern) -> Mapping[int, str]:
    """What each variable of one segment matches, as a regex."""
    texts = {1 + at: _SEGMENT for name, at in pattern.names.items() if name not in pattern.lists}
    for token in pattern.source:
        head, mark, body = token[1:].partition("::")
        if token[:1] == "~" and mark and is_variable(head) and "(" not in body:
            texts[1 + pattern.names[head]] = f"(?:{body})"
    return texts


def _token_parts(pattern: Pattern) -> tuple[Part, ...] | None:
    """Tokens as texts and captures, each with the dot before it; a run of segments has its dots itself."""
    return None if pattern.fault else _join(_token_part(token, pattern) for token in pattern.source)


def _join(found: Iterator[tuple[Part, ...] | None]) -> tuple[Part, ...] | None:
    parts: list[Part] = []
    for part in found:
        if part is None:
            return None
        parts.extend(part)
    return tuple(parts)


def _token_part(token: str, pattern: Pattern) -> tuple[Part, ...] | None:
    word = token[1:]
    match token[:1] if word else "":
        case "$":
            return ".", 1 + pattern.names[word]
        case "*":
            return (1 + pattern.names[word],)
        case "~":
            head, mark, body = word.partition("::")
            return (".", 1 + pattern.names[head]) if mark and is_variable(head) and "(" not in body else None
    return (f".{token}",)
