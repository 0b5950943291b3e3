"""Publishing: whole or not at all, nothing lost, and what a killed run leaves behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store import atomic
from brainsurgery_jax.store.atomic import Staged, check_destination, publish, stage


def staged_file(destination: Path, text: str = "new", *, overwrite: bool = False) -> Staged:
    item = stage(str(destination), overwrite=overwrite)
    Path(item.staging).write_text(text)
    return item


def staged_folder(destination: Path, *names: str, overwrite: bool = False) -> Staged:
    item = stage(str(destination), overwrite=overwrite)
    folder(Path(item.staging), *names)
    return item


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text(name)
    return path


def without_renameat2(source: str, target: str, flag: int) -> bool:
    return False


SWAPS = pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])


def test_the_staging_path_lies_beside_the_destination_and_tells_whose_it_is(tmp_path: Path) -> None:
    item = stage(str(tmp_path / "deep" / "out"))
    assert item.destination == str(tmp_path / "deep" / "out")
    assert item.staging.startswith(str(tmp_path / "deep" / f".out.brainsurgery-partial-{os.getpid()}-"))
    assert os.listdir(tmp_path / "deep") == []


def test_a_new_file_appears_under_its_name_and_nothing_else_stays(tmp_path: Path) -> None:
    publish([staged_file(tmp_path / "m.safetensors")])
    assert os.listdir(tmp_path) == ["m.safetensors"]


@SWAPS
def test_a_new_folder_replaces_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_renameat2", without_renameat2)
    (tmp_path / "out").mkdir()
    publish([staged_folder(tmp_path / "out", "model.safetensors")])
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    assert os.listdir(tmp_path) == ["out"]


@SWAPS
def test_overwriting_swaps_the_folder_whole_so_that_stale_shards_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_renameat2", without_renameat2)
    folder(tmp_path / "out", "model.safetensors.index.json", "model-00001-of-00001.safetensors")
    publish([staged_folder(tmp_path / "out", "model.safetensors", overwrite=True)])
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    assert os.listdir(tmp_path) == ["out"]


@SWAPS
def test_a_file_and_a_folder_may_replace_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_renameat2", without_renameat2)
    (tmp_path / "out").write_text("a file")
    publish([staged_folder(tmp_path / "out", "model.safetensors")], overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    publish([staged_file(tmp_path / "out")], overwrite=True)
    assert (tmp_path / "out").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_named_through_a_link_replaces_what_the_link_points_to(tmp_path: Path) -> None:
    folder(tmp_path / "disk", "model.safetensors")
    (tmp_path / "out").symlink_to("disk")
    publish([staged_folder(tmp_path / "out", "new.safetensors")], overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["new.safetensors"]


def test_an_existing_destination_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_text("old")
    with pytest.raises(StoreError, match=r"m.safetensors: exists already\n.*overwrite: true.*--overwrite"):
        publish([staged_file(tmp_path / "m.safetensors")])
    assert (tmp_path / "m.safetensors").read_text() == "old"


def test_a_destination_that_appears_during_the_run_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = staged_file(tmp_path / "1"), staged_file(tmp_path / "2")
    place = atomic._into_place

    def racing(item: Staged, overwrite: bool):
        (tmp_path / "2").write_text("somebody else's")
        return place(item, overwrite)

    monkeypatch.setattr(atomic, "_into_place", racing)
    with pytest.raises(StoreError, match=r"2: could not be published: exists already\n.*Published already: \S*1\. Not"):
        publish([first, second])
    assert (tmp_path / "2").read_text() == "somebody else's"


def test_all_destinations_are_checked_before_the_first_is_published(tmp_path: Path) -> None:
    (tmp_path / "2").write_text("old")
    with pytest.raises(StoreError, match="2: exists already"):
        publish([staged_file(tmp_path / "1"), staged_file(tmp_path / "2")])
    assert not (tmp_path / "1").exists()


def test_a_failure_half_way_says_what_was_published(tmp_path: Path) -> None:
    items = [staged_file(tmp_path / name) for name in ("1", "2", "3")]
    os.remove(items[1].staging)
    with pytest.raises(
        StoreError, match=r"2: could not be published: No such file.*\n.*already: \S*1\. Not.*2, \S*3\."
    ):
        publish(items)
    assert (tmp_path / "1").exists() and not (tmp_path / "3").exists()


def test_a_swap_that_fails_in_the_middle_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_renameat2", without_renameat2)
    folder(tmp_path / "out", "model.safetensors")
    item = staged_folder(tmp_path / "out", "new.safetensors", overwrite=True)
    shutil.rmtree(item.staging)
    with pytest.raises(StoreError, match="could not be published: No such file"):
        publish([item])
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


def test_overwriting_refuses_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    folder(tmp_path / "thesis", "chapter1.tex", "chapter2.tex")
    with pytest.raises(StoreError, match=r"thesis: will not be overwritten: it holds 2 files .* none of a checkpoint"):
        publish([staged_folder(tmp_path / "thesis", "model.safetensors")], overwrite=True)


def test_overwriting_refuses_the_folder_that_we_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "model", "model.safetensors", "plan.yaml")
    monkeypatch.chdir(tmp_path / "model")
    with pytest.raises(StoreError, match="will not be overwritten: the current folder is in it"):
        check_destination(".", 0, overwrite=True)
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(tmp_path / "model" / "me"))
    with pytest.raises(StoreError, match="will not be overwritten: your home folder is in it"):
        check_destination(str(tmp_path / "model"), 0, overwrite=True)


def test_a_mount_point_is_refused_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(tmp_path))
    with pytest.raises(StoreError, match=r"is a mount point, .*\n.*for example .*/model"):
        check_destination(str(tmp_path), 0, overwrite=True)


KILLED = """
import os, signal
from pathlib import Path
from brainsurgery_jax.store.atomic import stage
item = stage({destination!r})
Path(item.staging).mkdir()
Path(item.staging, "model.safetensors").write_text("half")
print("staged", flush=True)
{end}
"""


def start(destination: Path, end: str) -> subprocess.Popen[str]:
    program = KILLED.format(destination=str(destination), end=end)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "staged\n"
    return process


def test_a_killed_run_leaves_only_its_partial_and_the_next_one_removes_it(tmp_path: Path) -> None:
    process = start(tmp_path / "out", "os.kill(os.getpid(), signal.SIGKILL)")
    assert process.wait() == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(f".out.brainsurgery-partial-{process.pid}-")
    stage(str(tmp_path / "other"))
    assert os.listdir(tmp_path) == [left]
    publish([staged_folder(tmp_path / "out", "model.safetensors")])
    assert os.listdir(tmp_path) == ["out"]


def test_a_dead_run_that_nobody_has_reaped_counts_as_dead(tmp_path: Path) -> None:
    process = start(tmp_path / "out", "os.kill(os.getpid(), signal.SIGKILL)")
    while "Z" not in Path(f"/proc/{process.pid}/stat").read_text():
        time.sleep(0.01)
    stage(str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []
    process.wait()


def test_a_run_that_is_alive_keeps_its_partial(tmp_path: Path) -> None:
    process = start(tmp_path / "out", "signal.pause()")
    with pytest.raises(StoreError, match=rf"out: is being written by process {process.pid} already\n.*Wait"):
        stage(str(tmp_path / "out"))
    process.kill()
    process.wait()


def test_the_same_destination_twice_in_one_process_is_refused(tmp_path: Path) -> None:
    staged_file(tmp_path / "m.safetensors")
    with pytest.raises(StoreError, match="is being written by this process already"):
        stage(str(tmp_path / "m.safetensors"))


def test_a_partial_of_an_earlier_process_with_our_id_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".out.brainsurgery-partial-{os.getpid()}-1").write_text("from before the container restarted")
    stage(str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


def test_a_run_killed_between_the_two_renames_is_mended_by_the_next(tmp_path: Path) -> None:
    folder(tmp_path / ".out.brainsurgery-old-99999999-1", "model.safetensors")
    stage(str(tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


def test_checking_a_destination_writes_nothing(tmp_path: Path) -> None:
    check_destination(str(tmp_path / "a" / "b" / "m.safetensors"), 1000, overwrite=False)
    assert os.listdir(tmp_path) == []


def test_a_parent_that_is_a_file_is_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot be created: .*/a is a file, not a folder"):
        check_destination(str(tmp_path / "a" / "b" / "out"), 0, overwrite=False)


def test_a_parent_that_cannot_be_written_is_found_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match=r"cannot be created: the folder .* is not writable"):
        check_destination(str(tmp_path / "out"), 0, overwrite=False)


def test_too_little_space_is_told_in_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 3 << 20))
    with pytest.raises(
        StoreError, match=r"too little space: 5.0 GB to be written, 3.0 MB free \(5368709120 and 3145728"
    ):
        check_destination(str(tmp_path / "out"), 5 << 30, overwrite=False)


def test_durable_publishing_flushes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(atomic, "fsync_path", flushed.append)
    publish([staged_file(tmp_path / "1")], durable=False)
    assert flushed == []
    publish([staged_file(tmp_path / "2"), staged_file(tmp_path / "3")])
    assert flushed == [str(tmp_path)]


def test_a_kernel_without_exchange_is_told_from_a_real_failure(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        atomic._renameat2(str(tmp_path / "none"), str(tmp_path / "x"), 1)
    assert caught.value.errno == errno.ENOENT
    (tmp_path / "some").touch()
    assert not atomic._renameat2(str(tmp_path / "some"), str(tmp_path / "x"), 1 << 30)
