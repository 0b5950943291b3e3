r"""Formulas in templates: the text between the braces of `layers.${i+4}` and `${replace(\1, ".", "_")}`.

The value is what Python would compute. The grammar:

    formula  =  sum [":" "0" WIDTH "d"]                   at least WIDTH digits, `${i:02d}`
    sum      =  product (("+" | "-") product)*
    product  =  factor (("*" | "//" | "%") factor)*
    factor   =  ("+" | "-")* atom
    atom     =  NUMBER | CAPTURE | FUNCTION "(" sum ("," TEXT)* ")" | "(" sum ")"

A capture is `name`, `\1` or `\g<name>`; a text is in single or double quotes. Numbers are whole, their size is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from brainsurgery_jax.errors import did_you_mean
from brainsurgery_jax.select.error import RefError
from brainsurgery_jax.select.structured import Value

# Beyond any name, and short enough that a plan which doubles all names in every step ends soon.
MAX_NAME = 4096
# Far past any layer count, and safely below the length at which Python refuses to convert.
MAX_DIGITS = 18
# Products of captures may be longer.
MAX_RESULT_DIGITS = 36
MAX_FORMULA = 1000
MAX_DEPTH = 20

FORMULA_HINT = (
    "Between the braces write captures, whole numbers, + - * // % and parentheses, replace(x, 'old', 'new'), lower(x), "
    "upper(x), and ':03d' at the end for leading zeros: '${i+4}', '${n-1-i}', '${i:02d}'."
)
NUMBERS_HINT = r"Digits are numbers here. A group of the pattern is '\1', or its name: '${\1-1}', '${i-1}'."

Node = Callable[[Sequence[Value]], "str | int"]
Operator = Callable[[int, int], int]
Position = Callable[[str, bool], int]
"""Look up the index of a capture among the values by name or number; the flag allows a run of segments."""


class Formula(NamedTuple):
    """A compiled formula.

    `numeric`: the result is a number of at least `width` digits. `capture`: the formula is only the capture at this
    index. `places`: the indices of all captures in it.
    """

    text: str
    node: Node
    numeric: bool
    width: int = 0
    capture: int | None = None
    places: frozenset[int] = frozenset()

    def of(self, values: Sequence[Value]) -> str:
        """Evaluate the formula for the values (name, *binding), as a part of a name."""
        found = self.evaluate(values)
        if self.numeric and int(found) < 0:
            message = f"'${{{self.text}}}' gives {int(found)} for the name '{values[0]}', and names count from 0"
            raise RefError("template-arithmetic", message, "Match fewer names, or correct the formula.")
        return found

    def evaluate(self, values: Sequence[Value]) -> str:
        """Evaluate the formula for the values (name, *binding); a number may be negative."""
        try:
            found = self.node(values)
            return f"{_integer(found):0{self.width}d}" if self.numeric else str(found)
        except RefError as bad:
            raise RefError(bad.code, f"'${{{self.text}}}' {bad.message}, for the name '{values[0]}'", bad.hint) from bad

    def inverse(self, number: int) -> str | None:
        """Return the value of its only capture for which it yields this number; None if it is unknown."""
        try:
            first, second, third = (_integer(self.node([str(n)] * (max(self.places) + 1))) for n in range(3))
        except RefError:
            return None
        slope = second - first
        linear = len(self.places) == 1 and slope and third - second == slope
        return str((number - first) // slope) if linear else None


def parse_formula(text: str, position: Position) -> Formula:
    """Parse a formula. Raises RefError; so does `position` for a missing capture."""
    return _Parser(text, position).formula()


def is_integer(text: str) -> bool:
    """Whether a text is an integer as it occurs in names."""
    return text.isdecimal() and text.isascii() and len(text) <= MAX_DIGITS


# --- Values -----------------------------------------------------------------------------------------------------------


def _integer(value: str | int) -> int:
    if isinstance(value, int):
        return value
    if is_integer(value):
        return int(value)
    message = f"computes with '{value}', which is not a whole number"
    raise RefError("template-arithmetic", message, "Capture digits only: '(?P<i>[0-9]+)', or '~i::[0-9]+' in a list.")


def _guard_zero(operator: Operator) -> Operator:
    def divide(a: int, b: int) -> int:
        if b == 0:
            raise RefError("template-arithmetic", "divides by 0", "Match fewer names, or correct the formula.")
        return operator(a, b)

    return divide


_OPERATORS: Mapping[str, Operator] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": _guard_zero(lambda a, b: a // b),
    "%": _guard_zero(lambda a, b: a % b),
}


def _apply_chain(first: Node, steps: Sequence[tuple[Operator, Node]], values: Sequence[Value]) -> int:
    found = _integer(first(values))
    for operator, node in steps:
        found = operator(found, _integer(node(values)))
        if abs(found) >= 10**MAX_RESULT_DIGITS:
            message = f"gives a number of more than {MAX_RESULT_DIGITS} digits"
            raise RefError("template-arithmetic", message, "Match fewer names, or correct the formula.")
    return found


def _replace(text: str, old: str, new: str) -> str:
    if len(text) + text.count(old) * (len(new) - len(old)) > MAX_NAME:
        hint = f"A template may create names of at most {MAX_NAME:,} characters."
        raise RefError("template-length", f"gives a text of more than {MAX_NAME:,} characters", hint)
    return text.replace(old, new)


class FormulaFunction(NamedTuple):
    """A function of formulas: its usage, its further arguments, and its implementation."""

    usage: str
    texts: tuple[str, ...]
    of: Callable[..., str]


FUNCTIONS: Mapping[str, FormulaFunction] = {
    "replace": FormulaFunction("replace(x, 'old', 'new')", ("the text to replace", "the text to put there"), _replace),
    "lower": FormulaFunction("lower(x)", (), str.lower),
    "upper": FormulaFunction("upper(x)", (), str.upper),
}


# --- Parsing ----------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s* (?:
      (?P<number> [0-9]+ )
    | \\ (?P<group> [1-9][0-9]? )
    | \\ g < (?P<named> [0-9]{1,6} | [^\W\d]\w* ) >
    | (?P<word> [^\W\d]\w* )
    | (?P<text> '[^']*' | "[^"]*" )
    | (?P<format> : .* )
    | (?P<operator> // | [-+*%(),] )
    )""",
    re.VERBOSE | re.DOTALL,
)
_FORMAT = re.compile(r":\s*0([1-9][0-9]?)d\s*")


class _Token(NamedTuple):
    """A token of a formula, its kind, and its start, counted from 1."""

    kind: str
    text: str
    at: int


class _Term(NamedTuple):
    """A part of a formula. `numeric`: the result is a number. `capture`: it is only this capture."""

    node: Node
    numeric: bool = False
    capture: int | None = None


class _Parser:
    """Reads one formula from left to right."""

    def __init__(self, text: str, position: Position):
        self.source, self.position = text, position
        self.depth = self.calls = self.at = 0
        self.places: set[int] = set()
        if len(text) > MAX_FORMULA:
            message = f"'${{{text[:40]}...' has {len(text):,} characters between its braces"
            raise RefError("template-length", message, f"A formula has at most {MAX_FORMULA:,} characters.")
        self.tokens = list(self.read())

    def read(self) -> Iterator[_Token]:
        place, end = 0, len(self.source.rstrip())
        while place < end:
            found = _TOKEN.match(self.source, place)
            if found is None:
                rest = self.source[place:].lstrip()
                raise self.wrong(f"'{rest[0]}' has no meaning at character {len(self.source) - len(rest) + 1}")
            kind = str(found.lastgroup)
            yield _Token(kind, found[kind], found.start(kind) + 1)
            place = found.end()
        yield _Token("end", "", end + 1)

    def wrong(self, what: str, hint: str = FORMULA_HINT) -> RefError:
        return RefError("template-syntax", f"'${{{self.source}}}' is not a formula: {what}", hint)

    def expect(self, what: str) -> RefError:
        found = {"end": "the end", "text": f"the text {self.next.text}"}.get(self.next.kind, f"'{self.next.text}'")
        return self.wrong(f"expected {what} at character {self.next.at}, found {found}")

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def sees(self, *kinds: str) -> bool:
        """Whether the next token is of one of these kinds."""
        return self.next.kind in kinds

    def take(self, *operators: str) -> str:
        """The next token, if it is one of these operators; else nothing."""
        if not self.sees("operator") or self.next.text not in operators:
            return ""
        self.at += 1
        return self.tokens[self.at - 1].text

    def need(self, operator: str, what: str = "") -> None:
        if not self.take(operator):
            raise self.expect(f"'{operator}'" + what)

    def formula(self) -> Formula:
        term, width = self.sum(), 0
        if self.sees("format"):
            width = self.width()
        elif not self.sees("end"):
            raise self.expect("an operator")
        if not self.places:
            raise self.wrong("it contains no capture", NUMBERS_HINT)
        capture = None if width else term.capture
        return Formula(self.source, term.node, term.numeric or width > 0, width, capture, frozenset(self.places))

    def width(self) -> int:
        found = _FORMAT.fullmatch(self.next.text)
        if found is None:
            raise self.expect("how many digits, such as ':03d',")
        return int(found[1])

    def sum(self) -> _Term:
        return self.chain(("+", "-"), self.product)

    def product(self) -> _Term:
        return self.chain(("*", "//", "%"), self.factor)

    def chain(self, operators: tuple[str, ...], part: Callable[[], _Term]) -> _Term:
        """Parts between operators of one precedence, from left to right."""
        first = part()
        steps: list[tuple[Operator, Node]] = []
        while operator := self.take(*operators):
            steps.append((_OPERATORS[operator], part().node))
        return _Term(lambda values: _apply_chain(first.node, steps, values), numeric=True) if steps else first

    def factor(self) -> _Term:
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        atom = self.atom()
        return _Term(lambda values: -_integer(atom.node(values)), numeric=True) if negative else atom

    def atom(self) -> _Term:
        token = self.next
        if self.take("("):
            return self.parentheses(self.sum)
        if self.sees("number") and is_integer(token.text):
            self.at += 1
            number = int(token.text)
            return _Term(lambda _: number, numeric=True)
        if self.sees("word") and self.tokens[self.at + 1].text == "(":
            return self.call(token.text)
        if self.sees("word", "group", "named"):
            return self.capture(token.text)
        raise self.expect("a capture or a number" if not self.sees("number") else f"at most {MAX_DIGITS} digits")

    def capture(self, word: str) -> _Term:
        self.at += 1
        place = self.position(word, self.calls > 0)
        self.places.add(place)
        return _Term(lambda values: _join_run(values[place]), capture=place)

    def parentheses(self, inner: Callable[[], _Term]) -> _Term:
        """Parse the rest of a parenthesised expression, after the opening parenthesis."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.wrong(f"more than {MAX_DEPTH} parentheses are open at character {self.next.at}")
        term = inner()
        self.need(")")
        self.depth -= 1
        return term

    def call(self, name: str) -> _Term:
        function = FUNCTIONS.get(name)
        if function is None:
            hint = f"There are: {', '.join(f.usage for f in FUNCTIONS.values())}."
            raise self.wrong(f"there is no function '{name}'.{did_you_mean(name, FUNCTIONS)}", hint)
        self.at, self.calls = self.at + 2, self.calls + 1
        term = self.parentheses(lambda: self.apply(function))
        self.calls -= 1
        return term

    def apply(self, function: FormulaFunction) -> _Term:
        """Parse the arguments of a function: any term, then literal texts."""
        term = self.sum()
        texts = [self.text(what, empty=at > 0) for at, what in enumerate(function.texts)]
        return _Term(lambda values: function.of(str(term.node(values)), *texts))

    def text(self, what: str, *, empty: bool) -> str:
        self.need(",", f" and {what}")
        text = self.next.text[1:-1]
        if not self.sees("text") or not (text or empty):
            raise self.expect(f"{what}, in quotes,")
        self.at += 1
        return text


def _join_run(value: Value) -> str:
    """A captured text; of a captured run the segments with their dots."""
    return value if isinstance(value, str) else ".".join(value)
