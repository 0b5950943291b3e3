"""What a refusal of the workbench says to do, done."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("nicegui", reason="NiceGUI is not installed: pip install 'brainsurgery-jax[web]'")

import brainsurgery_jax as bs
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.plan.source import Map, compose
from brainsurgery_jax.web.confined import Root
from brainsurgery_jax.web.transfer import list_members, size_of_archive, stream_archive, take_upload
from brainsurgery_jax.web.workbench import Workbench
from tests.web.apart import run_apart
from tests.web.conftest import add_input, write_model


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (root := tmp_path / "root").mkdir()
    monkeypatch.chdir(root)
    return root


def test_a_port_that_is_taken_is_told_and_another_is_free(root: Path):
    command = [sys.executable, "-m", "brainsurgery_jax", "web"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=120)
        assert done.returncode == 3
        assert "Choose another `--port`, or leave it out." in done.stderr
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("http://127.0.0.1:")
            process.terminate()


def test_a_checkpoint_that_is_not_there_is_told_before_anything_is_served(root: Path):
    command = [sys.executable, "-m", "brainsurgery_jax", "web", "nothing.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, "") and "nothing.safetensors" in done.stderr


def test_another_root_opens_what_lies_outside(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_model(tmp_path / "model.safetensors")
    with pytest.raises(StoreError, match="with another `--root` to open it"):
        Workbench(Root(str(root))).open("../model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert len(Workbench(Root(str(tmp_path))).open("model.safetensors").avals) == 11


def test_a_plan_that_reads_the_environment_runs_on_the_command_line(root: Path, monkeypatch: pytest.MonkeyPatch):
    write_model(root / "model.safetensors")
    monkeypatch.setenv("BY", "2")
    bench = Workbench(Root(str(root)))
    bench.write("inputs: [model.safetensors]\ntransforms:\n- scale_: {target: wte.weight, by: '${env.BY}'}\n")
    assert [d.hint for d in bench.check()] == ["Run the plan on the command line instead."]
    found = compose(bench.text, "plan.yaml")
    assert isinstance(found, Map) and bs.check(bs.load(found)) == ()


def test_a_text_that_is_no_plan_is_told_how_one_is_written(root: Path):
    write_model(root / "model.safetensors")
    bench = Workbench(Root(str(root)))
    bench.write("- scale_: {target: wte.weight, by: 2}\n")
    assert "Write `inputs: [model.safetensors]` and `transforms: [...]`." in bench.check()[0].hint
    bench.write("inputs: [model.safetensors]\ntransforms: [{scale_: {target: wte.weight, by: 2}}]\n")
    assert bench.check() == ()


def test_a_checkpoint_that_was_closed_is_opened_again(root: Path):
    write_model(root / "model.safetensors")
    bench = Workbench(Root(str(root)))
    bench.open("model.safetensors")
    bench.close("model.safetensors")
    with pytest.raises(StoreError, match=r"is not open any more\n.*Open it again\."):
        bench.opened.measure("model.safetensors", "wte.weight")
    bench.open("model.safetensors")
    assert bench.opened.measure("model.safetensors", "wte.weight") is not None
    bench.close_all()


def test_what_was_tried_is_no_input_but_the_output_of_a_run_is(root: Path):
    write_model(root / "model.safetensors")
    bench = Workbench(Root(str(root)))
    plan = "inputs: [model.safetensors]\ntransforms: [{scale_: {target: wte.weight, by: 2}}]\noutput: out.safetensors\n"
    bench.write(plan)
    tried = bench.try_plan(1)
    with pytest.raises(StoreError, match=r"Run the plan, and open its output\."):
        add_input(bench, tried.path)
    assert bench.text == plan
    scratch = Path(tried.checkpoint.path)
    assert scratch.exists()
    bench.close(tried.path)
    assert not scratch.exists()
    bench.run(overwrite=False)
    bench.wait()
    bench.open("out.safetensors")
    assert add_input(bench, "out.safetensors") == "model_2"
    assert "model_2::out.safetensors" in bench.text
    bench.close_all()


async def _pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


def send(root: Path, path: str) -> str:
    return run_apart(take_upload(Root(str(root)), path, _pieces(b"x", b"y")))


def test_an_upload_that_would_replace_a_file_is_renamed(root: Path):
    (root / "a.bin").write_bytes(b"old")
    with pytest.raises(StoreError, match="Rename the file, and upload it again"):
        send(root, "a.bin")
    assert send(root, "b.bin") == "b.bin"
    assert ((root / "a.bin").read_bytes(), (root / "b.bin").read_bytes()) == (b"old", b"xy")


def test_an_upload_with_a_hidden_part_is_renamed(root: Path):
    with pytest.raises(StoreError, match="Rename the file: no part may begin with a dot"):
        send(root, "a/.b/c.bin")
    assert send(root, "a/b/c.bin") == "a/b/c.bin" and (root / "a/b/c.bin").read_bytes() == b"xy"


def test_a_folder_behind_a_link_is_downloaded_by_itself(root: Path):
    (root / "real").mkdir()
    (root / "real" / "a.bin").write_bytes(b"a")
    (root / "outer").mkdir()
    (root / "outer" / "link").symlink_to("../real")
    with pytest.raises(StoreError, match="Download the folder that it leads to by itself"):
        list_members(Root(str(root)), "outer")
    assert [one.name for one in list_members(Root(str(root)), "outer/link")] == ["real/a.bin"]


def test_a_file_that_shrank_while_it_was_sent_is_downloaded_again(root: Path):
    (root / "folder").mkdir()
    (root / "folder" / "a.bin").write_bytes(b"a" * 100)
    members = list_members(Root(str(root)), "folder")
    (root / "folder" / "a.bin").write_bytes(b"a")
    with pytest.raises(StoreError, match="Download the folder once more"):
        list(stream_archive(members))
    again = list_members(Root(str(root)), "folder")
    assert sum(map(len, stream_archive(again))) == size_of_archive(again)


def test_a_pipe_is_left_out_of_no_archive_but_refused(root: Path):
    (root / "folder").mkdir()
    os.mkfifo(root / "folder" / "pipe")
    with pytest.raises(StoreError, match="it is a FIFO, not a file"):
        list_members(Root(str(root)), "folder")


def test_folders_of_an_upload_that_failed_do_not_stay(root: Path):
    async def ends() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(StoreError, match="no space"):
        run_apart(take_upload(Root(str(root)), "a/b/model.safetensors", ends()))
    assert list(root.iterdir()) == []


def test_hidden_files_are_in_no_archive(root: Path):
    (root / "folder" / ".git").mkdir(parents=True)
    for name in ("folder/.git/config", "folder/.hidden", "folder/shown"):
        (root / name).write_text("x")
    assert [one.name for one in list_members(Root(str(root)), "folder")] == ["folder/shown"]
