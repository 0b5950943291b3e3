"""Classify a user's regular expression: valid, one literal text, or at risk of endless backtracking."""

from __future__ import annotations

import re
import warnings
from itertools import accumulate, pairwise
from typing import NamedTuple

from brainsurgery_jax.select.error import RefError

# Ways in which so many repetitions without end can share a name of 100 characters, and how many ways in all, with those
# to choose between alternatives, take `re` milliseconds.
SHARINGS, MAX_WAYS = (1, 100, 5_000, 170_000), 1_000_000
# Pieces that exact counts may add, as `(ab){1000}` does: the guarded matcher writes them out one by one, and dies of
# some hundred thousand. No name is as long as that.
MAX_COPIES = 2000
MAX_TEXT = 100_000
# Groups within groups that the guarded matcher is given. Left to itself it stops where the stack ends, which depends on
# its caller and on libraries that change the limit.
MAX_NESTED = 100

# A regex piece by piece: an escape, a class, a bracket, a repetition, or a character.
PIECE = re.compile(
    r"""
      \\ (?P<escape> N\{ [^}]* \} | . )
    | (?P<klass> \[ \^? \]? (?: \\. | [^\]\\] )* \] )
    | \( (?P<open> \?: | \?P<\w+> | (?P<exotic> \? )? )
    | (?P<close> \) )
    | (?P<repeat> [*+?] | \{ (?!\}) (?P<low> [0-9]* ) (?P<comma> , [0-9]* )? \} )
    | (?P<char> . )
    """,
    re.VERBOSE | re.DOTALL,
)


class Scan(NamedTuple):
    """The result of one pass over a valid regex. `guarded` is the regex in a form that `regex` reads as `re` does."""

    literal: str | None
    safe: bool
    guarded: str


def check_regex(text: str) -> re.Pattern[str]:
    """Compile a regex. Raises RefError with the position of a mistake."""
    if len(text) > MAX_TEXT:
        message = f"'{text[:60]}...' is too long for a regular expression: {len(text):,} characters"
        raise RefError(
            "regex-syntax", message, f"At most {MAX_TEXT:,} are allowed; match the text that the names have in common."
        )
    try:
        with warnings.catch_warnings():  # of what may mean something else to Python some day
            warnings.simplefilter("ignore")
            compiled = re.compile(text)
    except (re.error, ValueError, OverflowError, RecursionError) as error:  # a count of 5000 digits is a ValueError
        message = f"'{text}' is not a regular expression: {_reason(error)}"
        raise RefError("regex-syntax", message, _syntax_hint(text)) from error
    if (copies := _copies(list(PIECE.finditer(text)))) > MAX_COPIES:
        message = f"'{text}' repeats something at least {copies:,} times, and no name is that long"
        raise RefError("regex-syntax", message, f"Counts may add up to {MAX_COPIES:,}; '+' allows any number.")
    return compiled


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def nesting(text: str) -> int:
    """How many groups of a valid regex are open at most."""
    steps = ((piece["open"] is not None) - (piece["close"] is not None) for piece in PIECE.finditer(text))
    return max(accumulate(steps), default=0)


def scan(text: str) -> Scan:
    """The facts about a regex that `check_regex` accepts."""
    pieces = list(PIECE.finditer(text))
    return Scan(_literal(pieces), _is_safe(pieces), "".join(map(_respell, pieces)))


def _syntax_hint(text: str) -> str:
    if text.startswith(("*", "+", "?")):
        return "'*' repeats the item before it; any text is '.*', a dot is '\\.'."
    return "Patterns are Python regular expressions over whole names; put a backslash before a special character."


def _literal(pieces: list[re.Match[str]]) -> str | None:
    """The only text that can match, if the regex is plain characters and escaped punctuation."""
    if not all(map(_is_plain, pieces)):
        return None
    return "".join(piece["escape"] or piece["char"] for piece in pieces)


def _is_plain(piece: re.Match[str]) -> bool:
    if piece["escape"] is not None:
        return not piece["escape"][0].isalnum()
    return piece["char"] is not None and piece["char"] not in ".^$|"


def _is_safe(pieces: list[re.Match[str]]) -> bool:
    """Whether `re` cannot explode: nothing nested is repeated, nothing refers back, and few choices remain."""
    if any(piece["exotic"] or _refers_back(piece) for piece in pieces):
        return False
    if any(left["close"] and right["repeat"] for left, right in pairwise(pieces)):
        return False
    unbounded = sum(map(_is_unbounded, pieces))
    return unbounded < len(SHARINGS) and _choices(pieces) * SHARINGS[unbounded] <= MAX_WAYS


def _choices(pieces: list[re.Match[str]]) -> int:
    """In how many ways optional parts and alternatives can be chosen."""
    ways, branches = 1, [1]
    for piece in pieces:
        if piece["open"] is not None:
            branches.append(1)
        elif piece["char"] == "|":
            branches[-1] += 1
        elif piece["close"]:
            ways *= branches.pop()
        elif piece["repeat"] == "?":
            ways *= 2
    return ways * branches[0]


def _copies(pieces: list[re.Match[str]]) -> int:
    """How many pieces there are more once everything stands as often as its count asks for at least."""
    sizes, last = [0], 0
    for piece in pieces:
        if piece["open"] is not None:
            sizes.append(0)
        elif piece["repeat"]:
            least = int(piece["low"]) if piece["low"] else 1
            sizes[-1] += last * max(least - 1, 0)
            last *= max(least, 1)
        else:
            last = sizes.pop() + 1 if piece["close"] else 1
            sizes[-1] += last
    return sizes[0] - sum(not piece["repeat"] and piece["open"] is None for piece in pieces)


def _refers_back(piece: re.Match[str]) -> bool:
    return (piece["escape"] or "") in tuple("123456789")


def _is_unbounded(piece: re.Match[str]) -> bool:
    return piece["repeat"] in ("*", "+") or piece["comma"] is not None


def _respell(piece: re.Match[str]) -> str:
    """The piece as `regex` must see it, which takes `{e<=1}` for fuzzy matching and `[[:alpha:]]` for a POSIX class."""
    if piece["char"] == "{":
        return r"\{"
    if piece["klass"]:
        return "[" + re.sub(r"\\.|\[", lambda m: r"\[" if m[0] == "[" else m[0], piece["klass"][1:], flags=re.DOTALL)
    return piece[0]
