r"""Templates: names of destinations from the captures of a pattern (`h.\1`, `[h, $i]`, `layers.${i+4}`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.select.error import RefError, shown
from brainsurgery_jax.select.formula import FORMULA_HINT, MAX_NAME, Formula, parse_formula
from brainsurgery_jax.select.pattern import Binding, Pattern
from brainsurgery_jax.select.structured import is_variable

# Text, the position of a capture among (name, *binding), or a formula of captures.
Part = str | int | Formula

_BRACES = r"""\{ (?P<formula> (?: [^}'"] | '[^']*' | "[^"]*" )* ) (?P<end> \} )?"""

_REGEX_ESCAPE = re.compile(
    rf"""
      \\ (?P<backslash> \\ )
    | \\? \$ {_BRACES}
    | \\ (?P<octal> 0 | [0-7]{{3}} )
    | \\ (?P<number> [1-9][0-9]? )
    | \\ g < (?P<group> [0-9]{{1,6}} | [^\W\d]\w* ) >
    | \\ (?P<bad> g<[^>]*>? | . | \Z )
    """,
    re.VERBOSE | re.DOTALL,
)
_STRUCTURED_ESCAPE = re.compile(rf"\\? \$ {_BRACES}", re.VERBOSE | re.DOTALL)
TOKENS_HINT = "Write '$x' for a segment, '*xs' for a run of segments, and '${x}' within text."


@dataclass(frozen=True, slots=True)
class Splice:
    """A run of segments, at this position among (name, *binding)."""

    at: int


Piece = tuple[Part, ...] | Splice


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A compiled template. `literal` is its only possible name, None if the name depends on captures.

    `render` creates the name from a source name and its binding; it joins the `pieces` with dots.
    """

    source: str | tuple[str, ...]
    literal: str | None
    render: Callable[[str, Binding], str]
    pieces: tuple[Piece, ...]

    def fill(self, name: str, binding: Binding) -> str:
        """Return the destination's name for a source `name` and its binding."""
        if self.literal is not None:
            return self.literal
        filled = self.render(name, binding)
        if len(filled) > MAX_NAME:
            message = f"the template {shown(self.source)} gives a name of {len(filled):,} characters for '{name}'"
            raise RefError(
                "template-length", message, f"A template may create names of at most {MAX_NAME:,} characters."
            )
        if not filled:
            message = f"the template {shown(self.source)} gives an empty name for '{name}'"
            raise RefError("template-empty", message, "Add text to it, or match fewer names.")
        return filled

    def number(self, name: str, binding: Binding) -> str:
        """What a template of a formula alone gives where it makes no name: its number may be negative."""
        match self.pieces:
            case ((Formula() as formula,),):
                return formula.evaluate((name, *binding))
        return self.fill(name, binding)

    def fill_all(self, matches: Sequence[tuple[str, Binding]]) -> list[str]:
        """Return the names for several sources and their bindings."""
        if self.literal is not None:
            return [self.literal] * len(matches)
        render = self.render
        filled = [render(name, binding) for name, binding in matches]
        if not all(filled) or max(map(len, filled), default=0) > MAX_NAME:
            return [self.fill(name, binding) for name, binding in matches]  # which refuses one of them
        return filled


def compile_template(target: str | tuple[str, ...], pattern: Pattern) -> Template:
    """Compile a template and check it against the pattern's captures. Both must be text, or both lists of tokens."""
    if isinstance(target, str) != isinstance(pattern.source, str):
        message = f"the pattern {shown(pattern.source)} and the template {shown(target)} are of different kinds"
        hint = "Write both as text (a regex and its replacement), or both as lists of tokens."
        raise RefError("kinds-differ", message, hint)
    if isinstance(target, str):
        pieces = (_merge_texts(_regex_parts(target, pattern)),)
    else:
        pieces = _pieces([_segment(token, pattern) for token in target])
    match pieces:
        case ((),):
            raise RefError("template-empty", "the template is empty", "Write the name of the destination.")
        case ((str(text),),):
            return Template(target, text, lambda _name, _binding: text, pieces)
        case (tuple(parts),) if not any(isinstance(part, Formula) for part in parts):
            return Template(target, None, _formatter(parts, pattern.width), pieces)
        case _:
            return Template(target, None, partial(_fill, pieces), pieces)


def _formatter(parts: tuple[Part, ...], width: int) -> Callable[[str, Binding], str]:
    """The parts as one format operation, twice as fast as a join: a plan may fill 100,000 names. Where they are all
    captures in their order, as they mostly are, a binding is what is formatted."""
    form = "".join(part.replace("%", "%%") if isinstance(part, str) else "%s" for part in parts)
    places = [part for part in parts if isinstance(part, int)]
    if places == list(range(1, width + 1)):
        return lambda _, binding: form % binding
    pick = itemgetter(*places)
    return lambda name, binding: form % pick((name, *binding))


def _fill(pieces: tuple[Piece, ...], name: str, binding: Binding) -> str:
    values = name, *binding
    return ".".join([text for piece in pieces if (text := _text(piece, values)) is not None])


def _text(piece: Piece, values: Sequence[Any]) -> str | None:
    """The piece's text; None for a run of no segments, which leaves no dot behind.

    Positions were checked when compiling: in a Splice they lead to runs, elsewhere to text.
    """
    if isinstance(piece, Splice):
        run = values[piece.at]
        return ".".join(run) if run else None
    return "".join([p if isinstance(p, str) else values[p] if isinstance(p, int) else p.of(values) for p in piece])


def _regex_parts(target: str, pattern: Pattern) -> Iterator[Part]:
    if (dollar := re.search(r"\$(\d)", target)) is not None:
        message = f"'{target}': a capture is written \\{dollar[1]}, not ${dollar[1]}"
        raise RefError(
            "template-syntax", message, "Write \\1 for the first group of the pattern, \\g<name> for a named one."
        )
    place = 0
    for escape in _REGEX_ESCAPE.finditer(target):
        yield target[place : escape.start()]
        yield _regex_part(escape, target, pattern)
        place = escape.end()
    yield target[place:]


def _regex_part(escape: re.Match[str], target: str, pattern: Pattern) -> Part:
    match escape.lastgroup:
        case "backslash":
            return "\\"
        case "number" | "group":
            return _group(escape["number"] or escape["group"], target, pattern)
        case "end" | "formula":
            return _formula(escape, target, pattern)
        case "octal":
            hint = r"'\g<0>' is the whole name, '\g<10>' group 10, '\g<1>0' group 1 followed by a 0."
        case _:
            hint = (
                r"A template is not a pattern: a dot is just '.', a group is '\1' or '\g<name>', a backslash is '\\'."
            )
    raise RefError("template-syntax", f"the template '{target}' has a bad escape, '{escape[0]}'", hint)


def _group(word: str, target: str, pattern: Pattern) -> int:
    if not word.isdigit():
        return _variable(word, target, pattern)
    if int(word) <= pattern.width:
        return int(word)
    message = f"the template '{target}' asks for group {word}; the pattern {shown(pattern.source)} has {pattern.width}"
    raise RefError("template-group", message, r"Put the part to keep in parentheses: 'h\.(.*)' and 'x.\1'.")


def _formula(escape: re.Match[str], target: str, pattern: Pattern) -> int | Formula:
    if escape["end"] is None:
        quoted = target.startswith(("'", '"'), escape.end())
        what = "quote that is not closed" if quoted else "'${' without its '}'"
        raise RefError("template-syntax", f"the template '{target}' has a {what}", FORMULA_HINT)
    formula = parse_formula(escape["formula"], partial(_capture_place, target=target, pattern=pattern))
    return formula if formula.capture is None else formula.capture


def _capture_place(word: str, run: bool, *, target: str, pattern: Pattern) -> int:
    """The place of the capture that a word of a formula names, among the values."""
    if not word.isdigit():
        return _position(word, target, pattern) if run else _variable(word, target, pattern)
    if not isinstance(pattern.source, str):
        message = f"'{target}' asks for group {word}, and a list of tokens has no groups"
        raise RefError("template-group", message, "Capture it by name: '$x', '~x::REGEX'; and write 'x' here.")
    return _group(word, target, pattern)


def _pieces(segments: Sequence[Piece]) -> tuple[Piece, ...]:
    """The segments, with everything between two splices joined to one piece."""
    pieces: list[Piece] = []
    for segment in segments:
        before = pieces[-1] if pieces else None
        if isinstance(before, tuple) and isinstance(segment, tuple):
            pieces[-1] = _merge_texts((*before, ".", *segment))
        else:
            pieces.append(segment)
    return tuple(pieces)


def _segment(token: str, pattern: Pattern) -> Piece:
    sigil, word = token[0], token[1:]
    if not word or sigil not in "*~$" or token.startswith("${"):
        return _merge_texts(_token_parts(token, pattern))
    if sigil == "~":
        message = f"'{token}' is a regex; a template cannot match, only name what was captured"
        raise RefError("template-syntax", message, TOKENS_HINT)
    if not is_variable(word):
        raise RefError("template-syntax", f"'{token}': '{word}' is not the name of a variable", TOKENS_HINT)
    return Splice(_list(word, token, pattern)) if sigil == "*" else (_variable(word, token, pattern),)


def _token_parts(token: str, pattern: Pattern) -> Iterator[Part]:
    place = 0
    for escape in _STRUCTURED_ESCAPE.finditer(token):
        yield token[place : escape.start()]
        yield _formula(escape, token, pattern)
        place = escape.end()
    yield token[place:]


def _variable(word: str, target: str, pattern: Pattern) -> int:
    """The place of one captured text among the values."""
    if word in pattern.lists:
        message = f"'{target}' needs one segment, but '{word}' holds a run of segments"
        hint = f"Write '*{word}' as a token of its own, or capture one segment with '${word}'."
        raise RefError("template-kind", message, hint)
    return _position(word, target, pattern)


def _list(word: str, target: str, pattern: Pattern) -> int:
    """The place of a captured run of segments among the values."""
    if word in pattern.names and word not in pattern.lists:
        message = f"'{target}' needs a run of segments, but '{word}' holds one segment"
        raise RefError("template-kind", message, f"Write '${word}', or capture a run with '*{word}'.")
    return _position(word, target, pattern)


def _position(word: str, target: str, pattern: Pattern) -> int:
    if word in pattern.names:
        return pattern.names[word] + 1
    if pattern.fault is not None:  # the malformed token would have captured it: name the cause, not the effect
        raise RefError(*pattern.fault.args)
    message = f"'{target}' asks for '{word}', which the pattern {shown(pattern.source)} does not capture"
    known = ", ".join(pattern.names) or "nothing by name"
    how = f"(?P<{word}>...)" if isinstance(pattern.source, str) else f"${word}"
    hint = f"It captures {known}; to capture '{word}' write '{how}'.{did_you_mean(word, pattern.names)}"
    raise RefError("template-group", message, hint)


def _merge_texts(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts with neighbouring texts joined, and without empty ones."""
    merged: list[Part] = []
    for part in parts:
        before = merged[-1] if merged else None
        if isinstance(part, str) and isinstance(before, str):
            merged[-1] = before + part
        elif part != "":
            merged.append(part)
    return tuple(merged)
