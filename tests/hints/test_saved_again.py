"""Files that cannot be read, and hints to fetch or save them otherwise: done as they say, all is read as it was."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import brainsurgery_jax as bs
from brainsurgery_jax.store import atomic, replacing
from tests import checkpoints
from tests.hints.calls import DOUBLE, W, hint_of, run

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.filterwarnings("ignore")]

STATE = {"w": torch.arange(4, dtype=torch.float32)}


def save(path: str) -> None:
    """What the hints mean by saving (or fetching) again."""
    suffix = Path(path).suffix
    if suffix == ".safetensors":
        checkpoints.write(path, {"w": W})
    elif suffix in (".pt", ".bin"):
        torch.save(STATE, path)
    else:
        np.save(path, W)


def raw(header: Any, data: bytes = W.tobytes()) -> Callable[[str], object]:
    return lambda path: checkpoints.write_raw(path, header, data)


def placed(**more: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **more}}


def cut(path: str) -> None:
    save(path)
    os.truncate(path, os.path.getsize(path) - 3)


def packed_anew(path: str) -> None:
    """The archive of torch, compressed."""
    torch.save(STATE, "whole.pt")
    with zipfile.ZipFile("whole.pt") as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small:
        for member in whole.namelist():
            small.writestr(member, whole.read(member))
    os.remove("whole.pt")


class Linear(torch.nn.Module):
    """A module that holds one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(STATE["w"])


def scripted(path: str) -> None:
    torch.jit.save(torch.jit.script(Linear()), path)


class Bad(NamedTuple):
    path: str
    spoil: Callable[[str], object]
    says: str
    mend: Callable[[str], object] = save

    def __str__(self) -> str:
        return f"{self.path}: {self.says[:40]}"


def saved_without_script(path: str) -> None:
    torch.save(torch.jit.load(path).state_dict(), "model.pt")
    os.replace("model.pt", path)


def saved_from_object(path: str) -> None:
    torch.save(torch.load(path, weights_only=False).state_dict(), "new.pt")
    os.replace("new.pt", path)


def stored_anew(path: str) -> None:
    """As `zip -0 -r` does, by way of a folder."""
    with zipfile.ZipFile(path) as small:
        small.extractall("unpacked")
        members = small.namelist()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as whole:
        for member in members:
            whole.write(Path("unpacked", member), member)
    shutil.rmtree("unpacked")


def packed_strangely(path: str, name: str = "w.npy", kind: int = zipfile.ZIP_BZIP2) -> None:
    """An archive of numpy, compressed as numpy never does."""
    content = io.BytesIO()
    np.save(content, W)
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr(name, content.getvalue())


def named_outside(path: str) -> None:
    packed_strangely(path, "../w.npy", zipfile.ZIP_STORED)


def saved_under_other_names(path: str) -> None:
    with np.load(path) as found:
        arrays = {name.replace("../", ""): found[name] for name in found.files}
    np.savez(path, allow_pickle=False, **arrays)


BAD = (
    Bad("x.safetensors", cut, "The file is damaged or incomplete: download or save it again."),
    Bad("x.safetensors", lambda path: Path(path).write_text("version https://git-lfs"),
        "Fetch the file: `git lfs pull`."),
    Bad("x.safetensors", lambda path: Path(path).write_bytes(b"\xff" * 20),
        "It is not a safetensors file, or it is damaged"),
    Bad("x.safetensors", raw({"__metadata__": {"n": 1}, **placed()}), "Write the file again with text values only."),
    Bad("x.safetensors", raw(placed(dtype="F33")), "Known are "),
    Bad("x.safetensors", raw({"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"12"),
        "Pad the tensor to whole bytes",
        raw({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, b"12")),
    Bad("x.pt", scripted, "Save its tensors: `torch.save(torch.jit.load(PATH).state_dict(), 'model.pt')`.",
        saved_without_script),
    Bad("x.pt", packed_anew, "pack it again without compression: `zip -0 -r`.", stored_anew),
    Bad("x.pt", lambda path: torch.save(Linear(), path),
        "save its tensors alone: `torch.save(model.state_dict(), PATH)`.",
        saved_from_object),
    Bad("x.pt", lambda path: torch.save(3.5, path), "Save a dict of tensors.", save),
    Bad("x.pt", lambda path: Path(path).write_text("no pickle"), "Give it the suffix of its format, or save it again."),
    Bad("x.pt", cut, "again"),
    Bad("x.npz", packed_strangely, "pack it again without compression: `zip -0 -r`.", stored_anew),
    Bad("x.npz", named_outside, "save its arrays under other names.", saved_under_other_names),
    Bad("x.npy", lambda path: np.save(path, np.array(["a"])), "Only arrays of numbers can be read."),
)  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_file_that_cannot_be_read_is_saved_as_the_hint_says(bad: Bad) -> None:
    bad.spoil(bad.path)
    before = Path(bad.path).read_bytes()
    hint_of(lambda: bs.open(bad.path)[next(iter(bs.open(bad.path)))], bad.says)
    assert Path(bad.path).read_bytes() == before
    bad.mend(bad.path)
    made = bs.open(bad.path)
    if bad.says.startswith("Pad"):
        assert made.avals["w"].shape == (4,)
    else:
        assert [array.tolist() for array in made.values()] == [W.tolist()]


def test_a_pickle_of_more_than_tensors_is_saved_without_the_rest() -> None:
    Path("x.pt").write_bytes(pickle.dumps({"w": 1}))
    hint_of(lambda: bs.open("x.pt"), "save it again")
    save("x.pt")
    assert bs.open("x.pt")["w"].tolist() == W.tolist()


def test_an_index_that_is_none_is_fetched_again() -> None:
    os.mkdir("s")
    checkpoints.write("s/model-00001-of-00001.safetensors", {"w": W})
    index = Path("s/model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": 3}))
    hint_of(lambda: bs.open("s"), "Fetch the index again.")
    index.write_text(json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}}))
    assert bs.open("s")["w"].tolist() == W.tolist()


def test_an_index_and_shards_of_two_versions_are_fetched_again() -> None:
    os.mkdir("s")
    checkpoints.write("s/model-00001-of-00001.safetensors", {"v": W})
    Path("s/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors", "v": "model-00001-of-00001.safetensors"}})
    )
    hint_of(lambda: bs.open("s"), "Fetch the index and the shards again: they are not of one version.")
    checkpoints.write("s/model-00001-of-00001.safetensors", {"v": W, "w": W})
    assert bs.open("s")["w"].tolist() == W.tolist()


def test_a_file_that_was_replaced_is_read_by_the_next_run() -> None:
    opened = bs.open("m.safetensors")
    checkpoints.write("new.safetensors", {"w": W + 1, "ids": np.array([1, 2])})
    opened.source.close()
    hint_of(lambda: opened["w"], "Open the checkpoint anew.")
    os.replace("new.safetensors", "m.safetensors")
    assert bs.open("m.safetensors")["w"].tolist() == (W + 1).tolist()


def test_what_could_not_be_removed_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*given: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("base", "out"):
        os.mkdir(name)
        checkpoints.write(f"{name}/model.safetensors", {"w": W})
    plan = bs.load({"inputs": ["base"], "transforms": [DOUBLE], "output": {"path": "out", "overwrite": True}})
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "remove_replaced", denied)
        (note,) = plan.run(durable=False).notes
    assert note.hint.startswith("Delete it: ")
    shutil.rmtree(note.hint.removeprefix("Delete it: "))
    assert bs.open("out")["w"].tolist() == (W * 2).tolist()
    assert sorted(os.listdir()) == ["base", "m.safetensors", "out"]


def test_an_output_over_an_input_in_it_goes_to_another_folder() -> None:
    os.mkdir("base")
    shutil.move("m.safetensors", "base/model.safetensors")
    before = Path("base/model.safetensors").read_bytes()
    checkpoints.write("base/other.safetensors", {"w": W})

    def made(path: str) -> Any:
        return run(DOUBLE, inputs="m::base/model.safetensors", output={"path": path, "overwrite": True})

    hint_of(lambda: made("base/"), "Write to another folder.")
    assert made("else/")["w"] == (W * 2).tolist()
    assert Path("base/model.safetensors").read_bytes() == before


def test_an_output_among_the_files_of_an_input_goes_outside_of_it() -> None:
    os.mkdir("base")
    shutil.move("m.safetensors", "base/model.safetensors")
    hint_of(lambda: run(DOUBLE, inputs="m::base", output="base/two.safetensors"), "Write to a path outside of it.")
    assert run(DOUBLE, inputs="m::base", output="two.safetensors")["w"] == (W * 2).tolist()
    assert os.listdir("base") == ["model.safetensors"]


def test_an_output_that_is_too_large_goes_where_there_is_space(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage
    full = os.path.abspath("full")
    os.mkdir(full)

    def found(folder: str) -> Any:
        return usage(folder)._replace(free=3) if folder == full else usage(folder)

    monkeypatch.setattr(replacing.shutil, "disk_usage", found)
    hint_of(lambda: run(DOUBLE, output="full/out.safetensors"), "or write to another disk.")
    assert run(DOUBLE, output="out.safetensors")["w"] == (W * 2).tolist()


def test_what_cannot_be_read_is_left_out_by_the_address_that_the_hint_writes() -> None:
    arrays: dict[str, Any] = {"w": W, "o": np.array([{}])}
    np.savez("n.npz", **arrays)
    hint = hint_of(lambda: run(DOUBLE, inputs="m::n.npz"), "To read the rest without it, write '")
    address = hint.partition("write '")[2].partition("'")[0]
    assert run(DOUBLE, inputs=f"m::{address}") == {"w": (W * 2).tolist()}


def test_an_entry_and_others_below_its_name_are_read_together() -> None:
    arrays: dict[str, Any] = {"a": W, "a.b": W + 1}
    np.savez("n.npz", **arrays)
    hint_of(lambda: bs.open("n.npz::a"), "Read all of it, and choose by references.")
    assert run({"delete": {"target": r"a\.b"}}, inputs="m::n.npz") == {"a": W.tolist()}


def test_a_path_that_is_not_there_is_checked() -> None:
    hint_of(lambda: bs.open("no/m.safetensors"), "Check the path.")
    here = hint_of(lambda: bs.open("n.safetensors"), "Relative paths start at the current folder, ")
    folder = here.rpartition(", ")[2].removesuffix(".")
    assert bs.open(os.path.join(folder, "m.safetensors"))["w"].tolist() == W.tolist()


def test_a_folder_without_a_checkpoint_is_another() -> None:
    os.mkdir("empty")
    hint_of(lambda: bs.open("empty"), "Name a folder with a checkpoint at its top")
    shutil.copy("m.safetensors", "empty/model.safetensors")
    assert bs.open("empty")["w"].tolist() == W.tolist()


def test_what_is_no_file_is_another() -> None:
    os.mkfifo("pipe.safetensors")
    hint_of(lambda: bs.open("pipe.safetensors"), "Name a folder, or ")
    assert bs.open("m.safetensors")["w"].tolist() == W.tolist()
