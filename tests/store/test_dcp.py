"""Folders of `torch.distributed.checkpoint`, against torch."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import filesystem, metadata, state_dict_loader, state_dict_saver

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.store.base import Source
from brainsurgery_jax.store.detect import open_source
from brainsurgery_jax.store.io.files import read_bytes
from tests.checkpoints import OPAQUE, SAVABLE, bits, counting, normal, np_dtype, write, write_raw


def saved(path: Path, root: dict[str, Any]) -> str:
    state_dict_saver.save(root, checkpoint_id=str(path), no_dist=True)
    return str(path)


def sharded(path: Path, array: np.ndarray, cuts: list[tuple[slice, ...]], rows: int | None = None) -> Source:
    """A folder with one tensor 'x' in chunks, arranged as several processes leave it: a file each. With `rows` every
    chunk has that many, wherever it is said to begin."""
    path.mkdir()
    chunks, places = [], {}
    for rank, cut in enumerate(cuts):
        piece = torch.from_numpy((array[cut] if rows is None else array[:rows]).copy())
        name = f"__{rank}_0.distcp"
        torch.save(piece, path / name)
        start = torch.Size([span.start for span in cut])
        chunks.append(metadata.ChunkStorageMetadata(start, piece.shape))
        size = (path / name).stat().st_size
        places[metadata.MetadataIndex("x", start)] = filesystem._StorageInfo(name, 0, size)
    properties = metadata.TensorProperties(dtype=torch.from_numpy(array).dtype)
    entry = metadata.TensorStorageMetadata(properties, torch.Size(array.shape), chunks)
    whole = metadata.Metadata({"x": entry}, {"x": ("x",)}, places)
    (path / ".metadata").write_bytes(pickle.dumps(whole))
    return open_source(str(path))


def converted(source: Path, target: Path, **output: object) -> Path:
    plan = {"inputs": [str(source)], "transforms": [], "output": {"path": f"{target}/", "format": "dcp"} | output}
    bs.load(plan).run(durable=False)
    return target


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_what_torch_saves_is_read_lazily_by_its_names(tmp_path: Path) -> None:
    x = torch.arange(24.0).reshape(4, 6)
    root = {"model": {"w": x, "t": x.t(), "half": x[:, :3]}, "list": [x.to(torch.bfloat16)], "epoch": 3}
    source = open_source(saved(tmp_path / "d", root))
    assert set(source.header.tensors) == {"model.w", "model.t", "model.half", "list.0"}
    assert (source.header.metadata, source.header.left_out) == ({}, {"epoch": "object"})
    assert source.bytes_read == 0
    assert bits(source.read("model.w", ((1, 3, 1), (0, 6, 2)))) == bits(x[1:3, ::2].numpy())
    assert bits(source.read("model.t")) == bits(x.t().numpy())
    assert bits(source.read_range("model.half", 2, 8)) == bits(x[:, :3].reshape(-1)[2:8].numpy())
    assert bits(source.read("list.0")) == x.to(torch.bfloat16).view(torch.uint16).numpy().tobytes()


@pytest.mark.parametrize("dtype", SAVABLE)
def test_every_dtype_is_read_bit_for_bit(tmp_path: Path, dtype: Any) -> None:
    x = torch.arange(6.0).to(getattr(torch, dtype.name))
    checkpoint = bs.open(saved(tmp_path / "d", {"x": x}))
    assert checkpoint.avals["x"].dtype == dtype
    assert bits(checkpoint["x"]) == x.view(torch.uint8).numpy().tobytes()


def test_a_wrapper_goes_only_where_values_that_are_no_tensors_lie_beside_it(tmp_path: Path) -> None:
    wrapped = {"state_dict": {"w": torch.zeros(2)}}
    assert list(bs.open(saved(tmp_path / "a", wrapped | {"epoch": 3}))) == ["w"]
    assert list(bs.open(saved(tmp_path / "b", wrapped))) == ["state_dict.w"]


def test_a_tensor_in_chunks_of_many_processes_is_put_together(tmp_path: Path) -> None:
    x = normal((5, 7))
    grid = [(slice(a, b), slice(c, d)) for a, b in ((0, 2), (2, 5)) for c, d in ((0, 4), (4, 7))]
    source = sharded(tmp_path / "d", x, grid)
    assert bits(source.read("x")) == bits(x)
    for start in range(0, 35, 4):
        assert bits(source.read_range("x", start, start + 3)) == bits(x.reshape(-1)[start : start + 3])
    for rows in ((0, 5, 1), (1, 5, 2), (2, 2, 1), (4, 5, 3)):
        for columns in ((0, 7, 3), (3, 5, 1), (5, 7, 1)):
            assert bits(source.read("x", (rows, columns))) == bits(x[slice(*rows), slice(*columns)])
    assert source.file_run("x", 0, 4) is None


def test_chunks_of_rows_are_runs_of_their_files(tmp_path: Path) -> None:
    x = normal((6, 3))
    source = sharded(tmp_path / "d", x, [(slice(a, a + 2), slice(0, 3)) for a in (0, 2, 4)])
    run = source.file_run("x", 7, 11)
    assert run is not None and source.file_run("x", 4, 8) is None
    assert read_bytes(run.file, run.nbytes, run.offset) == bits(x.reshape(-1)[7:11])


@pytest.mark.parametrize(
    "starts", [(0, 4), (0, 2, 3), (0, 1, 4), (0, 2, 5)], ids=["gap", "overlap and gap at the end", "both", "beyond"]
)
def test_chunks_that_leave_a_gap_or_overlap_are_refused(tmp_path: Path, starts: tuple[int, ...]) -> None:
    """Chunks of two rows of six. In all cases but the first they hold as many elements as the tensor."""
    with pytest.raises(StoreError, match=r"'x': f32\[6,3\] is not made up by its \d chunks: they overlap, leave a gap"):
        sharded(tmp_path / "d", normal((6, 3)), [(slice(a, a + 2), slice(0, 3)) for a in starts], rows=2)


@pytest.mark.parametrize(
    "spoil", [lambda table: table.pop(), lambda table: table.append(table[0])], ids=["one less", "one more"]
)
def test_chunks_that_the_metadata_do_not_list_are_refused(tmp_path: Path, spoil: Any) -> None:
    sharded(tmp_path / "d", normal((6, 3)), [(slice(a, a + 2), slice(0, 3)) for a in (0, 2, 4)])
    place = tmp_path / "d" / ".metadata"
    whole = pickle.loads(place.read_bytes())
    spoil(whole.state_dict_metadata["x"].chunks)
    place.write_bytes(pickle.dumps(whole))
    with pytest.raises(
        StoreError, match=r"tensor 'x': f32\[6,3\] is stored in other chunks than the \d that are listed"
    ):
        open_source(str(tmp_path / "d"))


def test_a_missing_file_is_to_be_fetched_and_nothing_deleted(tmp_path: Path) -> None:
    path = saved(tmp_path / "d", {"x": torch.zeros(2)})
    Path(path, "__0_0.distcp").unlink()
    with pytest.raises(StoreError, match=r"'__0_0.distcp', which is not there.*\n.*fetch or save it again") as caught:
        open_source(path)
    assert "delete" not in str(caught.value)


class Attack:
    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.victim}",)


def test_malicious_metadata_are_refused_and_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "d", {"x": torch.zeros(2)})
    Path(path, ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Attack(tmp_path / "victim")}))
    with pytest.raises(StoreError, match=r"\.metadata: is not metadata of a checkpoint: a record has no fields"):
        open_source(path)
    assert not (tmp_path / "victim").exists()


def test_a_state_that_a_pickle_gives_to_a_class_changes_nothing_of_ours(tmp_path: Path) -> None:
    """BUILD on a class that metadata name: what it sets would else hold for all later checkpoints of the process."""
    path = saved(tmp_path / "d", {"x": torch.zeros(2)})
    good = Path(path, ".metadata").read_bytes()
    for name in ("TensorProperties", "Metadata", "MetadataIndex"):
        state = b"}(X\x05\x00\x00\x00dtypeX\x03\x00\x00\x00bad" + b"X\x0c\x00\x00\x00__setstate__Nu"
        module = b"ctorch.distributed.checkpoint.metadata\n" + name.encode() + b"\n"
        Path(path, ".metadata").write_bytes(b"\x80\x02" + module + state + b"b.")
        with pytest.raises(StoreError, match="is not metadata of a checkpoint"):
            open_source(path)
    Path(path, ".metadata").write_bytes(good)
    assert list(open_source(path).header.tensors) == ["x"]


def test_files_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "d", {"x": torch.zeros(2)})
    shutil.copy(tmp_path / "d" / "__0_0.distcp", tmp_path / "_0.distcp")
    raw = Path(path, ".metadata").read_bytes()
    Path(path, ".metadata").write_bytes(raw.replace(b"__0_0.distcp", b"../_0.distcp", 1))
    with pytest.raises(StoreError, match=r"which is outside of its folder"):
        open_source(path)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_half_written_folder_is_a_clear_error(tmp_path: Path, name: str, how: str) -> None:
    path = saved(tmp_path / "d", {"x": torch.zeros(200)})
    file = Path(path, name)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.unlink()
    with pytest.raises(StoreError, match=r"no \.metadata|is damaged|is not there|is cut off|names no file"):
        open_source(path)


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_torch_gets_back_every_dtype_bit_for_bit(tmp_path: Path) -> None:
    tensors = {d.name: normal((3, 4)).astype(np_dtype(d)) for d in SAVABLE} | {"a.scalar": counting(())}
    path = converted(write(tmp_path / "m.safetensors", tensors), tmp_path / "d")
    into = {n: torch.zeros(a.shape, dtype=getattr(torch, a.dtype.name)) for n, a in tensors.items()}
    state_dict_loader.load(into, checkpoint_id=str(path), no_dist=True)
    for name, array in tensors.items():
        assert into[name].reshape(-1).view(torch.uint8).numpy().tobytes() == bits(array)


def test_the_same_plan_writes_the_same_bytes_without_paths_or_ids(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", {"a": counting((3,)), "b": counting((2, 2))})
    one, two = (converted(source, tmp_path / name) for name in ("1", "2"))
    assert sorted(p.name for p in one.iterdir()) == [".metadata", "__0_0.distcp", "brainsurgery.lock.json"]
    assert all(p.read_bytes() == (two / p.name).read_bytes() for p in one.iterdir())
    assert str(tmp_path).encode() not in (one / ".metadata").read_bytes()


def test_side_files_may_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "model.safetensors", {"a": counting((3,))})
    (tmp_path / "in" / "config.json").write_text("{}")
    path = converted(tmp_path / "in", tmp_path / "out")
    assert (path / "config.json").exists()
    into = {"a": torch.zeros(3)}
    state_dict_loader.load(into, checkpoint_id=str(path), no_dist=True)
    assert into["a"].tolist() == [0, 1, 2]


def test_packed_dtypes_are_refused_before_anything_runs(tmp_path: Path) -> None:
    dtype = OPAQUE[0]
    entry = {"dtype": dtype.tag, "shape": [8], "data_offsets": [0, dtype.bits]}
    source = write_raw(tmp_path / "m.safetensors", {"q": entry}, bytes(dtype.bits))
    with pytest.raises(PlanError, match=rf"tensor 'q': torch has no dtype {dtype}"):
        converted(source, tmp_path / "out")
