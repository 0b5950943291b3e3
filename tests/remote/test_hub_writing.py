"""Outputs of the hub: one commit or none, whatever breaks, and nothing else is deleted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError, StoreError
from tests.remote.hub import Hub, serve_hub
from tests.remote.test_writing import here, restored

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's own, of its HTTP library

OUT, URL = "org/out", "hf://org/out"
INDEX = "model.safetensors.index.json"
SHARD_FILES = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
FRESH = {".gitattributes": b"*.safetensors filter=lfs", ".gitignore": b"*"}
SHARDS = {"shard": "4MB"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with one new repository, and a token that may write there."""
    from huggingface_hub import constants

    with serve_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", found.token)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        found.commit(OUT, FRESH)
        yield found


def plan_to(model: Path, path: str = URL, **more: Any) -> bs.Plan:
    step = {"scale_": {"target": "model.layers.0.w", "by": 2.0}}
    return bs.load({"inputs": [f"m::{model}"], "transforms": [step], "output": {"path": path, **more}})


def written(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    return {name: content for name, content in hub.files(OUT, branch).items() if name not in FRESH}


@pytest.mark.parametrize("more", [SHARDS, {}, {"format": "flax"}, {"format": "delta"}], ids=str)
def test_the_hub_gets_the_files_that_a_disk_gets(hub: Hub, model: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    bs.run(plan_to(model, str(tmp_path / "out") + "/", **more), lock=False)
    bs.run(plan_to(model, **more))
    assert written(hub) == here(tmp_path / "out")


def test_the_hub_gets_an_orbax_checkpoint_that_orbax_reads(hub: Hub, model: Path, tensors: Any, tmp_path: Path) -> None:
    bs.run(plan_to(model, format="orbax"))
    expected = {name: value * (2 if name == "model.layers.0.w" else 1) for name, value in tensors.items()}
    assert restored(written(hub), tmp_path / "copy") == {n: v.tobytes() for n, v in expected.items()}


def test_the_hub_gets_a_single_file(hub: Hub, model: Path, tmp_path: Path) -> None:
    bs.run(plan_to(model, str(tmp_path / "m.safetensors")))
    bs.run(plan_to(model, f"{URL}/parts/m.safetensors"))
    assert written(hub) == {"parts/m.safetensors": (tmp_path / "m.safetensors").read_bytes()}


def test_what_was_committed_is_an_input_of_the_next_plan(hub: Hub, model: Path, tensors: Any) -> None:
    bs.run(plan_to(model, **SHARDS))
    found = bs.open(URL)
    assert {name: np.asarray(found[name]).tobytes() for name in found} == {
        name: (value * (2 if name == "model.layers.0.w" else 1)).tobytes() for name, value in tensors.items()
    }


def test_large_files_come_first_and_one_commit_last(hub: Hub, model: Path) -> None:
    bs.run(plan_to(model, **SHARDS))
    sent = [request.split()[0] for request in hub.asked if request.startswith("PUT") or "/commit/" in request]
    assert sent == ["PUT", "PUT", "POST"]
    assert len(hub.repositories[OUT]["main"]) == 2


@pytest.mark.parametrize("name", ["org/llama-3.1", "org/model.safetensors"])
def test_a_repository_is_a_folder_whatever_its_name_ends_in(hub: Hub, model: Path, name: str) -> None:
    hub.commit(name, FRESH)
    bs.run(plan_to(model, f"hf://{name}"))
    assert "model.safetensors" in hub.files(name)


def test_an_output_goes_to_the_branch_that_is_named(hub: Hub, model: Path) -> None:
    hub.commit(OUT, FRESH, "dev")
    bs.run(plan_to(model, f"{URL}@dev"))
    assert "model.safetensors" in written(hub, "dev")
    assert written(hub) == {}


def test_two_outputs_go_to_two_folders_of_one_repository(hub: Hub, model: Path) -> None:
    outputs = [{"path": f"{URL}/{name}"} for name in ("a", "b")]
    bs.run(bs.load({"inputs": [f"m::{model}"], "transforms": [], "outputs": outputs}))
    assert {"a/model.safetensors", "b/model.safetensors"} <= written(hub).keys()


def test_two_spellings_of_one_branch_are_one_place(hub: Hub, model: Path) -> None:
    outputs = [{"path": path} for path in (URL, f"{URL}@main")]
    with pytest.raises(PlanError, match="is written twice by this plan"):
        bs.load({"inputs": [f"m::{model}"], "transforms": [], "outputs": outputs}).check()


# --- What is there ----------------------------------------------------------------------------------------------------


def test_check_writes_nothing(hub: Hub, model: Path) -> None:
    before = hub.commits.copy()
    plan_to(model).check()
    assert hub.commits == before
    assert hub.large == {}
    assert [request for request in hub.asked if "GET" not in request] == [f"POST /api/models/{OUT}/preupload/main"]


def test_a_checkpoint_is_replaced_on_request_alone_and_other_files_stay(hub: Hub, model: Path) -> None:
    bs.run(plan_to(model, **SHARDS))
    others = {"README.md": b"# A card", "thesis.txt": b"years of work", "notes/a.txt": b""}
    before = hub.commit(OUT, {**hub.files(OUT), **others})
    with pytest.raises(PlanError, match="exists: it holds README") as caught:
        plan_to(model).check()
    assert "replace the checkpoint: `overwrite: true`" in str(caught.value)
    assert hub.repositories[OUT]["main"][-1] == before
    bs.run(plan_to(model, overwrite=True))
    names = {"model.safetensors", "config.json", "tokenizer.json"}
    assert written(hub).keys() == {*names, *others}
    assert {name: written(hub)[name] for name in others} == others
    assert INDEX in hub.commits[before]
    assert len(bs.open(URL)) == 8


def test_what_goes_is_told_before(hub: Hub, model: Path) -> None:
    bs.run(plan_to(model, **SHARDS))
    hub.commit(OUT, {**hub.files(OUT), "thesis.txt": b"years of work"})
    (made,) = plan_to(model, overwrite=True).explain().program.publications
    assert made.replaces is not None
    assert sorted(made.replaces.files) == ["config.json", *SHARD_FILES, INDEX, "tokenizer.json"]


def test_weights_that_are_not_of_the_checkpoint_are_neither_deleted_nor_joined(hub: Hub, model: Path) -> None:
    hub.commit(OUT, {"a.safetensors": b"", "b.safetensors": b""})
    for overwrite in (False, True):
        with pytest.raises(PlanError, match=r"it holds a\.safetensors, b\.safetensors, which") as caught:
            plan_to(model, overwrite=overwrite).check()
    assert "Write to another folder of the repository, or delete these files on the hub first." in str(caught.value)
    bs.run(plan_to(model, f"{URL}/inner"))
    hub.commit(OUT, FRESH)
    bs.run(plan_to(model))
    assert len(bs.open(URL)) == 8


def test_a_file_is_not_written_over_a_folder_nor_the_other_way_round(hub: Hub, model: Path) -> None:
    hub.commit(OUT, {"m.safetensors/x": b"", "out": b""})
    for path, problem in (("m.safetensors", "is a folder, and the output is a file"), ("out", "is a file, and the")):
        with pytest.raises(PlanError, match=problem) as caught:
            plan_to(model, f"{URL}/{path}", overwrite=True).check()
        assert "Write to another path of the repository." in str(caught.value)
    plan_to(model, f"{URL}/other").check()


def test_the_same_output_again_makes_no_commit(hub: Hub, model: Path) -> None:
    bs.run(plan_to(model))
    commits = [*hub.repositories[OUT]["main"]]
    bs.run(plan_to(model, overwrite=True))
    assert hub.repositories[OUT]["main"] == commits


# --- Who may write ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "hf_reader", "hf_unknown"])
def test_who_may_not_write_learns_it_before_anything_is_done(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.readers.add("hf_reader")
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(PlanError, match="you may not write to it") as caught:
        plan_to(model).check()
    assert "Run `hf auth login` with a token that may write to it, or name another repository." in str(caught.value)
    assert "hf_" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    plan_to(model).check()


@pytest.mark.parametrize(
    ("wrong", "problem", "remedy"),
    [
        ("hf://org/uot", "there is no such model", "Check the name."),
        (f"{URL}@v9", "has no branch 'v9'", "check its name, or create it on the hub first"),
        ("hf://out", "names no model of the hub", "Write hf://ORG/MODEL"),
    ],
)
def test_a_place_that_is_not_there_is_refused(hub: Hub, model: Path, wrong: str, problem: str, remedy: str) -> None:
    with pytest.raises(PlanError, match=problem) as caught:
        plan_to(model, wrong).check()
    assert remedy in str(caught.value)
    hub.commit("org/uot", FRESH)
    hub.commit(OUT, FRESH, "v9")
    plan_to(model, URL if "ORG" in remedy else wrong).check()


# --- What breaks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", ["PUT", "objects/batch", "/commit/"])
def test_a_request_that_fails_leaves_the_repository_as_it_was(hub: Hub, model: Path, request_: str) -> None:
    hub.failures[request_] = [400]
    with pytest.raises(StoreError, match=r"could not .* \(") as caught:
        bs.run(plan_to(model, **SHARDS))
    assert "run again: what was uploaded is not sent again" in str(caught.value)
    assert written(hub) == {}
    bs.run(plan_to(model, **SHARDS))
    assert INDEX in written(hub)
    assert hub.count("PUT") == 2 + (request_ == "PUT")


@pytest.mark.parametrize("request_", ["PUT", "/commit/"])
def test_a_branch_that_moves_meanwhile_is_not_written_to(hub: Hub, model: Path, request_: str) -> None:
    hub.before[request_] = lambda: hub.commit(OUT, {**FRESH, "thesis.txt": b"years of work"})
    with pytest.raises(StoreError, match="there is another commit on the branch 'main'") as caught:
        bs.run(plan_to(model))
    assert "look at it, then run again" in str(caught.value)
    assert written(hub) == {"thesis.txt": b"years of work"}
    bs.run(plan_to(model, overwrite=True))
    assert {"model.safetensors", "thesis.txt"} <= written(hub).keys()


def test_a_commit_whose_answer_is_lost_is_found(hub: Hub, model: Path) -> None:
    hub.lose.add("/commit/")
    assert bs.run(plan_to(model)).published
    assert "model.safetensors" in written(hub)


def test_a_commit_of_which_nothing_is_known_says_so(hub: Hub, model: Path) -> None:
    hub.lose.add("/commit/")
    hub.before["/commit/"] = lambda: hub.failures.update({"/refs": [400] * 9})
    with pytest.raises(StoreError, match="whether the hub made it is not known") as caught:
        bs.run(plan_to(model))
    assert "Look at it before you run again." in str(caught.value)
    hub.failures.clear()
    assert len(bs.open(URL)) == 8


def test_a_commit_that_only_deletes_is_not_taken_for_made_if_it_failed(hub: Hub, model: Path) -> None:
    bs.run(plan_to(model))
    hub.commit(OUT, {**hub.files(OUT), "pytorch_model.bin": b"old"})
    hub.failures["/commit/"] = [400]
    with pytest.raises(StoreError, match="could not commit to it"):
        bs.run(plan_to(model, overwrite=True))
    bs.run(plan_to(model, overwrite=True))
    assert "pytorch_model.bin" not in written(hub)


def test_a_commit_that_lacks_a_file_is_told(hub: Hub, model: Path) -> None:
    hub.forgets = "config.json"
    before = hub.repositories[OUT]["main"][-1]
    with pytest.raises(StoreError, match=r"does not hold what was sent: config\.json") as caught:
        bs.run(plan_to(model))
    assert f"Run again, and overwrite it. The commit before it is {before}." in str(caught.value)
    hub.forgets = ""
    bs.run(plan_to(model, overwrite=True))
    assert {"config.json", "model.safetensors"} <= written(hub).keys()


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_that_is_killed_leaves_the_repository_as_it_was(
    hub: Hub, model: Path, tmp_path: Path, number: int
) -> None:
    plan = {"inputs": [f"m::{model}"], "transforms": [], "output": {"path": URL, **SHARDS}}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    ways = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "brainsurgery_jax", "run", str(tmp_path / "plan.yaml")]
    child = subprocess.Popen(command, env=os.environ | ways)
    kill_at(hub, number, child.kill)
    assert child.wait() == -9
    assert written(hub) == {}
    hub.before.clear()
    bs.run(bs.load(plan))
    assert INDEX in written(hub)


def kill_at(hub: Hub, number: int, kill: Callable[[], None]) -> None:
    """Calls when the hub is sent a large file for the `number`-th time."""
    if number == 1:
        hub.before["PUT"] = kill
    else:
        hub.before["PUT"] = lambda: kill_at(hub, number - 1, kill)
