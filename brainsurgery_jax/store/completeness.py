"""Which files of a folder form its checkpoint, and whether it is complete, as far as names and indexes show.

This is the only place that decides this, for the files of safetensors and of torch. An incomplete or ambiguous folder
is an error that names the files; what is not read for a good reason (an index lists others, another format or variant
of the same model) is a note. An index counts before names; a file without the mark of a variant counts before one with
it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.base import Note
from brainsurgery_jax.store.failures import os_failures
from brainsurgery_jax.store.folder import ADAPTER_CONFIG, is_weights, suffix_of
from brainsurgery_jax.store.index_files import Indexed, read_index
from brainsurgery_jax.store.weight_names import VARIANT, WeightFile, read_name
from brainsurgery_jax.wording import few

_NUMBERED = re.compile(r"(?P<stem>.+?)[-_.](?P<number>\d+)")
_INDEX = re.compile(
    rf"(?P<stem>.+?)(?:\.(?P<variant>{VARIANT}))?(?P<suffix>\.\w+)\.index(?:\.(?P<other>{VARIANT}))?\.json"
)
_ORIGINAL = "consolidated"
"""How the files of a model are called in the layout of its makers, which repositories keep beside that of the hub."""

_MODELS = ("model", "pytorch_model", _ORIGINAL)
"""Stock names of the weights of a model."""

_FEW = 6  # names in a message


class Chosen(NamedTuple):
    """The files of a checkpoint, how an index lists them, if one does, and notes on what is not read."""

    files: list[str]
    listed: Indexed | None = None
    notes: tuple[Note, ...] = ()


def is_index(name: str) -> bool:
    """Whether a file is the index of a sharded checkpoint, by its name."""
    return _INDEX.fullmatch(name) is not None


def choose(path: str, suffixes: Collection[str]) -> Chosen:
    """The files with these suffixes that a path means: a file, an index, or a folder. Raises StoreError."""
    if not os.path.isdir(path) and is_index(os.path.basename(path)):
        files, weight_map = read_index(path)
        return Chosen(files, Indexed(path, weight_map, named=True))
    if not os.path.isdir(path):
        return Chosen([path], notes=tuple(_note_lone_shard(path)))
    names = weight_names(path)
    files = [read_name(name) for name in names if suffix_of(name) in suffixes]
    index = _index_of(path, suffixes, files)
    chosen = _by_index(path, index, files) if index else _by_names(path, files)
    read = {os.path.relpath(file, path) for file in chosen.files}
    return chosen._replace(notes=(*chosen.notes, *_note_ignored(path, [name for name in names if name not in read])))


def weight_names(folder: str) -> list[str]:
    """The weight files at the top of a folder, of any format; what trainers keep beside a model is none."""
    with os_failures(folder, "list the folder"):
        names = sorted(os.listdir(folder))
    return [
        name
        for name in names
        if is_weights(name) and not name.startswith(".") and not os.path.isdir(os.path.join(folder, name))
    ]


def is_one(folder: str, suffixes: Collection[str], more: str = "") -> bool:
    """Whether a folder is read as one checkpoint of files with these suffixes, or would be with one `more`."""
    names = sorted({*weight_names(folder), more} - {""})
    files = [read_name(name) for name in names if suffix_of(name) in suffixes]
    try:
        return bool(files) and bool(_index_of(folder, suffixes, files) or _by_names(folder, files))
    except StoreError:
        return False


# --- By an index ------------------------------------------------------------------------------------------------------


def _index_of(folder: str, suffixes: Collection[str], files: Sequence[WeightFile]) -> str:
    """The name of the index that counts; empty if there is none."""
    found = [m for m in map(_INDEX.fullmatch, sorted(os.listdir(folder))) if m and m["suffix"] in suffixes]
    plain = [m for m in found if not (m["variant"] or m["other"])]
    several = [m[0] for m in plain if len(plain) == 1 or m["stem"] != _ORIGINAL]
    if not plain and not any(not file.variant for file in files):
        several = [m[0] for m in found]
    if len(several) > 1:
        remedy = f"Name the index of the one that you mean: {_or(folder, several)}."
        raise StoreError(folder, f"holds several indexes: {few(several)}", remedy=remedy)
    return "".join(several)


def _by_index(folder: str, name: str, files: Sequence[WeightFile]) -> Chosen:
    index = os.path.join(folder, name)
    listed, weight_map = read_index(index)
    names = {os.path.relpath(file, folder) for file in listed}
    like = {(file.stem, file.variant) for file in files if file.name in names}
    others = [file for file in files if file.name not in names and file.total is not None]
    unlisted = tuple(file.name for file in others if (file.stem, file.variant) in like)
    return Chosen(listed, Indexed(index, weight_map, unlisted=unlisted))


# --- By names alone ---------------------------------------------------------------------------------------------------


def _by_names(folder: str, files: Sequence[WeightFile]) -> Chosen:
    groups = _groups(files)
    stems = {stem for (stem, variant, _) in groups if not variant}
    groups = {key: group for key, group in groups.items() if not key[1] or key[0] not in stems}
    if any(stem != _ORIGINAL for stem, _, _ in groups):
        groups = {key: group for key, group in groups.items() if key[0] != _ORIGINAL}
    if not groups:
        raise StoreError(folder, "holds what a trainer keeps beside a model, but no model", remedy="Name a file of it.")
    if len(groups) > 1:
        firsts = [group[0].name for group in groups.values()]
        found = [_show(group) for group in groups.values()]
        remedy = f"Name the one that you mean: {_or(folder, firsts)}." + (
            " Of those that are cut into shards, move all others into another folder."
            if any(len(group) > 1 for group in groups.values())
            else ""
        )
        raise StoreError(folder, f"holds several checkpoints, and no index: {few(found)}", remedy=remedy)
    (group,) = groups.values()
    _check_complete(folder, group)
    return Chosen([os.path.join(folder, file.name) for file in group])


_Groups = dict[tuple[str, str, int | None], list[WeightFile]]


def _groups(files: Iterable[WeightFile]) -> _Groups:
    """Files that belong together by their names: shards of one total, files that are numbered without a gap, and each
    other file by itself."""
    groups: _Groups = {}
    for file in files:
        groups.setdefault((file.stem, file.variant, file.total), []).append(file)
    numbered: dict[str, list[str]] = {}
    for stem, variant, total in groups:
        if total is None and not variant and (match := _NUMBERED.fullmatch(stem)):
            numbered.setdefault(match["stem"], []).append(stem)
    for stem, stems in numbered.items():
        numbers = sorted(int(name.removeprefix(stem)[1:]) for name in stems)
        if len(stems) > 1 and numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            groups[stem, "", None] = [file for name in stems for file in groups.pop((name, "", None))]
    return groups


def _check_complete(folder: str, group: Sequence[WeightFile]) -> None:
    """Raises StoreError unless shards are all there, each once."""
    total = group[0].total
    if total is None:
        return
    alone = f"To read one file alone, name it: {_or(folder, [file.name for file in group])}."
    numbers = [file.number for file in group if file.number is not None]
    first = 0 if 0 in numbers and total not in numbers else 1  # some count from 0
    odd = [file.name for file in group if file.number is None or not first <= file.number < first + total]
    if odd:
        raise StoreError(folder, f"has no index, and holds {few(odd)}: no such shard is among {total}", remedy=alone)
    if lacks := [number for number in range(first, first + total) if number not in numbers]:
        names = ", ".join(group[0].sibling(number) for number in lacks[:_FEW]) + (" ..." if len(lacks) > _FEW else "")
        verb = "is" if len(lacks) == 1 else "are"
        problem = f"is incomplete: it has no index, and {len(lacks)} of {total} shards {verb} missing: {names}"
        raise StoreError(folder, problem, remedy=f"Fetch what is missing. {alone}")
    if twice := sorted(file.name for file in group if numbers.count(file.number or 0) > 1):
        raise StoreError(folder, f"has no index, and holds a shard twice: {few(twice)}", remedy=alone)


def _note_lone_shard(path: str) -> Iterable[Note]:
    """A note on a file that is one of several shards by its name, and is read alone."""
    shard = read_name(os.path.basename(path))
    if shard.total is None or shard.total < 2:
        return
    folder = os.path.dirname(path) or "."
    remedy = f"To read the whole checkpoint, name a folder with all {shard.total} shards of it alone."
    with suppress(StoreError):
        whole = choose(folder, (suffix_of(path),))
        if os.path.normpath(path) in map(os.path.normpath, whole.files):
            remedy = f"To read the whole checkpoint, name '{whole.listed.path if whole.listed else folder}'."
    yield Note("input-ignored", f"{path}: is one of {shard.total} shards, by its name; the others are not read", remedy)


def _show(group: Sequence[WeightFile]) -> str:
    if len(group) == 1:
        return group[0].name
    return f"{group[0].name} and {len(group) - 1} more of that name"


# --- Adapters ---------------------------------------------------------------------------------------------------------


def adapter_notes(folder: str, weights: str) -> tuple[Note, ...]:
    """What to say of a folder with an adapter in it. Raises StoreError if there is a model, too."""
    others = [name for name in weight_names(folder) if name != weights]
    models = [name for name in others if suffix_of(name) == ".safetensors" or read_name(name).stem in _MODELS]
    models = [name for name in models if read_name(name).stem != read_name(weights).stem]
    if models:
        index = [name for name in sorted(os.listdir(folder)) if is_index(name)]
        problem = f"holds an adapter, {weights}, and other weights: {few(models)}"
        remedy = f"Name the one that you mean: {_or(folder, [weights, *(index or models)])}."
        raise StoreError(folder, problem, remedy=remedy)
    below = [e.name for e in os.scandir(folder) if e.is_dir() and os.path.exists(os.path.join(e.path, ADAPTER_CONFIG))]
    return (*_note_ignored(folder, others), *_adapters_below(folder, sorted(below)))


def _adapters_below(folder: str, names: Sequence[str]) -> Iterable[Note]:
    if names:
        message = f"{folder}: adapters in folders below that are not read: {few(names)}"
        yield Note("input-ignored", message, f"To read one of them, name its folder: {_or(folder, names)}.")


# --- Words ------------------------------------------------------------------------------------------------------------


def _or(folder: str, names: Sequence[str]) -> str:
    paths = [f"'{os.path.join(folder, name)}'" for name in names[:_FEW]]
    return " or ".join(filter(None, [", ".join(paths[:-1]), paths[-1]]))


def _note_ignored(folder: str, names: Sequence[str]) -> Iterable[Note]:
    """A note on weight files beside those that are read."""
    if names:
        message = f"{folder}: weight files beside the checkpoint that are not read: {few(names)}"
        yield Note("input-ignored", message, f"To read one of them, name it: {_or(folder, names)}.")
