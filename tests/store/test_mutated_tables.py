"""Tables that say where tensors are, with mistakes in them: what is read is whole and right, or refused.

Indexes of sharded checkpoints, names of shards, and the chunks of `torch.distributed.checkpoint`. Each table is made
right, and changed in a few places; the oracle looks at the files by itself.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import filesystem, metadata

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io.chunked import TensorChunk
from brainsurgery_jax.store.torch.dcp import tiles
from tests.checkpoints import read, write

# --- Chunks -----------------------------------------------------------------------------------------------------------

Boxes = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""Where each chunk begins, and its shape."""


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], Boxes]:
    """A shape, and boxes that make it up."""
    shape = draw(st.lists(st.integers(0, 5), min_size=0, max_size=3))
    edges = [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=2))}) for n in shape]
    spans = [list(pairwise(ends)) or [(0, 0)] for ends in edges]
    return tuple(shape), [
        (tuple(start for start, _ in cut), tuple(stop - start for start, stop in cut)) for cut in product(*spans)
    ]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[tuple[int, ...], Boxes]:
    """The same, after some mistakes."""
    shape, boxes = draw(grids())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(boxes) - 1)) if boxes else 0
        match draw(st.sampled_from(["drop", "double", "shift", "resize"])):
            case "drop" if boxes:
                del boxes[at]
            case "double" if boxes:
                boxes.append(boxes[at])
            case "shift" if boxes:
                boxes[at] = (_changed(draw, boxes[at][0]), boxes[at][1])
            case "resize" if boxes:
                boxes[at] = (boxes[at][0], _changed(draw, boxes[at][1]))
            case _:
                pass
    return shape, boxes


def _changed(draw: st.DrawFn, numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(0, n + draw(st.integers(-1, 1))) for n in numbers)


def counted(shape: tuple[int, ...], boxes: Boxes) -> bool:
    """Whether boxes make up a shape, by counting the boxes on every element of a larger array."""
    cover = np.zeros([n + 20 for n in shape], int)
    for start, size in boxes:
        cover[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] += 1
    whole = np.zeros_like(cover)
    whole[tuple(slice(n) for n in shape)] = 1
    return bool((cover == whole).all())


def chunks_of(boxes: Boxes) -> list[TensorChunk]:
    return [TensorChunk(str(number), start, size) for number, (start, size) in enumerate(boxes)]


@given(mutated())
@settings(max_examples=500)
def test_chunks_make_up_a_tensor_if_each_of_its_elements_is_in_one_and_none_is_beyond(
    table: tuple[tuple[int, ...], Boxes],
) -> None:
    shape, boxes = table
    assert tiles(shape, chunks_of(boxes)) == counted(shape, boxes)


def save_chunks(place: Path, array: np.ndarray, boxes: Boxes, listed: Boxes) -> str:
    """A folder with a tensor 'x' in chunks, which are stored as `boxes` say, and listed otherwise."""
    stored = {}
    for number, (start, size) in enumerate(boxes):
        name = f"__{number}_0.distcp"
        spans = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        piece = np.zeros(size, np.float32)
        held = array[spans]
        piece[tuple(slice(n) for n in held.shape)] = held
        torch.save(torch.from_numpy(piece), place / name)
        where = filesystem._StorageInfo(name, 0, (place / name).stat().st_size)
        stored[metadata.MetadataIndex("x", torch.Size(start))] = where
    cuts = [metadata.ChunkStorageMetadata(torch.Size(start), torch.Size(size)) for start, size in listed]
    properties = metadata.TensorProperties(dtype=torch.float32)
    entry = metadata.TensorStorageMetadata(properties, torch.Size(array.shape), cuts)
    (place / ".metadata").write_bytes(pickle.dumps(metadata.Metadata({"x": entry}, {"x": ("x",)}, stored)))
    return str(place)


@given(grids(), st.data())
@settings(max_examples=100)
def test_a_folder_of_chunks_is_read_bit_for_bit_or_refused(
    grid: tuple[tuple[int, ...], Boxes], data: st.DataObject
) -> None:
    shape, right = grid
    array = np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)
    stored, listed = (data.draw(mutated().filter(lambda t: len(t[0]) == len(shape)) | st.just(grid)) for _ in "ab")
    with tempfile.TemporaryDirectory() as folder:
        path = save_chunks(Path(folder), array, stored[1], listed[1])
        try:
            found = bs.open(path)["x"]
        except StoreError:
            assert sorted(stored[1]) != sorted(right) or sorted(listed[1]) != sorted(right)
            return
        assert found.tobytes() == array.tobytes()


# --- Indexes and names of shards --------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d"])


@st.composite
def shards(draw: st.DrawFn) -> dict[str, dict[str, float]]:
    """Shards of a model of four tensors, each in one of them."""
    total = draw(st.integers(1, 3))
    files: dict[str, dict[str, float]] = {f"model-{n:05}-of-{total:05}.safetensors": {} for n in range(1, total + 1)}
    for value, name in enumerate("abcd", 1):
        files[draw(st.sampled_from(sorted(files)))][name] = float(value)
    return files


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[dict[str, dict[str, float]], dict[str, str] | None]:
    """Shards and an index, or none, after some mistakes in either."""
    files = draw(shards())
    index = {name: file for file, tensors in files.items() for name in tensors}
    every = [*files, "model-00004-of-00003.safetensors", "model-00001-of-00004.safetensors", "other.safetensors"]
    for _ in range(draw(st.integers(0, 2))):
        file = draw(st.sampled_from(every))
        match draw(
            st.sampled_from(["lose file", "lose tensor", "add tensor", "unlist", "list elsewhere", "list more"])
        ):
            case "lose file":
                files.pop(file, None)
            case "lose tensor":
                files.get(file, {}).pop(draw(NAMES), None)
            case "add tensor":
                files.setdefault(file, {})[draw(NAMES)] = 9.0
            case "unlist":
                index.pop(draw(NAMES), None)
            case "list elsewhere":
                index[draw(NAMES)] = file
            case _:
                index["more"] = file
    return files, index if draw(st.booleans()) else None


def save_shards(place: Path, files: dict[str, dict[str, float]], index: dict[str, str] | None) -> str:
    for file, tensors in files.items():
        write(place / file, {name: np.full(2, value, np.float32) for name, value in tensors.items()})
    if index is not None:
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return str(place)


def read_whole(place: Path, index: dict[str, str] | None) -> dict[str, float] | None:
    """The values of a folder that is what its names and its index say, by looking at every file; else None."""
    held = {path.name: {n: float(t[0]) for n, t in read(path).items()} for path in place.glob("*.safetensors")}
    numbered = {name: tensors for name, tensors in held.items() if "-of-" in name}
    totals = {name[-17:] for name in numbered}
    chosen = numbered or held
    if index is None and (len(held) != len(chosen) or len(totals) > 1 or (not numbered and len(held) != 1)):
        return None
    if index is None and numbered and len(numbered) != int(next(iter(totals))[:5]):
        return None
    if index is None and any(not 1 <= int(name[6:11]) <= int(name[-17:-12]) for name in numbered):
        return None
    if index is not None and not numbered.keys() <= set(index.values()):
        return None
    if index is not None:
        chosen = {name: tensors for name, tensors in held.items() if name in numbered or name in index.values()}
    pairs = [(name, value) for tensors in chosen.values() for name, value in tensors.items()]
    if len(dict(pairs)) != len(pairs):
        return None
    places = {name: file for file, tensors in chosen.items() for name in tensors}
    return dict(pairs) if index is None or index == places else None


@given(spoiled())
@settings(max_examples=300)
def test_a_folder_of_shards_is_read_as_a_whole_or_refused(
    table: tuple[dict[str, dict[str, float]], dict[str, str] | None],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save_shards(Path(folder), *table)
        expected = read_whole(Path(folder), table[1])
        found: Any = None
        try:
            checkpoint = bs.open(path)
            found = {name: float(checkpoint[name][0]) for name in checkpoint}
        except StoreError:
            pass
        assert found == expected
