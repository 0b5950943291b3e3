"""What a checkpoint holds beside tensors (a run's arguments, keys of services) goes no further than its own file: names
are shown, values nowhere, and no output has any of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch

import brainsurgery_jax as bs
from tests.checkpoints import write

SECRET = "hf_dontcopyme"
W = np.ones((2, 3), np.float32)


def torch_file(place: Path) -> str:
    torch.save({"state_dict": {"w": torch.ones(2, 3)}, "epoch": 3, "args": {"api_key": SECRET}}, place / "in.pt")
    return "in.pt"


def flat_torch_file(place: Path) -> str:
    torch.save({"w": torch.ones(2, 3), "token": SECRET, "args": {"keys": [SECRET]}}, place / "in.bin")
    return "in.bin"


def numpy_archive(place: Path) -> str:
    np.savez(place / "in.npz", w=W, token=np.array(SECRET.encode()))
    return "in.npz"


def distributed(place: Path) -> str:
    from torch.distributed.checkpoint.state_dict_saver import save

    save({"w": torch.ones(2, 3), "token": SECRET}, checkpoint_id=place / "dcp", no_dist=True)
    return "dcp"


def orbax_tree(place: Path) -> str:
    with ocp.PyTreeCheckpointer() as saver:
        saver.save(place / "tree", {"w": W, "token": SECRET})
    return "tree"


def output_of_an_earlier_version(place: Path) -> str:
    write(place / "in.safetensors", {"w": W}, {"format": "pt", "brainsurgery.left_out": json.dumps({"token": SECRET})})
    return "in.safetensors"


MAKERS = (torch_file, flat_torch_file, numpy_archive, distributed, orbax_tree, output_of_an_earlier_version)
FORMATS = ("safetensors", "torch", "dcp", "peft", "npz", "orbax")


def holds_secret(place: Path) -> bool:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return any(SECRET.encode() in path.read_bytes() for path in files)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_no_output_holds_what_was_left_out(here: Path, make: Any, format: str) -> None:
    source = make(here)
    assert holds_secret(here / source)
    path = "out.npz" if format == "npz" else "out/"
    options = {"config": {"peft_type": "LORA", "r": 1, "lora_alpha": 1}} if format == "peft" else {}
    output = {"path": path, "format": format, "options": options}
    bs.load({"inputs": [source], "transforms": [{"scale_": {"target": "w", "by": 2}}], "output": output}).run()
    assert (bs.open(path)["w"] == 2 * W).all()
    keeps_text_leaves = (make, format) == (orbax_tree, "orbax")
    assert holds_secret(here / path) == keeps_text_leaves


@pytest.mark.parametrize("make", [torch_file, flat_torch_file, numpy_archive, distributed], ids=lambda m: m.__name__)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_note_of_check_and_run_names_what_is_left_out(here: Path, make: Any) -> None:
    source = make(here)
    plan = bs.load({"inputs": [source], "output": "out/"})
    (note,) = bs.check(plan)
    assert plan.run().notes == (note,)
    assert (note.code, note.severity) == ("input-left-out", "note")
    names = ", ".join(bs.open(source).left_out)
    kept = "" if make is numpy_archive else ", unless an output's `keep` names them"
    assert note.message == f"{source} holds entries that are no tensors; they are left out{kept}: {names}"
    assert names
    assert SECRET not in str(note)


def test_a_checkpoint_that_is_loaded_by_a_step_gets_that_note_too(here: Path) -> None:
    write(here / "base.safetensors", {"w": W})
    step = {"load": {"path": torch_file(here), "alias": "more"}}
    (note,) = bs.check(bs.load({"inputs": ["base::base.safetensors"], "transforms": [step]}))
    told = "they are left out, unless an output's `keep` names them: epoch, args"
    assert note.message == f"load.path: in.pt holds entries that are no tensors; {told}"


def test_a_rank_by_energy_is_taken_from_the_data_in_spite_of_a_note(here: Path) -> None:
    source = torch_file(here)
    (name,) = [name for name, aval in bs.open(source).avals.items() if len(aval.shape) == 2][:1]
    parts = {"target": name, "target_a": "a", "target_b": "b", "rank": {"energy": 1e-6}}
    bs.load({"inputs": [source], "transforms": [{"phlora": parts}], "output": "out.npz"}).run()
    assert bs.open("out.npz").avals["a"].shape[0] == 1


@pytest.mark.parametrize("json_wanted", [False, True], ids=["text", "json"])
def test_inspect_shows_names_and_no_values(here: Path, capsys: pytest.CaptureFixture[str], json_wanted: bool) -> None:
    from brainsurgery_jax.cli.inspect_ import inspect

    inspect(torch_file(here), None, "json" if json_wanted else "compact", stats=False)
    shown = capsys.readouterr().out
    assert SECRET not in shown
    if json_wanted:
        assert json.loads(shown)["left_out"] == {"epoch": "int", "args": "dict"}
        assert json.loads(shown)["metadata"] == {}
    else:
        assert shown.endswith("\nleft out, not tensors: epoch, args\n")


def test_leaves_of_a_tree_that_are_text_are_told_of_where_they_are_left_out(here: Path) -> None:
    source = orbax_tree(here)
    (note,) = bs.load({"inputs": [source], "output": "out/"}).run().notes
    assert (note.code, note.message) == (
        "input-left-out", "output: safetensors holds tensors alone; left out, since they are text: token",
    )  # fmt: skip
    assert SECRET not in str(bs.open("out").metadata)
    assert bs.load({"inputs": [source], "output": {"path": "again/", "format": "orbax"}}).run().notes == ()


def test_explain_names_the_header_metadata_that_an_output_takes_over(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from brainsurgery_jax.cli import plans

    write(here / "in.safetensors", {"w": W}, {"format": "pt", "ss_dataset_dirs": "/home/me", "ss_network_dim": "8"})
    (here / "plan.yaml").write_text("inputs: [in.safetensors]\noutput: {path: out/, metadata: {ss_dataset_dirs: ''}}\n")
    plans.explain(["plan.yaml"], overwrite=False, shard_size="5GB", json=False)
    assert "    header metadata: ss_network_dim\n" in capsys.readouterr().out
    bs.load("plan.yaml").run()
    assert bs.open("out").metadata == {"format": "pt", "ss_network_dim": "8"}
