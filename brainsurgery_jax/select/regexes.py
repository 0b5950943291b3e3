"""What a user's regular expression is: valid, one literal text, or a thing that might backtrack for ever."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from brainsurgery_jax.select.error import RefError

# With at most this much freedom a name of 100 characters takes `re` milliseconds in the worst case.
MAX_UNBOUNDED, MAX_CHOICES = 3, 10

_PIECE = re.compile(
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
    """What one pass over a valid regex tells. `guarded` spells the regex so that `regex` reads it as `re` does."""

    literal: str | None
    safe: bool
    guarded: str


def check_regex(text: str) -> re.Pattern[str]:
    """The compiled regex, or a RefError that says at which position it breaks."""
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        message = f"'{text}' is not a regular expression: {str(error) or 'nested too deeply'}"
        raise RefError("regex-syntax", message, _syntax_hint(text)) from error


def scan(text: str) -> Scan:
    """The facts about a regex that `check_regex` accepts."""
    pieces = list(_PIECE.finditer(text))
    return Scan(_literal(pieces), _is_safe(pieces), "".join(map(_guarded, pieces)))


def _syntax_hint(text: str) -> str:
    if text.startswith(("*", "+", "?")):
        return "'*' repeats what stands before it; any text is '.*', a dot is '\\.'."
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
    choices = sum(piece["repeat"] == "?" or piece["char"] == "|" for piece in pieces)
    return choices <= MAX_CHOICES and sum(map(_is_unbounded, pieces)) <= MAX_UNBOUNDED


def _refers_back(piece: re.Match[str]) -> bool:
    return (piece["escape"] or "") in tuple("123456789")


def _is_unbounded(piece: re.Match[str]) -> bool:
    return piece["repeat"] in ("*", "+") or piece["comma"] is not None


def _guarded(piece: re.Match[str]) -> str:
    """The piece as `regex` must see it, which takes `{e<=1}` for fuzzy matching and `[[:alpha:]]` for a POSIX class."""
    if piece["char"] == "{":
        return r"\{"
    if piece["klass"]:
        return "[" + re.sub(r"\\.|\[", lambda m: r"\[" if m[0] == "[" else m[0], piece["klass"][1:], flags=re.DOTALL)
    return piece[0]
