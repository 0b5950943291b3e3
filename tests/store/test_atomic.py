"""Publishing: whole or not at all, nothing lost, and what a killed run leaves behind."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.engine.events import Wrote
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store import atomic
from brainsurgery_jax.store.atomic import Staged, publish, stage
from brainsurgery_jax.store.leftovers import OLD, PARTIAL, SCRATCH, STALE, beside, recover, show_age
from brainsurgery_jax.store.runs import RunId, this_run
from tests.checkpoints import read, write


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


def published_by_nobody(out: Path) -> str:
    """What `publish` returns where a folder replaces `out`, as a user who may not do everything, even if we may."""
    code = f"""
import ctypes, os, pwd  # whose files the other user may not be able to read
from brainsurgery_jax.store.atomic import publish, stage
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
item = stage({str(out)!r}, overwrite=True)
os.mkdir(item.staging)
open(os.path.join(item.staging, "new.safetensors"), "w").close()
print(publish([item]))
"""
    if os.getuid() == 0:
        for path in (out.parent, out, *out.iterdir()):
            os.chown(path, 65534, 65534)
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


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


def test_an_output_named_through_a_link_replaces_what_the_link_points_to(tmp_path: Path) -> None:
    folder(tmp_path / "disk", "model.safetensors")
    (tmp_path / "out").symlink_to("disk")
    publish([staged_folder(tmp_path / "out", "new.safetensors")], overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["new.safetensors"]


def test_an_existing_destination_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_text("old")
    with pytest.raises(StoreError, match=r"m.safetensors: exists already\n.*overwrite: true.*overwrite=True"):
        publish([staged_file(tmp_path / "m.safetensors")])
    assert (tmp_path / "m.safetensors").read_text() == "old"


def test_a_destination_that_appears_during_the_run_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = staged_file(tmp_path / "1"), staged_file(tmp_path / "2")
    place = atomic._into_place

    def racing(item: Staged, overwrite: bool) -> Any:
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
    folder(tmp_path / "out", "model.safetensors")
    item = staged_folder(tmp_path / "out", "new.safetensors", overwrite=True)
    rename = os.rename

    def failing(source: str, target: str) -> None:
        if source == item.staging:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(atomic, "_renameat2", without_renameat2)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(StoreError, match="could not be published: Input/output error"):
        publish([item])
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


def test_a_folder_that_became_something_else_during_the_run_is_kept(tmp_path: Path) -> None:
    folder(tmp_path / "out", "model.safetensors")
    item = staged_folder(tmp_path / "out", "model.safetensors", overwrite=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"out: exists, and cannot be overwritten: it holds notes\.txt, which is no"):
        publish([item])
    assert sorted(os.listdir(tmp_path / "out")) == ["model.safetensors", "notes.txt"]


@SWAPS
def test_what_appears_at_the_very_last_moment_is_not_removed_with_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    folder(tmp_path / "out", "model.safetensors")
    item = staged_folder(tmp_path / "out", "new.safetensors", overwrite=True)
    rename = atomic._renameat2 if exchange else without_renameat2

    def racing(source: str, target: str, flag: int) -> bool:
        (tmp_path / "out" / "notes.txt").write_text("mine")
        return rename(source, target, flag)

    monkeypatch.setattr(atomic, "_renameat2", racing)
    (left,) = publish([item])
    monkeypatch.undo()
    publish([staged_folder(tmp_path / "out", "newer.safetensors", overwrite=True)])
    assert os.listdir(tmp_path / "out") == ["newer.safetensors"]
    assert (left.kept, left.path) == (True, str(tmp_path / "out.kept-1"))
    assert os.listdir(left.path) == ["notes.txt"]


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


# --- Other hosts ------------------------------------------------------------------------------------------------------

ELSEWHERE = RunId(99999999, 1, "node7_3fa91c0b", "5d0c8e1f")
"""A run of another host, whose process id no process of this one has."""


def test_two_runs_of_one_host_and_process_id_have_names_of_their_own() -> None:
    ours = this_run()
    others = [ours._replace(start=1), ours._replace(host="node7_3fa91c0b"), ours._replace(boot="5d0c8e1f")]
    assert len({beside("/out", PARTIAL, run) for run in (ours, *others)}) == 4


@pytest.mark.parametrize("name", ["x" * 200, "é" * 100, "x" * 120])
def test_a_long_name_fits_beside_its_destination_with_run_and_host(tmp_path: Path, name: str) -> None:
    longest = RunId(2**22, 10**12, "x" * 24 + "_3fa91c0b", "5d0c8e1f")
    Path(stage(str(tmp_path / name), run=longest).staging + SCRATCH).write_text("tensors")
    assert [left.run for left in stage(str(tmp_path / name)).foreign] == [longest]
    assert not stage(str(tmp_path / f"{name[:-1]}y")).foreign


def test_a_partial_of_another_host_is_left_and_named(tmp_path: Path) -> None:
    theirs = Path(stage(str(tmp_path / "out"), run=ELSEWHERE).staging)
    folder(theirs, "model.safetensors")
    hours_ago = time.time() - 3 * 3600 - 60
    os.utime(theirs, (hours_ago, hours_ago))
    item = stage(str(tmp_path / "out"))
    assert os.listdir(theirs) == ["model.safetensors"]
    (left,) = item.foreign
    assert str(left.note(item.destination)) == (
        f"note: {tmp_path}/out: an unfinished output of process 99999999 on another host, node7_3fa91c0b, lies beside "
        "it, last changed 3 hours ago [io-foreign-run]\n"
        f"    It was left alone. When that run is over, delete it by hand: {theirs}"
    )


def test_each_of_two_hosts_publishes_its_own_output(tmp_path: Path) -> None:
    theirs = stage(str(tmp_path / "out"), run=ELSEWHERE, overwrite=True)
    folder(Path(theirs.staging), "theirs.safetensors")
    publish([staged_folder(tmp_path / "out", "ours.safetensors")])
    assert os.listdir(tmp_path / "out") == ["ours.safetensors"]
    publish([theirs])
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["theirs.safetensors"]


@pytest.mark.parametrize("kind", [PARTIAL, OLD, STALE])
def test_nothing_of_another_host_is_removed_or_put_back(tmp_path: Path, kind: str) -> None:
    theirs = folder(Path(beside(str(tmp_path / "out"), kind, ELSEWHERE)), "model.safetensors")
    (left,) = stage(str(tmp_path / "out")).foreign
    recover(str(tmp_path / "out"))
    assert (left.kind, os.listdir(tmp_path)) == (kind, [theirs.name])


def test_a_scratch_file_of_another_host_is_left(tmp_path: Path) -> None:
    theirs = Path(beside(str(tmp_path / "out"), PARTIAL, ELSEWHERE) + SCRATCH)
    theirs.write_text("tensors")
    assert [left.path for left in stage(str(tmp_path / "out")).foreign] == [str(theirs)]
    assert theirs.exists()


def test_a_partial_of_this_host_from_before_it_was_booted_is_removed(tmp_path: Path) -> None:
    before = this_run()._replace(boot="00000000")
    Path(beside(str(tmp_path / "out"), PARTIAL, before)).write_text("half")
    assert stage(str(tmp_path / "out"), run=this_run()._replace(boot="11111111")).foreign == ()
    assert os.listdir(tmp_path) == []


def test_a_run_reports_the_partial_of_another_host_and_does_its_work(tmp_path: Path) -> None:
    write(tmp_path / "in.safetensors", {"w": np.ones(3, np.float32)})
    theirs = Path(stage(str(tmp_path / "out.safetensors"), run=ELSEWHERE).staging)
    theirs.write_text("half")
    report = bs.load({"inputs": [str(tmp_path / "in.safetensors")], "output": str(tmp_path / "out.safetensors")}).run()
    assert [note.code for note in report.notes] == ["io-foreign-run"]
    assert read(tmp_path / "out.safetensors").keys() == {"w"} and theirs.read_text() == "half"


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(0, "less than a minute"), (60, "1 minute"), (7200, "2 hours"), (86400, "1 day"), (10**6, "11 days")],
)
def test_an_age_is_shown_in_its_largest_unit(seconds: int, age: str) -> None:
    assert show_age(seconds) == age


# --- What is left, and mended ----------------------------------------------------------------------------------------


def test_a_run_killed_between_the_two_renames_is_mended_by_the_next(tmp_path: Path) -> None:
    folder(tmp_path / ".out.brainsurgery-old-99999999-1", "model.safetensors")
    stage(str(tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


def test_whoever_opens_what_such_a_run_had_set_aside_finds_it(tmp_path: Path) -> None:
    aside = tmp_path / ".out.brainsurgery-old-99999999-1"
    aside.mkdir()
    write(aside / "model.safetensors", {"w": np.ones(3, np.float32)})
    assert list(bs.open(str(tmp_path / "out" / "model.safetensors"))) == ["w"]
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_run_that_is_alive_has_set_aside_is_left_to_it(tmp_path: Path) -> None:
    aside = folder(Path(beside(str(tmp_path / "out"), OLD)), "model.safetensors")
    recover(str(tmp_path / "out"))
    assert os.listdir(tmp_path) == [aside.name]


def test_an_edit_in_place_that_was_killed_between_the_two_renames_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write(tmp_path / "model" / "model.safetensors", {"w": np.ones(3, np.float32)})
    plan = {"inputs": ["model"], "transforms": [{"scale_": {"target": "w", "by": 2}}],
            "output": {"path": "model", "overwrite": True}}  # fmt: skip
    code = f"""
import os, signal
import brainsurgery_jax as bs
from brainsurgery_jax.store import atomic
atomic._renameat2 = lambda *given: False
rename = os.rename
def killed(source, target):
    if "-old-" in source or "-old-" not in target:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.rename = killed
bs.load({plan!r}).run()
"""
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | path, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    with contextlib.chdir(tmp_path):
        bs.load(plan).run()
    assert (read(tmp_path / "model" / "model.safetensors")["w"] == 2).all()
    assert os.listdir(tmp_path) == ["model"]


def test_an_old_checkpoint_in_a_read_only_folder_is_removed() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        out = folder(Path(place) / "out", "model.safetensors")
        out.chmod(0o555)
        assert published_by_nobody(out) == "()"
        assert (os.listdir(place), os.listdir(out), mode(out)) == (["out"], ["new.safetensors"], 0o555)


def test_an_old_checkpoint_that_cannot_be_removed_is_reported_and_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "out", "model.safetensors")

    def denied(*given: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "remove_replaced", denied)
        (left,) = publish([staged_folder(tmp_path / "out", "new.safetensors", overwrite=True)])
        (again,) = publish([staged_folder(tmp_path / "out", "newer.safetensors", overwrite=True)])
    assert (left.reason, os.listdir(tmp_path / "out")) == ("Permission denied", ["newer.safetensors"])
    assert again.reason == "Permission denied"
    publish([staged_folder(tmp_path / "out", "newest.safetensors", overwrite=True)])
    assert os.listdir(tmp_path) == ["out"]


def test_what_cannot_be_removed_becomes_a_note_of_a_run_that_did_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*given: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("base", "out"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "model.safetensors", {"w": np.ones(3, np.float32)})
    monkeypatch.setattr(atomic, "remove_replaced", denied)
    plan = {"inputs": [str(tmp_path / "base")], "output": {"path": str(tmp_path / "out"), "overwrite": True}}
    report = bs.load(plan).run()
    assert [path for path, _, _ in report.published] == [str(tmp_path / "out")]
    (note,) = report.notes
    assert note.code == "io-left"
    assert "out: the new output is in place, but what it replaced could not be removed: Permission denied" in str(note)


# --- Modes -----------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("old", [0o600, 0o640, 0o664, 0o444])
def test_a_file_keeps_the_mode_of_the_one_that_it_replaces(tmp_path: Path, old: int) -> None:
    (tmp_path / "m.safetensors").write_text("old")
    (tmp_path / "m.safetensors").chmod(old)
    publish([staged_file(tmp_path / "m.safetensors", overwrite=True)])
    assert (mode(tmp_path / "m.safetensors"), (tmp_path / "m.safetensors").read_text()) == (old, "new")


def test_a_folder_and_its_files_keep_their_modes_and_new_names_get_no_more_than_all_old_files_had(
    tmp_path: Path,
) -> None:
    old = folder(tmp_path / "out", "config.json", "model.safetensors", "pytorch_model.bin")
    for name, bits in (("config.json", 0o644), ("model.safetensors", 0o600), ("pytorch_model.bin", 0o640)):
        (old / name).chmod(bits)
    old.chmod(0o2750)
    publish([staged_folder(old, "config.json", "model.safetensors", "model-2.safetensors", overwrite=True)])
    found = {path.name: mode(path) for path in old.iterdir()}
    assert found == {"config.json": 0o644, "model.safetensors": 0o600, "model-2.safetensors": 0o600}
    assert mode(old) == 0o2750


def test_an_empty_folder_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o700)
    publish([staged_folder(tmp_path / "out", "model.safetensors")])
    assert mode(tmp_path / "out") == 0o700


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_new_outputs_follow_the_umask(tmp_path: Path, umask: int) -> None:
    source = write(tmp_path / "m.safetensors", {"w": np.ones(3, np.float32)})
    before = os.umask(umask)
    try:
        outputs = [str(tmp_path / "file.safetensors"), str(tmp_path / "folder/")]
        bs.load({"inputs": [str(source)], "outputs": outputs}).run()
    finally:
        os.umask(before)
    found = [mode(tmp_path / name) for name in ("file.safetensors", "folder", "folder/model.safetensors")]
    assert found == [0o666 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


def test_what_will_replace_something_private_is_private_while_it_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", {"w": np.ones((300, 300), np.float32)})
    old = write(tmp_path / "old.safetensors", {"w": np.ones(3, np.float32)})
    old.chmod(0o600)
    seen: list[int] = []

    def look(event: Any) -> None:
        if isinstance(event, Wrote):
            seen.extend(mode(path) for path in tmp_path.glob(".old*"))

    plan = {"inputs": [str(source)], "transforms": [{"scale_": {"target": "w", "by": 2}}],
            "output": {"path": str(old), "overwrite": True}}  # fmt: skip
    bs.load(plan).run(listen=look)
    assert set(seen) == {0o600}
    assert mode(old) == 0o600


# --- Folders that are created ---------------------------------------------------------------------------------------


def test_a_failed_run_removes_the_empty_folders_that_it_created(tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", {"w": np.ones(2, np.float32)})
    outputs = [{"path": str(tmp_path / "new" / place)} for place in ("deep/a.safetensors", "b", "c.npz")]
    plan = {"inputs": [str(tmp_path / "m.safetensors")], "transforms": [{"assert": {"iszero": {"of": "w"}}}],
            "outputs": outputs}  # fmt: skip
    with pytest.raises(bs.PlanError):
        bs.load(plan).run()
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_discarded_output_leaves_folders_that_were_there_or_hold_something(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    items = [staged_file(tmp_path / "there" / "x"), staged_file(tmp_path / "new" / "deep" / "x")]
    (tmp_path / "new" / "other").touch()
    for item in items:
        atomic.discard(item)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["new", "new/other", "there"]


def test_a_file_where_a_folder_should_be_leaves_no_new_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        stage(str(tmp_path / "file" / "deep" / "x"))
    assert os.listdir(tmp_path) == ["file"]


# --- Details ---------------------------------------------------------------------------------------------------------


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
