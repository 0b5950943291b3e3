"""Writing orbax checkpoints from memory maps, through orbax's own API: restorable by plain orbax, old and new.

orbax is told neither to copy the arrays nor to compress them, so that they go from the maps to the files and nothing of
them is ever held. With compression or chunks, it holds what it makes of them until that is written, and so gets them
in groups.

Of several processes each saves its tensors as a checkpoint of its own, and the first saves the tree without them. It
puts what each wrote into a folder of the tree, and has orbax merge these, as it does for processes that save together.

A `v1` checkpoint has its tree in the folder `state`, where the older API can restore it, too; in a `v0` checkpoint the
tree lies at the top, where the older API looks for it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.json_text import parse_json
from brainsurgery_jax.store.base import WriteOptions
from brainsurgery_jax.store.failures import check_unicode
from brainsurgery_jax.store.key_paths import NOTES, BoxKey, KeyNotes, Path, clash, path_of
from brainsurgery_jax.store.key_tree import JAX, NUMPY, PLAIN, KeyTree, LeafType, holds_type, nest
from brainsurgery_jax.store.leftovers import remove
from brainsurgery_jax.store.orbax.apart import work_apart
from brainsurgery_jax.store.orbax.folder import CHECKPOINT, MANIFEST, STATE, mark_boxes, place_of
from brainsurgery_jax.store.orbax.leaf_types import mark_types
from brainsurgery_jax.store.orbax.source import OrbaxSource

if TYPE_CHECKING:
    import numpy as np

GROUP = 64 << 20
"""Bytes of tensors that are saved at a time where orbax compresses or cuts them, and so holds what it makes of them."""

_FREED = 32 << 20
"""Bytes that threads of orbax keep of what they free."""

DATA_FILE = 128 << 20
"""Bytes of a data file, after which the next one is begun, so that one is written while the next is filled. As large as
the largest tensor at least: orbax would cut it in pieces, and copy it for that."""

_LACKING = ("uint4", "uint2", "float8_e4m3")
"""Narrow types of JAX that tensorstore has no word for."""

_OF_FIRST = "ocdbt.process_0"
"""How orbax calls the folder of what the first process wrote, or all in a run of one."""

_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
_PATTERN = "*?["  # orbax takes the path for a pattern when it joins what its processes wrote, and finds nothing
_INDICATOR = "orbax.checkpoint"  # the file that marks a checkpoint of the second API


def check(path: str, avals: Mapping[str, Aval], options: WriteOptions) -> None:
    """Raises StoreError for the first tensor that an orbax checkpoint cannot hold, or for a path that orbax cannot."""
    if found := next((c for c in os.path.abspath(path) if c in _PATTERN), None):
        remedy = "Write to another folder, and move the checkpoint afterwards."
        raise StoreError(path, f"orbax cannot write below a folder with '{found}' in its name", remedy=remedy)
    for name, aval in avals.items():
        if not aval.size:
            remedy = "Write safetensors instead, or leave it out: it holds nothing."
            raise StoreError(path, f"orbax cannot store {aval}, which has no elements", tensor=name, remedy=remedy)
        narrow = options.tree.types.get(name, PLAIN).stored
        if aval.dtype.numpy is None or narrow in _LACKING:
            found = narrow or aval.dtype
            raise StoreError(path, f"orbax has no dtype {found}", tensor=name, remedy="Write safetensors instead.")
        if "" in name.split("."):
            raise StoreError(path, "a key of the tree would be empty", tensor=name, remedy="Rename it.")
    check_unicode(path, [*avals, *options.metadata, *options.metadata.values()])
    if two := clash({path_of(name, {}): name for name in avals}):
        problem = f"is the prefix of '{two[1]}': a tree cannot hold a tensor and more below it"
        raise StoreError(path, problem, tensor=two[0], remedy="Rename one of the two.")


def held_bytes(avals: Mapping[str, Aval], options: WriteOptions) -> int:
    """The most bytes that `encode` holds: nothing of tensors that are stored as they are; else those of a group twice,
    in chunks and as they are stored."""
    if not avals or not _in_groups(options):
        return 0
    leaves = ((options.tree.path(name), SimpleNamespace(nbytes=aval.nbytes)) for name, aval in avals.items())
    sizes = [size for _, size in _units(nest(leaves), ())]
    return 2 * max(min(GROUP, sum(sizes)), *sizes) + _FREED


def _in_groups(options: WriteOptions) -> bool:
    """Whether orbax makes something of the tensors."""
    return any(map(options.options.get, ("compression", "chunk")))


def encode(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Writes a checkpoint into the folder `path`."""
    work_apart(path, partial(_encode, path, arrays, options))


def encode_part(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Writes the tensors of one of several processes into a folder of its own in the folder `path`."""
    if arrays:
        part = _part(path, options.process)
        os.mkdir(part)
        work_apart(part, partial(_encode_part, part, arrays, options))


def merge_parts(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Makes a checkpoint of what several processes have written into the folder `path`. Of `arrays`, shape and dtype
    count."""
    work_apart(path, partial(_merge_parts, path, arrays, options))


def _part(path: str, process: int) -> str:
    return os.path.join(path, f"part-{process}")


def _encode(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    made = os.path.join(path, "saving")
    types = _types(arrays, options.tree)
    tree = nest([*_tensors(arrays, types, options.tree), *_others(options.tree)])
    custom = _custom(options.metadata, options.tree, arrays)
    with _orbax_failures(path), _context(options.options, _largest(arrays)):
        _save(made, tree, custom, in_groups=_in_groups(options))
    _complete(path, made, arrays, options)


def _encode_part(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Saves tensors as a flat checkpoint: under which keys orbax stores them depends on their paths alone."""
    found = _tensors(arrays, _types(arrays, options.tree), options.tree)
    flat = {place_of(leaf): value for leaf, value in found}
    with _orbax_failures(os.path.dirname(path)), _context(options.options, _largest(arrays)):
        _save(os.path.join(path, "saving"), flat, {}, in_groups=_in_groups(options))


def _merge_parts(path: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    import numpy as np

    made = os.path.join(path, "saving")
    state = os.path.join(made, STATE)
    tree = nest([*((options.tree.path(name), np.zeros(1)) for name in arrays), *_others(options.tree)])
    with _orbax_failures(path), _context(options.options, 0):
        _save(made, tree, _custom(options.metadata, options.tree, arrays), in_groups=False)
        for name in (MANIFEST, "d", _OF_FIRST):
            remove(os.path.join(state, name))
        for process in range(options.processes):
            _take_part(_part(path, process), state, process)
        _merge_stores(state)
    _complete(path, made, arrays, options)


def _take_part(part: str, state: str, process: int) -> None:
    """Moves what a process wrote, and would have called that of the first, into the folder of the tree."""
    written = os.path.join(part, "saving", STATE)
    if os.path.isdir(written):  # some may have no tensors
        for name in os.listdir(written):
            if name.startswith(_OF_FIRST):  # and something behind it where groups are saved
                target = name.replace(_OF_FIRST, f"{_OF_FIRST[:-1]}{process}", 1)
                os.rename(os.path.join(written, name), os.path.join(state, target))
        remove(part)


def _merge_stores(folder: str) -> None:
    """Has orbax make one table of what lies in the folders of several processes; their data stay there."""
    from etils import epath
    from orbax.checkpoint import type_handlers

    context = type_handlers.get_ts_context(use_ocdbt=True)
    merge: Any = type_handlers.merge_ocdbt_per_process_files
    asyncio.run(merge(epath.Path(folder), context, use_zarr3=True))


@contextmanager
def _orbax_failures(path: str) -> Iterator[None]:
    """A block in which tensorstore may fail; an OSError is told by the caller."""
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError) as error:
        problem = f"could not be written, and nothing was published: {str(error).splitlines()[0]}"
        raise StoreError(path, problem, remedy="If the disk is full, write to another disk.") from error


def _largest(arrays: Mapping[str, np.ndarray]) -> int:
    return max((array.nbytes for array in arrays.values()), default=0)


def _complete(path: str, made: str, arrays: Mapping[str, np.ndarray], options: WriteOptions) -> None:
    """Puts what orbax has made in the folder `path`, when it is whole and says of what type its leaves are."""
    types = _types(arrays, options.tree)
    places = {place_of(options.tree.path(name)): name for name in arrays}
    _refuse_incomplete(made, arrays)
    shapes = {place: arrays[name].shape for place, name in places.items()}
    mark_types(os.path.join(made, STATE), {place: types[name] for place, name in places.items()}, shapes)
    if options.options.get("version") == "v0":
        _lift(made)
    for name in os.listdir(made):
        os.rename(os.path.join(made, name), os.path.join(path, name))
    os.rmdir(made)


def _types(arrays: Mapping[str, np.ndarray], tree: KeyTree) -> dict[str, LeafType]:
    """The types of all leaves. A leaf of unknown type is an array of JAX if all other arrays are."""
    holders = {kind.holder for kind in tree.types.values()}
    usual = JAX if JAX in holders and NUMPY not in holders else ""
    found = {n: holds_type(tree.types.get(n, PLAIN), a.shape, a.dtype.name) for n, a in arrays.items()}
    return {n: kind._replace(holder=JAX if kind.key else kind.holder or usual) for n, kind in found.items()}


def _refuse_incomplete(path: str, arrays: Mapping[str, Any]) -> None:
    """Raises StoreError unless what was written lists every tensor as it is."""
    source = OrbaxSource(path)
    for name, array in arrays.items():
        info = source.header.tensors.get(name)
        if info is None or info.aval.shape != array.shape:
            raise StoreError(path, "was not written by orbax, so nothing was published", tensor=name)
    source.close()


def _tensors(
    arrays: Mapping[str, np.ndarray], types: Mapping[str, LeafType], tree: KeyTree
) -> Iterator[tuple[Path, object]]:
    """The tensors as orbax shall see them, each with its path."""
    for name, array in arrays.items():
        kind = types[name]
        value = array
        if kind.stored:
            import ml_dtypes

            value = array.astype(getattr(ml_dtypes, kind.stored))
        yield tree.path(name), value


def _others(tree: KeyTree) -> Iterator[tuple[Path, object]]:
    """The leaves that are no tensors, each with its path."""
    for name, leaf in tree.others.items():
        yield tree.path(name), leaf.value


def _custom(metadata: Mapping[str, str], tree: KeyTree, names: Iterable[str]) -> dict[str, Any]:
    """The metadata, and notes of what orbax does not keep by itself."""
    notes = tree.notes(names)
    paths = [tree.path(name) for name in (*names, *tree.others)]
    is_alike = _count_boxes(mark_boxes(paths)) > _count_boxes(paths)
    known = KeyNotes(tuples=notes.tuples, integers=notes.integers, boxed=notes.boxed, unboxed=is_alike)
    own = known.encode()
    texts = {key: text for key, text in metadata.items() if key != NOTES}
    return texts | {key: _value(texts[key]) for key in tree.json if key in texts} | own


def _count_boxes(paths: Iterable[Path]) -> int:
    return sum(isinstance(path[-1], BoxKey) for path in paths)


def _value(text: str) -> Any:
    """What JSON spells, or the text itself where somebody changed it into something else."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def _context(options: Mapping[str, Any], largest: int) -> AbstractContextManager[Any]:
    """How orbax is to save: the options, and nothing copied; `largest` are the bytes of the largest tensor."""
    import orbax.checkpoint.experimental.v1 as ocp

    context = ocp.Context()
    context.array.saving.use_compression = options.get("compression", False)
    context.array.saving.storage_options.chunk_byte_size = options.get("chunk")
    context.array.saving.ocdbt_target_data_file_size = max(DATA_FILE, largest)
    context.memory.deepcopy_host_arrays = False
    return context


def _save(path: str, tree: Any, custom: dict[str, Any], *, in_groups: bool) -> None:
    """Saves all at once, which takes no memory; or, where orbax makes something of the tensors, group by group."""
    import orbax.checkpoint.experimental.v1 as ocp

    if not in_groups:
        ocp.save(path, tree, custom_metadata=custom)
        return
    for group in _groups(tree):
        ocp.partial.save(path, group, custom_metadata=custom)
    ocp.partial.finalize(path)


def _groups(tree: object) -> Iterator[object]:
    """Parts of a tree, of about GROUP bytes each, that make up the whole."""
    group: list[Path] = []
    nbytes = 0
    for path, size in _units(tree, ()):
        if group and nbytes + size > GROUP:
            yield _only(tree, (), _with_parents(group))
            group, nbytes = [], 0
        group.append(path)
        nbytes += size
    yield _only(tree, (), _with_parents(group))


def _units(node: object, path: Path) -> Iterator[tuple[Path, int]]:
    """What of a tree is not taken apart, and its bytes: leaves, and lists with leaves among their items."""
    inner = _entries(node)
    if not inner or (not isinstance(node, dict) and not all(_entries(value) for _, value in inner)):
        yield path, _nbytes(node)
        return
    for key, value in inner:
        yield from _units(value, (*path, key))


def _nbytes(node: object) -> int:
    return sum(_nbytes(value) for _, value in _entries(node)) + getattr(node, "nbytes", 0)


def _entries(node: object) -> list[tuple[str | int, object]]:
    return list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ())


def _with_parents(paths: Iterable[Path]) -> set[Path]:
    return {path[:depth] for path in paths for depth in range(len(path) + 1)}


def _only(node: Any, path: Path, wanted: set[Path]) -> Any:
    """What of a tree lies at the paths wanted. In a list None stands for what earlier parts hold."""
    kept = {k: _only(v, (*path, k), wanted) for k, v in _entries(node) if (*path, k) in wanted}
    if not kept:
        return node
    if isinstance(node, dict):
        return kept
    return type(node)(kept.get(n) for n in range(max(key for key in kept if isinstance(key, int)) + 1))


def _lift(path: str) -> None:
    """Makes a checkpoint of the second API one of the first: the tree to the top, and its handler in the metadata."""
    state = os.path.join(path, STATE)
    for name in os.listdir(state):
        os.rename(os.path.join(state, name), os.path.join(path, name))
    os.rmdir(state)
    os.remove(os.path.join(path, _INDICATOR))
    place = os.path.join(path, CHECKPOINT)
    with open(place, encoding="utf-8") as file:
        table = json.load(file)
    with open(place, "w", encoding="utf-8") as file:
        json.dump(table | {"item_handlers": _HANDLER}, file)
