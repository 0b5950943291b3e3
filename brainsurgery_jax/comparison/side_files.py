"""How the side files of two checkpoint folders differ: JSON by its keys, others by their bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.regular_files import read_regular
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.sidecars import find_side_files

_MOST = 80
"""Characters of a value that are shown."""

_ABSENT = ""


def side_file_gaps(left: str, right: str) -> dict[str, tuple[str, str]]:
    """What differs, by file or by file and key (`config.json: rope.theta`), each side in words, empty where it has no
    such thing. Nothing if not both are folders. Raises StoreError for what cannot be read."""
    if not (os.path.isdir(left) and os.path.isdir(right)):
        return {}
    ours, theirs = ({*find_side_files(folder).copied} for folder in (left, right))
    found: dict[str, tuple[str, str]] = {}
    for name in sorted(ours | theirs):
        a, b = (_read(folder, name) if name in names else None for folder, names in ((left, ours), (right, theirs)))
        if a != b:
            found |= _compare(name, a, b)
    return found


def _read(folder: str, name: str) -> bytes:
    path = Path(folder, name)
    with os_failures(str(path), "read it"):
        return read_regular(path)


def _compare(name: str, a: bytes | None, b: bytes | None) -> dict[str, tuple[str, str]]:
    """The differences of two files of one name, of which there may be only one."""
    if a is None or b is None:
        return {name: tuple(_ABSENT if x is None else f"{len(x):,} bytes" for x in (a, b))}  # pyright: ignore[reportReturnType]
    left, right = _flatten(a), _flatten(b)
    if left is None or right is None:
        return {name: (f"{len(a):,} bytes", f"{len(b):,} other bytes")}
    keys = [key for key in dict.fromkeys((*left, *right)) if left.get(key) != right.get(key)]
    return {f"{name}: {key}": (left.get(key, _ABSENT), right.get(key, _ABSENT)) for key in keys}


def _flatten(data: bytes) -> dict[str, str] | None:
    """The values of a JSON object, as JSON, by their keys, those of objects within it joined by dots; None for
    anything else, and for what is too large to be a config."""
    if len(data) > 1 << 20:
        return None
    try:
        table = parse_json(data)
    except ValueError:
        return None
    if not isinstance(table, dict):
        return None
    found: dict[str, str] = {}
    waiting = [("", table)]
    while waiting:
        head, part = waiting.pop()
        for key, value in part.items():
            if isinstance(value, dict) and value:
                waiting.append((f"{head}{key}.", value))
            else:
                found[head + key] = json.dumps(value, ensure_ascii=False)
    return found


def shorten(text: str) -> str:
    """A value on one line of a report; `nothing` for one that is not there."""
    return text if 0 < len(text) <= _MOST else f"{text[:_MOST]}..." if text else "nothing"
