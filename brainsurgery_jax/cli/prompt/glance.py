"""A line on what a text would do while it is still being typed, from headers alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from brainsurgery_jax.completion.partial import mended, place_of
from brainsurgery_jax.desk import COMMANDS
from brainsurgery_jax.op import OPS
from brainsurgery_jax.preview import Preview
from brainsurgery_jax.session import Session
from brainsurgery_jax.store.address import parse_address
from brainsurgery_jax.wording import few

Mood = Literal["good", "bad", "dim", ""]
SYNTAX = ("oly-syntax", "yaml-")
MOST = 4


def glance(text: str, session: Session) -> tuple[Mood, str]:
    """What a text would do as it stands, and whether that is good; nothing for an empty one."""
    word = text.strip().partition(" ")[0]
    if not word or word in COMMANDS:
        return ("dim", COMMANDS[word].does) if word else ("", "")
    if word == text.strip() and word not in OPS and ":" not in word:
        near = any(name.startswith(word) for name in (*OPS, *COMMANDS))
        return ("", "") if near else ("bad", f"there is no op '{word}'")
    if word.strip(":") == text.strip(" :") and (op := OPS.get(word.strip(":"))) is not None:
        return "dim", op.doc.partition("\n")[0]
    place = place_of(text)
    begun = place is not None and place.kind == "entry"  # a key, perhaps, of which more is to come
    for at, attempt in enumerate(mended(text.rstrip())):
        found = session.preview(attempt)
        if not any(d.code.startswith(SYNTAX) for d in found.problems):
            return _line(found, session, whole=at == 0 and not begun)
    return "", ""


def _line(found: Preview, session: Session, *, whole: bool) -> tuple[Mood, str]:
    missing = [d.message.rpartition("missing key ")[2].strip("'") for d in found.problems if d.code == "key-missing"]
    others = [d for d in found.problems if d.code != "key-missing"]
    if found.opens:
        there = [p for p in found.opens if os.path.exists(parse_address(p).path)]
        return ("good", f"opens {', '.join(there)}") if there else ("dim", f"there is no {found.opens[0]}")
    if others and whole:
        return "bad", others[0].message
    yet = "" if whole and not missing else " yet"
    parts = _effects(found, session.state.default_alias) or [
        _format_match(key, names, yet) for key, names in found.matches
    ]
    if missing:
        parts.append(f"still needs {' and '.join(missing)}")
    none = not found.created and any(not names for _, names in found.matches)
    return "dim" if yet else "bad" if none else "good", "; ".join(parts)


def _effects(found: Preview, default: str | None) -> list[str]:
    words = (("creates", found.created), ("changes", found.changed), ("deletes", found.deleted),
             ("configures", found.configured))  # fmt: skip
    told = [f"{does} {len(names):,}: {_few(names, default)}" for does, names in words if names]
    return told + [f"writes {path}" for path in found.writes]


def _format_match(key: str, names: Sequence[str], yet: str) -> str:
    return f"{key} matches {len(names):,}: {few(names, MOST)}" if names else f"{key} matches nothing{yet}"


def _few(names: Sequence[str], default: str | None) -> str:
    return few([n.removeprefix(f"{default}::") for n in names], MOST)
