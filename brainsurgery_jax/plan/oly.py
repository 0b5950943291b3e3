"""OLY, a step on one line: `copy: from: h.(\\d+).w, to: x.\\1.w` is what `copy: {from: ..., to: ...}` is in YAML.

    line    = name [":" [payload]]           payload = pairs | value
    pairs   = key ":" value {"," key ":" value}
    value   = "[" [value {"," value}] "]" | "{" [pairs] "}" | 'text' | "text" | bare

A bare text ends before a blank, a comma and a closing `]` or `}`, but brackets inside it are kept whole with all that
they hold: `w::[:, 0]`, `h\\.(a|b){1,2}`. As in a regex, a backslash makes a bracket an ordinary character, and so do
square brackets around a round or a curly one. In single quotes a quote is written twice; in double quotes the
escapes of YAML hold. Beyond what the reference reads: payloads that are a text (`load: x.pt`, `load: base::x.pt`) or
a list, doubled quotes, `\\u0041`, quoted keys, numbers as keys, `.inf` and `.nan`. Refused here and not there: a
bracket that is never closed, and an unknown escape, whose backslash would get lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

from brainsurgery_jax.errors import Diagnostic, PlanError, Span
from brainsurgery_jax.plan.oly_words import (
    CLOSING,
    ESCAPES,
    HEX_DIGITS,
    KEY,
    MAX_DEPTH,
    NAME,
    PAIR,
    UNWRITABLE,
    bare_end,
    quoted,
    typed,
    written,
)
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, shorten

_BRACES = "A nested mapping needs braces, as in `assert: equal: {left: a, right: b}`."

T = TypeVar("T")


def parse_oly(text: str, file: str = "<line>", line: int = 1) -> Node:
    """Parse one line to the node of the same step in YAML. Raises PlanError with one mistake."""
    return _Line(text.rstrip("\r\n"), file, line).step()


def to_oly(step: object) -> str:
    """Write the line that reads back as this step: the name of an op, or a mapping of one to its payload.

    Raises a ValueError for what the form cannot say: other data, integers of over 1000 digits, half characters, U+0000.
    """
    if isinstance(step, str):
        return _key(step, NAME)
    if not isinstance(step, dict) or len(step) != 1:
        raise ValueError(f"a step is a name, or a mapping of one name to its payload, not {shorten(repr(step))}")
    ((name, payload),) = step.items()
    return f"{_key(name, NAME)}:{_payload(payload)}"


# --- Writing ----------------------------------------------------------------------------------------------------------


def _payload(payload: object) -> str:
    if payload is None:
        return ""
    if isinstance(payload, dict) and payload:
        return " " + _pairs(payload, 1)
    if isinstance(payload, str) and PAIR.match(payload):
        return " " + quoted(payload)
    return " " + _value(payload, 1)


def _value(value: object, depth: int) -> str:
    if isinstance(value, dict | list | tuple) and depth > MAX_DEPTH:
        raise ValueError(f"lists and mappings are nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        return "{" + _pairs(value, depth + 1) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join([_value(item, depth + 1) for item in value]) + "]"
    return written(value)


def _pairs(value: Mapping[object, object], depth: int) -> str:
    return ", ".join(f"{_key(key, KEY)}: {_value(inner, depth)}" for key, inner in value.items())


def _key(key: object, form: re.Pattern[str]) -> str:
    if not isinstance(key, str):
        raise ValueError(f"a key must be a text, not {shorten(repr(key))}")
    return key if form.fullmatch(key) else quoted(key)


# --- Reading ----------------------------------------------------------------------------------------------------------


class _Line:
    """A line being read; `at` is the place of the next character."""

    def __init__(self, text: str, file: str, line: int):
        self.text, self.file, self.line = text, file, line
        self.at = self.depth = 0

    def step(self) -> Node:
        if (bad := UNWRITABLE.search(self.text)) is not None:
            self.fail(f"the character U+{ord(bad[0]):04X} is not allowed in a line", _without(bad[0]), bad.start())
        self.blanks()
        if self.at_end:
            self.fail("the line is empty", "Write a step, such as `delete: target: tmp.*`.")
        name = self.name()
        self.blanks()
        if self.at_end:
            return name
        if not self.takes(":"):
            found = shorten(self.rest)
            keyed = found if ":" in found or name.text in ("help", "load", "save") else f"KEY: {found}"
            self.fail(f"a ':' is missing between '{name.text}' and '{found}'", f"Write `{name.text}: {keyed}`.")
        self.blanks()
        return Map(((name, Scalar(None, "", name.span) if self.at_end else self.payload(name.text)),), name.span)

    def name(self) -> Scalar:
        if self.next in ("'", '"'):
            return self.quote_scalar()
        found = NAME.match(self.text, self.at)
        if found is None or self.text[found.end() : found.end() + 1] not in ("", ":", " ", "\t"):
            word = self.word()
            hint = "Write the op first, as in `copy: from: a, to: b`."
            if word == "-":
                hint = "A line is one step: leave out the dash."
            self.fail(f"a step starts with the name of an op, but '{word}' is not an op", hint)
        return self.scalar_of(found)

    def payload(self, op: str) -> Node:
        start = self.at
        value = self.pairs("") if self.is_pair() else self.value(op)
        self.blanks()
        if not self.at_end:
            self.fail_unexpected(start)
        return value

    def is_pair(self) -> bool:
        """Whether a key and its colon stand here."""
        if self.next not in ("'", '"'):
            return PAIR.match(self.text, self.at) is not None
        start = self.at
        self.quote_scalar()
        self.blanks()
        found, self.at = self.next == ":", start
        return found

    def pairs(self, closing: str) -> Map:
        """Keys with values, up to the closing bracket, or to the end of the line where there is none."""
        span = self.span()
        entries: dict[str, tuple[Scalar, Node]] = {}
        for key, value in self.separate(self.pair, closing):
            if key.text in entries:
                message = f"the key '{key.text}' occurs twice, in column {entries[key.text][0].span.col} and here"
                self.fail(message, "Remove one of them.", key.span.col - 1)
            entries[key.text] = key, value
        return Map(tuple(entries.values()), span)

    def separate(self, item: Callable[[], T], closing: str) -> list[T]:
        """One item or more between commas, up to what ends them."""
        items = [item()]
        self.blanks()
        while self.takes(","):
            comma = self.at - 1
            self.blanks()
            if self.at_end or self.next == closing:
                self.fail("nothing follows this comma", "Remove it, or write the missing part after it.", comma)
            items.append(item())
            self.blanks()
        return items

    def pair(self) -> tuple[Scalar, Node]:
        key = self.key()
        self.blanks()
        if not self.takes(":"):
            before = f", before '{shorten(self.rest)}'" if self.rest else ""
            self.fail(f"the key '{key.text}' has no ':' behind it{before}", f"Write `{key.text}: VALUE`.")
        self.blanks()
        return key, self.value(key.text)

    def key(self) -> Scalar:
        if self.next in ("'", '"'):
            return self.quote_scalar()
        found = KEY.match(self.text, self.at)
        if found is None:
            hint = "Write `key: value`, with the key in quotes unless it is a plain word."
            self.fail(f"expected a key, but found {self.found()}", hint)
        return self.scalar_of(found)

    def value(self, owner: str) -> Node:
        """The value of a key or, as its payload, of an op."""
        if self.at_end or self.next in ",]}":
            hint = "Write a value: `null` for none, '' for an empty text."
            self.fail(f"'{owner}' needs a value, but found {self.found()}", hint)
        if self.next in ("[", "{"):
            return self.brackets(owner)
        return self.quote_scalar() if self.next in ("'", '"') else self.bare()

    def brackets(self, owner: str) -> List | Map:
        start, span, closing = self.at, self.span(), CLOSING[self.next]
        self.at += 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"lists and mappings are nested more than {MAX_DEPTH} deep", "Nest less deeply.", start)
        self.blanks()
        inside = not self.at_end and self.next != closing
        if closing == "}":
            node = Map(self.pairs(closing).entries if inside else (), span)
        else:
            node = List(tuple(self.separate(lambda: self.value(owner), closing)) if inside else (), span)
        if self.at_end:
            self.fail_unclosed(start)
        if not self.takes(closing):
            self.fail_unexpected(start)
        self.depth -= 1
        return node

    def bare(self) -> Scalar:
        start, span = self.at, self.span()
        self.at, opened = bare_end(self.text, start)
        if opened is not None:
            self.fail_unclosed(opened)
        text = self.text[start : self.at]
        return Scalar(typed(text), text, span)

    def quote_scalar(self) -> Scalar:
        span = self.span()
        text = self.single() if self.takes("'") else self.double()
        return Scalar(text, text, span)

    def single(self) -> str:
        start, self.at = self.at, self.at - 1
        while self.takes("'"):
            self.at = self.text.find("'", self.at) + 1
            if not self.at:
                self.fail(
                    "the quote ' opened here is never closed",
                    "Close it; inside, write a quote as ''.",
                    start - 1,
                )
        return self.text[start : self.at - 1].replace("''", "'")

    def double(self) -> str:
        start, parts = self.at, []
        self.at += 1
        while not self.takes('"'):
            if self.rest in ("", "\\"):
                self.fail('the quote " opened here is never closed', r"Close it; inside, write a quote as \".", start)
            parts.append(self.escape() if self.takes("\\") else self.next)
            self.at += 1
        return "".join(parts)

    def escape(self) -> str:
        """What an escape stands for; leaves `at` on its last character."""
        word, start = self.next, self.at - 1
        if word in ESCAPES:
            return ESCAPES[word]
        if word not in HEX_DIGITS:
            hint = rf"In single quotes a backslash is a backslash; in double quotes write it twice, '\\{word}'."
            self.fail(f"'\\{word}' is no escape", hint, start)
        width = HEX_DIGITS[word]
        digits = self.text[self.at + 1 : self.at + 1 + width]
        code = int(digits, 16) if re.fullmatch(rf"[0-9a-fA-F]{{{width}}}", digits) else -1
        if not (0 < code < 0xD800 or 0xDFFF < code <= 0x10FFFF):
            hint = rf"Write '\{word}' with the {width} hexadecimal digits of a character."
            self.fail(f"'\\{word}{digits}' stands for no character", hint, start)
        self.at += width
        return chr(code)

    @property
    def next(self) -> str:
        return self.text[self.at : self.at + 1]

    @property
    def rest(self) -> str:
        return self.text[self.at :]

    @property
    def at_end(self) -> bool:
        return self.at >= len(self.text)

    def blanks(self) -> None:
        while self.next in (" ", "\t"):
            self.at += 1

    def takes(self, character: str) -> bool:
        """Whether this character comes next, which is then passed."""
        found = self.next == character
        self.at += found
        return found

    def scalar_of(self, found: re.Match[str]) -> Scalar:
        """The plain word that was found here, which is then passed."""
        span, self.at = self.span(), found.end()
        return Scalar(found[0], found[0], span)

    def word(self) -> str:
        return re.split(r"[ \t,:\]}]", self.rest, maxsplit=1)[0]

    def found(self) -> str:
        return f"'{self.word() or self.next}'" if self.rest else "the end of the line"

    def span(self, at: int | None = None) -> Span:
        return Span(self.file, self.line, (self.at if at is None else at) + 1)

    def fail(self, message: str, hint: str, at: int | None = None) -> NoReturn:
        raise PlanError([Diagnostic("oly-syntax", message, self.span(at), hint)])

    def fail_unclosed(self, opened: int) -> NoReturn:
        bracket = self.text[opened]
        hint = f"Close it with '{CLOSING[bracket]}'; quote a text with an unbalanced bracket."
        self.fail(f"the '{bracket}' opened here is never closed", hint, opened)

    def fail_unexpected(self, start: int) -> NoReturn:
        """Refuse text where only a comma or the end is allowed; `start`: where the value before it begins."""
        before = self.text[start : self.at].rstrip()
        last = re.split(r"[ \t,{\[]", before)[-1]
        if self.next in ("]", "}"):
            hint = "Remove it, or quote the text that it belongs to."
            self.fail(f"this '{self.next}' closes nothing", hint)
        if last.endswith(":") and self.text[start] == "[":
            hint = f"Close the list with ']' before it, or put it in braces: {{{last} {self.word()}}}."
            self.fail(f"'{last} {self.word()}' is in the list opened in column {start + 1}", hint)
        if last.endswith(":"):
            self.fail(f"the text '{last}' is a value here, but {self.found()} follows it", _BRACES)
        if PAIR.match(self.text, self.at) is not None:
            self.fail(f"a comma is missing before {self.found()}", f"Write `{shorten(f'{before}, {self.rest}')}`.")
        if self.next == "#":
            self.fail(
                "a '#' does not start a comment here", "Remove the comment, or quote the text that it belongs to."
            )
        self.fail(f"'{shorten(self.rest)}' follows the value '{shorten(before)}'", self.after(before))

    def after(self, before: str) -> str:
        """Return the hint for a text that follows a complete value."""
        if self.next == ",":
            return "Write keys with their values, as in `copy: from: a, to: b`."
        if KEY.fullmatch(before):
            rest = shorten(self.rest)
            return f"Write `{before}: {rest}`; or, if it is one text, quote it: '{before} {rest}'."
        if before.endswith(("]", "}")) and self.text[self.at - 1] not in " \t":
            return "Quote a text that starts with a bracket, as in '[a-z]+'."
        return "Put a comma between two values, and quotes around a text with blanks."


def _without(character: str) -> str:
    if character in "\r\n":
        return r"A step is one line; write a line end as '\n', in double quotes."
    return r"Remove it, or write it as an escape, in double quotes: '\x07'."
