"""Files of outputs that are hard links to files of inputs: on request alone, and never in the way of the input."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import brainsurgery_jax as bs
from brainsurgery_jax.cli.app import app
from brainsurgery_jax.engine.run.joining import ProcessAddress
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.store.io import local
from tests.checkpoints import counting, normal, read, write

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(autouse=True)
def no_reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brainsurgery_jax.store.io.local.clone", lambda source, target: False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder / ONE, {"w": normal((5, 4))}, {"format": "pt"})
    write(folder / TWO, {"v": normal((5, 4)), "c": counting((8,), np.int8)}, {"format": "pt"})
    return folder


def surgery(model: Path, **options: Any) -> bs.Report:
    """A run that changes the first file alone."""
    steps = [{"scale_": {"target": "w", "by": 2}}]
    plan = {"inputs": [f"m::{model}"], "transforms": steps, "output": {"path": f"{model.parent / 'out'}/"}}
    return bs.run(bs.load(plan), durable=False, **options)


def links(path: Path) -> int:
    return path.stat().st_nlink


def test_without_the_request_nothing_is_linked(model: Path):
    surgery(model)
    assert links(model / TWO) == 1


def test_a_file_that_stays_as_it_is_becomes_a_link_and_a_note_says_so(model: Path):
    report = surgery(model, hard_links=True)
    assert (links(model / ONE), links(model / TWO)) == (1, 2)
    assert os.path.samefile(model / TWO, model.parent / "out" / TWO)
    (note,) = report.notes
    assert (note.code, note.message) == ("io-linked", f"{model.parent / 'out'}: hard links to files that were read: 1")
    assert np.array_equal(bs.open(str(model.parent / "out"))["w"], 2 * read(model / ONE)["w"])


def test_writing_to_a_link_in_place_changes_both_and_replacing_or_deleting_it_one(model: Path):
    before = (model / TWO).read_bytes()
    surgery(model, hard_links=True)
    linked = model.parent / "out" / TWO
    with linked.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([before[-1] ^ 1]))
    assert (model / TWO).read_bytes() != before
    changed = (model / TWO).read_bytes()
    write(model.parent / "new", {"v": normal((5, 4))}).replace(linked)
    assert (model / TWO).read_bytes() == changed
    surgery(model, hard_links=True, overwrite=True)
    linked.unlink()
    assert (model / TWO).read_bytes() == changed


def test_a_link_to_a_link_is_made_to_the_file_itself(model: Path):
    (model / TWO).rename(model.parent / "blob")
    (model / TWO).symlink_to(model.parent / "blob")
    surgery(model, hard_links=True)
    assert not (model.parent / "out" / TWO).is_symlink()
    assert links(model.parent / "blob") == 2


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_no_link_can_be_made_bytes_are_copied(model: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def refuse(*given: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.link", refuse)
    assert surgery(model, hard_links=True).notes == ()
    assert (model.parent / "out" / TWO).read_bytes() == (model / TWO).read_bytes()


@pytest.mark.parametrize("late", [False, True])
def test_a_file_that_was_written_to_since_it_was_opened_is_not_linked(
    model: Path, monkeypatch: pytest.MonkeyPatch, late: bool
):
    link, clone = os.link, local.LocalPlace.clone

    def link_late(source: str, target: str) -> None:
        os.utime(source, ns=(1, 1))
        link(source, target)

    def clone_late(self: Any, name: str, file: Any, **how: Any) -> Any:
        os.utime(file.name, ns=(1, 1))
        return clone(self, name, file, **how)

    if late:
        monkeypatch.setattr("os.link", link_late)
    else:
        monkeypatch.setattr(local.LocalPlace, "clone", clone_late)
    with pytest.raises(StoreError, match="changed while running"):
        surgery(model, hard_links=True)
    assert links(model / TWO) == 1
    assert not (model.parent / "out").exists()


def test_what_an_output_replaces_gives_no_mode_to_the_input(model: Path):
    surgery(model)
    for path in (model.parent / "out").iterdir():
        path.chmod(0o600)
    (model / TWO).chmod(0o644)
    surgery(model, hard_links=True, overwrite=True)
    assert (model / TWO).stat().st_mode & 0o777 == 0o644
    assert (model.parent / "out" / ONE).stat().st_mode & 0o777 == 0o600


def test_a_run_that_fails_leaves_the_input_and_no_link(model: Path):
    before = (model / TWO).read_bytes()
    steps = [{"assert": {"iszero": {"of": "w"}}}, {"scale_": {"target": "w", "by": 2}}]
    plan = {"inputs": [f"m::{model}"], "transforms": steps, "output": {"path": f"{model.parent / 'out'}/"}}
    with pytest.raises(bs.PlanError):
        bs.run(bs.load(plan), hard_links=True)
    assert (links(model / TWO), (model / TWO).read_bytes()) == (1, before)


@pytest.mark.parametrize("other", [{"resume": True}, {"distributed": ProcessAddress("localhost:1", 0, 1)}])
def test_links_are_refused_where_files_are_written_that_are_there_already(model: Path, other: dict[str, Any]):
    with pytest.raises(StoreError, match=r"(?s)cannot be combined with .*Run without one of the two"):
        surgery(model, hard_links=True, **other)
    surgery(model, hard_links=True)


def test_the_command_asks_for_links_and_prints_the_note(model: Path):
    plan = {"inputs": [f"m::{model}"], "transforms": [{"scale_": {"target": "w", "by": 2}}],
            "output": f"{model.parent / 'out'}/"}  # fmt: skip
    (model.parent / "plan.yaml").write_text(json.dumps(plan))
    done = CliRunner().invoke(app, ["run", str(model.parent / "plan.yaml"), "--hard-links"])
    assert (done.exit_code, links(model / TWO)) == (0, 2)
    assert "hard links to files that were read: 1" in done.output
