"""Which tensor fills which leaf of a tree, and what becomes of leaves and tensors without a counterpart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from brainsurgery_jax.apply.listening import Show, log
from brainsurgery_jax.apply.names import Named
from brainsurgery_jax.documents import Facts, Text

Missing = Literal["error", "keep"]
Extra = Literal["error", "ignore"]

BOX = ".value"
"""What older versions of Flax added to the names of variables that they saved."""

SHOWN = 8
"""Names that a logged line lists."""


class Filling(NamedTuple):
    """How a tree is filled. `missing`: a leaf for which there is no tensor is an error, or keeps its value. `extra`: a
    tensor for which there is no leaf is an error, or ignored. `listen` gets the list of what was taken."""

    missing: Missing = "error"
    extra: Extra = "error"
    listen: Show | None = None


EXACT = Filling()


def checked(filling: Filling) -> Filling:
    """The same. Raises ValueError for a word that is none of the choices."""
    if filling.missing not in ("error", "keep"):
        raise ValueError(f"missing: expected 'error' or 'keep', got {filling.missing!r}")
    if filling.extra not in ("error", "ignore"):
        raise ValueError(f"extra: expected 'error' or 'ignore', got {filling.extra!r}")
    return filling


class Matches(NamedTuple):
    """The tensor of each leaf that has one, leaves that have none, and tensors without a leaf. Streams of random
    numbers are passed over on both sides."""

    taken: Mapping[str, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]


def match(tree: Named, names: Collection[str], streams: Collection[str] = ()) -> Matches:
    """Match leaves and tensors by name. `streams`: names of leaves of random numbers, beside those of the tree."""
    passed = {*streams, *tree.streams}
    there = frozenset(names)
    found = {leaf: name for leaf in tree.tensors if (name := _name_of(leaf, there)) and leaf not in passed}
    missing = tuple(leaf for leaf in tree.tensors if leaf not in found and leaf not in passed)
    used = {*found.values(), *passed, *(stream + BOX for stream in passed)}
    return Matches(found, missing, tuple(name for name in names if name not in used))


def _name_of(leaf: str, names: Collection[str]) -> str:
    return next((name for name in (leaf, leaf + BOX) if name in names), "")


def report(call: str, filling: Filling, found: Matches) -> None:
    """Tell the listener what was taken, kept and ignored; without one, log what was kept and ignored."""
    if filling.listen is not None:
        lists = {"taken": tuple(found.taken), "kept": found.missing, "ignored": found.extra}
        filling.listen(Facts(call, tuple(lists.items())))
    elif found.missing or found.extra:
        parts = (f"{len(names)} {word}{_list(names)}" for word, names in _others(found) if names)
        log(Text(f"{call}: {len(found.taken)} leaves taken, {', '.join(parts)}"))


def _others(found: Matches) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return ("kept", found.missing), ("ignored", found.extra)


def _list(names: Collection[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in list(names)[:SHOWN])
    return f" ({shown}{', ...' if len(names) > SHOWN else ''})"
