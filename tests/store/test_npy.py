"""numpy's files, against numpy: what it writes is read, and what is written it reads."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.index.boxes import box_shape
from brainsurgery_jax.store.detect import open_source
from tests.checkpoints import COMPUTABLE, SAVABLE, bits, counting, normal, np_dtype, write

SMALL = {"a": counting((3, 4)), "deep.b": counting((5,), np.int8), "scalar": counting(()), "empty": counting((0, 3))}


def numpy_saves(path: Path, arrays: dict[str, Any], *, compress: bool = False) -> None:
    (np.savez_compressed if compress else np.savez)(path, **arrays)


def converted(source: Path, target: Path, **output: object) -> Path:
    bs.load({"inputs": [str(source)], "transforms": [], "output": {"path": str(target)} | output}).run(durable=False)
    return target


@pytest.mark.parametrize("compress", [False, True])
def test_an_archive_of_numpy_is_read_lazily_by_its_names(tmp_path: Path, compress: bool) -> None:
    numpy_saves(tmp_path / "m.npz", SMALL, compress=compress)
    source = open_source(str(tmp_path / "m.npz"))
    assert list(source.header.tensors) == list(SMALL)
    assert source.bytes_read == 0
    for name, array in SMALL.items():
        assert bits(source.read(name)) == bits(array)
        assert source.header.tensors[name].aval.shape == array.shape
    assert bits(source.read("a", ((1, 3, 1), (0, 4, 2)))) == bits(SMALL["a"][1:3, ::2])


def test_one_array_is_called_like_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "h.0.w.npy", SMALL["a"])
    checkpoint = bs.open(str(tmp_path / "h.0.w.npy"))
    assert list(checkpoint) == ["h.0.w"]
    assert bits(checkpoint["h.0.w"]) == bits(SMALL["a"])


def test_arrays_that_are_not_compressed_are_runs_of_the_file(tmp_path: Path) -> None:
    numpy_saves(tmp_path / "m.npz", SMALL)
    source = open_source(str(tmp_path / "m.npz"))
    run = source.file_run("a", 2, 7)
    assert run is not None
    raw = (tmp_path / "m.npz").read_bytes()
    assert raw[run.offset : run.offset + run.nbytes] == bits(SMALL["a"].reshape(-1)[2:7])


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("order", ["fortran", "big-endian", "both"])
def test_either_order_of_elements_and_of_bytes_is_read(tmp_path: Path, order: str, compress: bool) -> None:
    array = normal((4, 5, 6)).astype("<f4" if order == "fortran" else ">f4")
    array = array if order == "big-endian" else np.asfortranarray(array)
    (np.savez_compressed if compress else np.savez)(tmp_path / "m.npz", x=array)
    source = open_source(str(tmp_path / "m.npz"))
    expected = np.ascontiguousarray(array).astype("<f4")
    assert source.file_run("x", 0, 1) is None
    for box in (
        ((0, 4, 1), (0, 5, 1), (0, 6, 1)),
        ((1, 4, 2), (2, 3, 1), (0, 6, 5)),
        ((2, 2, 1), (0, 5, 1), (0, 6, 1)),
    ):
        assert bits(source.read("x", box)) == bits(expected[tuple(slice(*span) for span in box)])
        assert source.read("x", box).shape == box_shape(box)
    for start, stop in ((0, 120), (7, 101), (30, 60), (5, 5)):
        assert bits(source.read_range("x", start, stop)) == bits(expected.reshape(-1)[start:stop])


def test_blocks_of_a_compressed_array_may_come_in_any_order(tmp_path: Path) -> None:
    array = normal((1000,))
    np.savez_compressed(tmp_path / "m.npz", x=array)
    source = open_source(str(tmp_path / "m.npz"))
    for start in (0, 100, 900, 300, 200, 400, 0):
        assert bits(source.read_range("x", start, start + 100)) == bits(array[start : start + 100])
    assert source.bytes_read == 7 * 400


@pytest.mark.parametrize("compression", [False, True])
def test_every_dtype_goes_there_and_back_bit_for_bit(tmp_path: Path, compression: bool) -> None:
    tensors = {d.name: normal((3, 4)).astype(np_dtype(d)) for d in SAVABLE}
    source = write(tmp_path / "m.safetensors", tensors, {"note": "kept"})
    target = converted(source, tmp_path / "m.npz", options={"compression": compression})
    back = bs.open(str(target))
    assert {name: back[name].dtype for name in back} == {name: array.dtype for name, array in tensors.items()}
    assert all(bits(back[name]) == bits(array) for name, array in tensors.items())
    assert back.metadata == {"note": "kept"}


def test_numpy_reads_what_is_written_and_sees_foreign_dtypes_as_raw_bytes(tmp_path: Path) -> None:
    tensors = SMALL | {"bf16": counting((3,), ml_dtypes.bfloat16)}
    target = converted(write(tmp_path / "m.safetensors", tensors), tmp_path / "m.npz")
    with np.load(target) as found:
        assert found.files == list(tensors)
        assert all(bits(found[name]) == bits(tensors[name]) for name in SMALL)
        assert bits(found["bf16"].view(ml_dtypes.bfloat16)) == bits(tensors["bf16"])


def test_raw_bytes_of_two_are_bfloat16_as_numpy_saves_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", counting((3,), ml_dtypes.bfloat16))
    assert bs.open(str(tmp_path / "x.npy"))["x"].dtype == ml_dtypes.bfloat16


def test_raw_bytes_that_nothing_tells_the_dtype_of_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=counting((3,), ml_dtypes.float8_e4m3fn))
    with pytest.raises(StoreError, match=r"tensor 'x': cannot be read: its elements are of numpy's type \|V1"):
        open_source(str(tmp_path / "x.npz"))


def test_complex128_has_a_place_here(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", z=counting((3,), np.complex128))
    assert bs.open(str(converted(tmp_path / "in.npz", tmp_path / "out.npz")))["z"].dtype == np.complex128
    assert {d.name for d in COMPUTABLE} - {d.name for d in SAVABLE} == {"complex128"}


def test_the_same_plan_writes_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", SMALL)
    one, two = (converted(source, tmp_path / name) for name in ("1.npz", "2.npz"))
    assert one.read_bytes() == two.read_bytes()


def test_npy_holds_one_tensor_only(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", SMALL)
    with pytest.raises(PlanError, match=r"npy holds one array, and there are 4 tensors(.|\n)*m\.npz"):
        converted(source, tmp_path / "m.npy")
    step = {"save": {"path": str(tmp_path / "a.npy"), "target": "model::a", "format": "npy"}}
    bs.load({"inputs": [str(source)], "transforms": [step]}).run(durable=False)
    assert bits(np.load(tmp_path / "a.npy")) == bits(SMALL["a"])


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_npy_cannot_tell_float8_from_other_bytes(tmp_path: Path, dtype: type) -> None:
    source = write(tmp_path / "m.safetensors", {"x": counting((3,), dtype)})
    with pytest.raises(PlanError, match=r"tensor 'x': npy cannot tell float8_\w+ from other bytes(.|\n)*Write \.npz"):
        converted(source, tmp_path / "x.npy")


@pytest.mark.parametrize("cut", [1, 30, 100, 300])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, cut: int) -> None:
    numpy_saves(tmp_path / "m.npz", SMALL)
    np.save(tmp_path / "x.npy", counting((40,)))
    for name in ("m.npz", "x.npy"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(StoreError, match=rf"{name}(.|\n)*(damaged|cut off|takes 288 bytes with its header)"):
            open_source(str(path))


def test_a_member_whose_bytes_changed_is_noticed_where_it_is_compressed(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez_compressed(path, x=normal((500,)))
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 255
    path.write_bytes(raw)
    with pytest.raises(StoreError, match=r"m\.npz: the archive is damaged"):
        open_source(str(path)).read("x")


HAIKU = {"net/linear": {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}}
LOST: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "all of it": ({"params": HAIKU, "state": {}}, ["params", "state"], "pickled Python objects"),
    "one among arrays": ({"emb": SMALL["a"], "params": HAIKU, "note": np.array("x")}, ["params"], "pickled Python"),
    "arrays of unequal length": (
        {"emb": SMALL["a"], "ragged": np.array([np.ones(2), np.ones(3)], object)}, ["ragged"], "pickled Python",
    ),
    "records": ({"emb": SMALL["a"], "rec": np.zeros(2, [("a", "f4")])}, ["rec"], "of numpy's type"),
    "long doubles": ({"emb": SMALL["a"], "f16": np.ones(2, np.longdouble)}, ["f16"], "of numpy's type float128"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_arrays_that_cannot_be_read_are_an_error_until_the_plan_leaves_them_out(tmp_path: Path, name: str) -> None:
    arrays, lost, why = LOST[name]
    path = f"{tmp_path}/m.npz"
    np.savez(path, **arrays)
    with pytest.raises(StoreError, match=rf"tensor '{lost[0]}': cannot be read: .*{why}") as caught:
        open_source(path)
    kept = {key: array for key, array in arrays.items() if key not in (*lost, "note")}
    way = "::".join([path, *(f"-{entry}" for entry in lost)])
    assert (f"write '{way}'" in str(caught.value)) == bool(kept)
    plan = {"inputs": [{"path": path, "leave_out": lost}], "output": f"{tmp_path}/out.npz"}
    if kept:
        bs.load(plan).run(durable=False)
    for opened in (way, f"{tmp_path}/out.npz" if kept else way):
        assert {key: bits(array) for key, array in bs.open(opened).items()} == {k: bits(a) for k, a in kept.items()}


def test_text_and_dates_are_no_tensors_and_are_left_out_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", x=SMALL["a"], config=np.array("{}"), when=np.zeros(2, "M8[s]"))
    source = open_source(f"{tmp_path}/m.npz")
    assert (list(source.header.tensors), source.header.left_out) == (["x"], {"config": "text", "when": "dates"})


def test_pickled_objects_are_never_made(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "victim",)

    np.savez(tmp_path / "m.npz", x=SMALL["a"], bad=np.array([Attack()], object))
    np.save(tmp_path / "o.npy", np.array([Attack()], object))
    assert list(bs.open(f"{tmp_path}/m.npz::-bad")) == ["x"]
    with pytest.raises(StoreError, match=r"o\.npy: tensor 'o': .*nothing is unpickled\n.*allow_pickle=True"):
        open_source(f"{tmp_path}/o.npy")
    assert not (tmp_path / "victim").exists()


def test_a_file_in_the_archive_that_is_no_array_is_an_error_until_it_is_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", x=SMALL["a"])
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        archive.writestr("readme.txt", b"hello")
    with pytest.raises(StoreError, match=r"tensor 'readme\.txt': cannot be read: it is a file that is no array"):
        open_source(f"{tmp_path}/m.npz")
    assert list(bs.open(f"{tmp_path}/m.npz::-readme.txt")) == ["x"]


def test_a_name_in_the_archive_twice_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", SMALL["a"])
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
        archive.writestr("x", b"the same name to numpy")
    with pytest.raises(StoreError, match=r"tensor 'x': cannot be read: it is in the archive twice"):
        open_source(str(tmp_path / "m.npz"))


@given(st.lists(st.integers(0, 6000), min_size=1, max_size=6), st.booleans())
@settings(max_examples=60)
def test_members_of_any_length_are_found(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], mixed: bool):
    arrays: dict[str, Any] = {f"x{at}": np.arange(n, dtype=np.float32) + at for at, n in enumerate(lengths)}
    path = tmp_path_factory.mktemp("npz") / "m.npz"
    numpy_saves(path, arrays)
    if mixed:  # one more member, compressed
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("packed.npy", "w") as file:
            np.lib.format.write_array(file, np.arange(999))
        arrays["packed"] = np.arange(999)
    source = open_source(str(path))
    assert list(source.header.tensors) == list(arrays)
    for name, array in arrays.items():
        assert bits(source.read(name)) == bits(array)


def test_a_member_that_is_damaged_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    whole = npy(np.arange(3))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"good": whole, "bad": whole[:-1], "new": b"\x93NUMPY\x09\x00"}.items():
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(StoreError, match=r"'bad': .* takes 152 bytes .*; nor can be read: new\n.*m.npz::-bad"):
        open_source(str(path))
    source = open_source(f"{path}::-bad::-new")
    assert [*source.header.tensors] == ["good"]
    source.close()


def npy(array: np.ndarray) -> bytes:
    """The bytes of a file with one array."""
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


NAMES = {
    "alphafold/evoformer//weights": np.ones((2, 3), np.float32),
    "alphafold/evoformer//bias": np.zeros(3, np.float32),
    "params/img/pos_embedding": np.ones((1, 4, 2), np.float32),
    "params.x": np.arange(4),
}


def test_names_with_slashes_are_kept_and_give_parts(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **NAMES)
    bs.load({"inputs": [str(tmp_path / "a.npz")], "transforms": [], "output": str(tmp_path / "b.npz")}).run()
    with np.load(tmp_path / "b.npz") as found:
        assert all(np.array_equal(found[name], array) for name, array in NAMES.items())
    for part, names in {
        "alphafold/evoformer": {"weights", "bias"}, "alphafold": {"evoformer//weights", "evoformer//bias"},
        "params/img": {"pos_embedding"}, "params": {"x"},
    }.items():  # fmt: skip
        source = open_source(f"{tmp_path}/a.npz::{part}")
        assert {*source.header.tensors} == names
        source.close()
    source = open_source(f"{tmp_path}/a.npz::-alphafold")
    assert {*source.header.tensors} == {"params/img/pos_embedding", "params.x"}
    source.close()


def test_dicts_that_numpy_pickled_are_an_error_until_they_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "mixed.npz"
    np.savez(path, emb=np.ones((4, 2)), params={"net/linear": {"w": np.ones(2)}})  # type: ignore[arg-type]
    plan = {"inputs": [str(path)], "transforms": [], "output": str(tmp_path / "out.npz")}
    (problem,) = bs.check(bs.load(plan))
    assert "'params': cannot be read: it holds pickled Python objects" in problem.message
    bs.load(plan | {"inputs": [{"path": str(path), "leave_out": ["params"]}]}).run(durable=False)
    assert [*bs.open(str(tmp_path / "out.npz"))] == ["emb"]
