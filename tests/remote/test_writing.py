"""Outputs of object stores: whole or not there, whatever breaks, and never over something else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

import brainsurgery_jax as bs
from brainsurgery_jax.api import run_with
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.run_options import RunOptions
from brainsurgery_jax.store.remote import upload
from brainsurgery_jax.store.remote.upload_note import NOTE
from brainsurgery_jax.store.runs import this_run

BUCKET = "memory://bucket"
INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A store in the memory of this process, emptied at the end."""
    monkeypatch.setattr(upload, "FIRST_WAIT", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = fsspec.filesystem("memory")
    yield found
    found.store.clear()
    found.pseudo_dirs[:] = [""]


def plan_to(model: Path, path: str, **more: Any) -> bs.Plan:
    step = {"scale_": {"target": "model.layers.0.w", "by": 2.0}}
    return bs.load({"inputs": [f"m::{model}"], "transforms": [step], "output": {"path": path, **more}})


def held(store: Any, folder: str = "/bucket/out") -> dict[str, bytes]:
    return {path.removeprefix(folder).lstrip("/"): store.cat_file(path) for path in store.find(folder)}


def here(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("more", [{"shard": "4MB"}, {}, {"format": "flax"}], ids=str)
def test_a_store_gets_the_files_that_a_disk_gets(store: Any, model: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    bs.run(plan_to(model, str(tmp_path / "out") + "/", **more), lock=False)
    bs.run(plan_to(model, f"{BUCKET}/out/", **more))
    expected, found = here(tmp_path / "out"), held(store)
    assert found == expected


def test_a_store_gets_an_orbax_checkpoint_that_orbax_reads(
    store: Any, model: Path, tensors: Any, tmp_path: Path
) -> None:
    bs.run(plan_to(model, f"{BUCKET}/out/", format="orbax"))
    assert {"_CHECKPOINT_METADATA", "commit_success.txt"} <= held(store).keys()
    expected = {name: value * (2 if name == "model.layers.0.w" else 1) for name, value in tensors.items()}
    assert restored(held(store), tmp_path / "copy") == {n: v.tobytes() for n, v in expected.items()}


def restored(files: Mapping[str, bytes], folder: Path) -> dict[str, bytes]:
    """The elements that orbax reads from the files of a checkpoint, which it finds in a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = traverse_util.flatten_dict(checkpointer.restore(folder / "state"), sep=".")
    return {name: np.asarray(leaf).tobytes() for name, leaf in leaves.items()}


@pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.msgpack"])
def test_a_store_gets_a_single_file(store: Any, model: Path, tmp_path: Path, name: str) -> None:
    bs.run(plan_to(model, str(tmp_path / name)))
    bs.run(plan_to(model, f"{BUCKET}/{name}"))
    assert held(store, "/bucket") == {name: (tmp_path / name).read_bytes()}


def test_what_was_uploaded_is_an_input_of_the_next_plan(store: Any, model: Path, tensors: Any) -> None:
    bs.run(plan_to(model, f"{BUCKET}/out/", shard="4MB"))
    found = bs.open(f"{BUCKET}/out")
    assert {name: np.asarray(found[name]).tobytes() for name in found} == {
        name: (value * (2 if name == "model.layers.0.w" else 1)).tobytes() for name, value in tensors.items()
    }


def test_the_note_comes_first_and_the_index_last(store: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = written(monkeypatch)
    bs.run(plan_to(model, f"{BUCKET}/out/", shard="3MB"))
    assert order[0] == NOTE
    assert order[-1] == INDEX
    assert NOTE not in held(store)


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("failure", [OSError, RuntimeError, KeyboardInterrupt])
def test_a_store_that_fails_gets_nothing_and_the_next_run_succeeds(
    store: Any, model: Path, monkeypatch: pytest.MonkeyPatch, number: int, failure: type[BaseException]
) -> None:
    before = here(model)
    with monkeypatch.context() as broken:
        written(broken, failing=number, failure=failure)
        with pytest.raises((StoreError, KeyboardInterrupt)):
            bs.run(plan_to(model, f"{BUCKET}/out/", shard="4MB"))
    assert held(store) == {}
    assert here(model) == before
    bs.run(plan_to(model, f"{BUCKET}/out/", shard="4MB"))
    assert INDEX in held(store)


def test_a_store_that_fails_for_a_moment_is_asked_again(
    store: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(monkeypatch, failing=1, failure=OSError, times=3)
    bs.run(plan_to(model, f"{BUCKET}/out/", shard="4MB"))
    assert INDEX in held(store)


def test_no_output_appears_on_the_disk_if_an_upload_fails(
    store: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = [{"path": str(tmp_path / "here") + "/"}, {"path": f"{BUCKET}/out/"}]
    written(monkeypatch, failing=1, failure=OSError)
    with pytest.raises(StoreError, match="could not write it in 5 tries"):
        bs.run(bs.load({"inputs": [f"m::{model}"], "transforms": [], "outputs": outputs}))
    assert not (tmp_path / "here").exists()


def test_nothing_in_a_store_is_replaced_not_even_with_overwrite(store: Any, model: Path) -> None:
    store.pipe_file("/bucket/out/thesis.txt", b"years of work")
    for more in ({}, {"overwrite": True}):
        with pytest.raises(PlanError, match=r"exists: it holds thesis\.txt") as caught:
            bs.run(plan_to(model, f"{BUCKET}/out/", **more))
        assert "write to a new address, or delete this first" in str(caught.value)
    assert held(store) == {"thesis.txt": b"years of work"}
    bs.run(plan_to(model, f"{BUCKET}/other/"))
    store.rm("/bucket/out", recursive=True)
    bs.run(plan_to(model, f"{BUCKET}/out/"))
    assert held(store) == held(store, "/bucket/other")


def test_check_refuses_what_is_there_and_writes_nothing(store: Any, model: Path, tmp_path: Path) -> None:
    plan_to(model, f"{BUCKET}/out/").check()
    assert held(store) == {}
    assert [*tmp_path.glob("brainsurgery-uploads-*")] == []
    store.pipe_file("/bucket/out/a", b"")
    with pytest.raises(PlanError, match="exists"):
        plan_to(model, f"{BUCKET}/out/").check()


def test_an_upload_that_was_cut_off_is_no_checkpoint_and_the_next_run_of_this_host_clears_it(
    model: Path, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/store/out/"
    killed = subprocess.run([sys.executable, "-c", CUT_OFF, str(model), url, str(tmp_path)], check=False)
    assert killed.returncode == 9
    left = here(tmp_path / "store/out")
    assert NOTE in left
    assert INDEX not in left
    with pytest.raises(StoreError, match=r"is an upload that has not ended: \d of 5 files are there"):
        bs.open(url)
    bs.run(plan_to(model, url, shard="4MB"))
    assert NOTE not in here(tmp_path / "store/out")
    assert len(bs.open(url)) == 8


CUT_OFF = """
import os, sys, tempfile
import brainsurgery_jax as bs
from fsspec.implementations.local import LocalFileSystem
model, url, tempfile.tempdir = sys.argv[1:]
put = LocalFileSystem.put_file
def cut(self, here, there, **more):
    put(self, here, there, **more)
    if there.endswith(".safetensors"):
        os._exit(9)
LocalFileSystem.put_file = cut
bs.run(bs.load({"inputs": [f"m::{model}"], "transforms": [], "output": {"path": url, "shard": "4MB"}}))
"""


def test_an_upload_of_another_host_is_left_alone(store: Any, model: Path) -> None:
    note = {"run": [1, 1, "elsewhere_0", ""], "sizes": {INDEX: 10}}
    store.pipe_file(f"/bucket/out/{NOTE}", json.dumps(note).encode())
    with pytest.raises(PlanError, match="process 1 of the host elsewhere_0 uploads to it, or was cut off") as caught:
        bs.run(plan_to(model, f"{BUCKET}/out/"))
    assert "delete what is there when no run writes to it" in str(caught.value)
    assert [*held(store)] == [NOTE]
    store.rm("/bucket/out", recursive=True)
    bs.run(plan_to(model, f"{BUCKET}/out/"))


def test_of_two_runs_to_one_address_one_alone_publishes(
    store: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = upload.ObjectUpload.send

    def send_late(self: upload.ObjectUpload, place: Any) -> None:
        monkeypatch.setattr(upload.ObjectUpload, "send", send)
        monkeypatch.setattr("tempfile.tempdir", str(model))  # as on another host
        bs.run(plan_to(model, f"{BUCKET}/out/", shard="4MB"))
        send(self, place)

    monkeypatch.setattr(upload.ObjectUpload, "send", send_late)
    with pytest.raises(StoreError, match="exists"):
        bs.run(plan_to(model, f"{BUCKET}/out/", shard="2MB"))
    assert {SHARDS[0].replace("00003", "00002"), INDEX} <= held(store).keys()


def test_a_run_whose_place_another_one_takes_ends_and_leaves_what_is_there(
    store: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every store can create a note only where there is none."""
    finish = upload.ObjectUpload.finish
    note = json.dumps({"run": [1, 1, "elsewhere_0", ""], "sizes": {INDEX: 10}}).encode()

    def finish_late(self: upload.ObjectUpload) -> None:
        store.pipe_file(f"/bucket/out/{NOTE}", note)
        finish(self)

    monkeypatch.setattr(upload.ObjectUpload, "finish", finish_late)
    with pytest.raises(StoreError, match="another run uploads to it"):
        bs.run(plan_to(model, f"{BUCKET}/out/", shard="4MB"))
    assert INDEX not in held(store)
    assert held(store)[NOTE] == note


def test_a_note_that_cannot_be_removed_makes_no_failure_of_a_published_output(
    store: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(type(store), "rm_file", refuse)
    assert bs.run(plan_to(model, f"{BUCKET}/out/", shard="4MB")).published
    assert len(bs.open(f"{BUCKET}/out")) == 8


def test_a_web_server_is_refused_with_the_way_to_upload(model: Path) -> None:
    with pytest.raises(PlanError, match="read only") as caught:
        plan_to(model, "https://host/model/").check()
    assert "Write to a folder, and upload it by the tools of its host." in str(caught.value)


def test_a_lock_and_a_journal_need_a_folder_and_say_so_before_anything_is_written(store: Any, model: Path) -> None:
    cases = ((RunOptions(lock=True), "a lock is of an output"), (RunOptions(resume=True), "can be resumed only if"))
    for options, what in cases:
        with pytest.raises(StoreError, match=what) as caught:
            run_with(plan_to(model, f"{BUCKET}/out/"), options)
        assert "Write to a folder, or run without" in caught.value.remedy
    assert held(store) == {}
    bs.run(plan_to(model, f"{BUCKET}/out/"))
    assert "model.safetensors" in held(store)


def test_the_folder_that_outputs_are_made_in_belongs_to_the_user_alone(store: Any, model: Path, tmp_path: Path) -> None:
    bs.run(plan_to(model, f"{BUCKET}/out/"))
    (folder,) = tmp_path.glob("brainsurgery-uploads-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [*folder.iterdir()] == []
    folder.chmod(0o777)
    with pytest.raises(PlanError, match="is not a folder of this user alone") as caught:
        plan_to(model, f"{BUCKET}/more/").check()
    assert "Delete it, or name another folder for temporary files by the variable TMPDIR." in str(caught.value)
    folder.rmdir()
    plan_to(model, f"{BUCKET}/more/").check()


def test_an_output_for_which_there_is_too_little_space_here_is_made_elsewhere(
    store: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage
    full = str(tmp_path / "full")
    os.mkdir(full)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: usage(path)._replace(free=1 if full in str(path) else 1 << 40)
    )
    monkeypatch.setattr("tempfile.tempdir", full)
    with pytest.raises(PlanError, match="too little space") as caught:
        plan_to(model, f"{BUCKET}/out/").check()
    assert "made there before it is uploaded; the variable TMPDIR names another place" in str(caught.value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan_to(model, f"{BUCKET}/out/").check()


def test_what_lies_beside_a_broken_upload_is_kept(store: Any, model: Path) -> None:
    dead = {"run": [2**22 + 1, 1, this_run().host, this_run().boot], "sizes": {INDEX: 10}}
    store.pipe_file(f"/bucket/out/{NOTE}", json.dumps(dead).encode())
    store.pipe_file("/bucket/out/thesis.txt", b"years of work")
    with pytest.raises(PlanError, match=r"holds other files beside a broken upload: thesis\.txt") as caught:
        bs.run(plan_to(model, f"{BUCKET}/out/"))
    assert "Write to a new address." in str(caught.value)
    assert held(store).keys() == {NOTE, "thesis.txt"}
    bs.run(plan_to(model, f"{BUCKET}/new/"))
    assert "model.safetensors" in held(store, "/bucket/new")


def written(
    monkeypatch: pytest.MonkeyPatch, *, failing: int = -1, failure: type[BaseException] = OSError, times: int = 99
) -> list[str]:
    """The names that are written to the store, in order; write number `failing` fails as often as it is tried, at most
    `times`."""
    from fsspec.implementations.memory import MemoryFileSystem

    order: list[str] = []
    left = [times]

    def wrap(write: Any, position: int) -> Any:
        def wrapped(self: Any, *args: Any, **more: Any) -> Any:
            name = args[position].removeprefix("/bucket/out/")
            if name not in order:
                order.append(name)
            if order.index(name) == failing and left[0]:
                left[0] -= 1
                raise failure("planted")
            return write(self, *args, **more)

        return wrapped

    monkeypatch.setattr(MemoryFileSystem, "put_file", wrap(MemoryFileSystem.put_file, 1))
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", wrap(MemoryFileSystem.pipe_file, 0))
    return order
