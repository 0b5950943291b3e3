"""Checkpoints of trainers written back as they were nested, with the plain values that lay beside the tensors."""

from __future__ import annotations

import argparse
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import counting, write
from tests.store.test_dcp import saved

VALUES = {
    "epoch": 3, "names": ["a", "b"], "best": 0.5, "big": 10**30, "none": None, "z": 1 + 2j, "blob": b"abc",
    "set": {1, 2}, "dtype": torch.float16, "device": torch.device("cuda", 1),
    "by_tuple": {(1, "a"): 2}, "config": {"lr": 0.1, "layers": [1, 2]},
}  # fmt: skip


def training() -> dict[str, Any]:
    """A model, an optimizer after a step, and values of all kinds."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **VALUES}


def written(place: Path, source: str, *steps: Any, **options: Any) -> Any:
    """What torch loads of the output of a plan; without leave to run anything."""
    output = {"path": f"{place}/out.pt", "options": options, "overwrite": True}
    bs.load({"inputs": [source], "transforms": list(steps), "output": output}).run(durable=False)
    return torch.load(f"{place}/out.pt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Whether two trees are of the same types, in the same order, and hold the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("old", [False, True])
def test_all_of_a_checkpoint_comes_back_as_it_was(tmp_path: Path, old: bool) -> None:
    root = training()
    torch.save(root, tmp_path / "t.pt", _use_new_zipfile_serialization=not old)
    again = written(tmp_path, f"{tmp_path}/t.pt", keep="all")
    assert same(again, root)
    optimizer = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    optimizer.load_state_dict(again["optimizer"])  # with integers as keys, as torch wants them


def test_nested_alone_keeps_no_value(tmp_path: Path) -> None:
    torch.save(training(), tmp_path / "t.pt")
    again = written(tmp_path, f"{tmp_path}/t.pt", nested=True)
    assert list(again) == ["model", "optimizer"]
    assert list(again["optimizer"]) == ["state"]


def test_values_are_kept_by_their_names_and_by_those_of_their_containers(tmp_path: Path) -> None:
    root = training()
    torch.save(root, tmp_path / "t.pt")
    again = written(tmp_path, f"{tmp_path}/t.pt", keep=["epoch", "optimizer.param_groups"])
    assert list(again) == ["model", "optimizer", "epoch"]
    assert same(again["optimizer"], root["optimizer"])


def test_a_tensor_that_is_renamed_stays_in_the_container_that_its_name_begins_with(tmp_path: Path) -> None:
    torch.save({"a": {"b": {"w": torch.ones(1)}}, "a.c": {"v": torch.ones(2)}, "l": [torch.ones(3)]}, tmp_path / "t.pt")
    moves = (("a.b.w", "a.b.new.w"), ("a.c.v", "a.c.u"), ("l.0", "x.y"))
    again = written(
        tmp_path, f"{tmp_path}/t.pt", *({"move": {"from": old, "to": new}} for old, new in moves), nested=True
    )
    assert {key: list(again[key]) for key in ("a", "a.c")} == {"a": ["b"], "a.c": ["u"]}
    assert list(again["a"]["b"]) == ["new.w"]
    assert again["x.y"].shape == (3,)


def test_a_list_that_lost_an_item_is_a_dict_by_numbers(tmp_path: Path) -> None:
    torch.save({"l": [torch.ones(1), torch.ones(2)], "t": (torch.ones(3), 7)}, tmp_path / "t.pt")
    again = written(tmp_path, f"{tmp_path}/t.pt", {"delete": {"target": r"l\.0"}}, keep="all")
    assert list(again["l"]) == [1]
    assert type(again["t"]) is tuple and again["t"][1] == 7


def test_other_dicts_come_back_as_dicts(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "counted": Counter("aab"), "d": defaultdict(list, a=[1])}, tmp_path / "t.pt")
    again = written(tmp_path, f"{tmp_path}/t.pt", keep="all")
    assert (again["counted"], again["d"]) == ({"a": 2, "b": 1}, {"a": [1]})


def test_a_tensor_under_a_key_that_a_name_cannot_tell_is_not_nested(tmp_path: Path) -> None:
    torch.save({"by_place": {(0, 1): torch.ones(1)}, "n": {None: 3}}, tmp_path / "t.pt")
    with pytest.raises(
        PlanError, match=r"'by_place.\(0, 1, \)' lies under the key \(0, 1, \), which is neither text nor"
    ):
        written(tmp_path, f"{tmp_path}/t.pt", nested=True)
    rename = {"move": {"from": r"by_place\..*", "to": "w"}}
    assert written(tmp_path, f"{tmp_path}/t.pt", rename, keep="all")["n"] == {None: 3}


def test_a_part_goes_back_to_where_it_was(tmp_path: Path) -> None:
    root = training()
    torch.save(root, tmp_path / "t.pt")
    again = written(tmp_path, f"{tmp_path}/t.pt::model", keep=["epoch"])
    assert same(again, {"model": root["model"], "epoch": 3})


def test_what_is_no_plain_data_is_noted_if_all_is_kept_and_refused_by_name(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "args": argparse.Namespace(key="secret"), "n": 1}, tmp_path / "t.pt")
    output = {"path": f"{tmp_path}/o.pt", "options": {"keep": "all"}}
    report = bs.load({"inputs": [f"{tmp_path}/t.pt"], "output": output}).run(durable=False)
    beside, note = report.notes
    assert beside.message.endswith("they are left out, unless an output's `keep` names them: args, n")
    assert (note.code, note.severity) == ("values-left-out", "note")
    assert note.message == "output.options: values that are no plain data are not kept: args"
    assert list(torch.load(tmp_path / "o.pt", weights_only=True)) == ["w", "n"]
    assert b"secret" not in (tmp_path / "o.pt").read_bytes()
    with pytest.raises(
        PlanError, match=r"option 'keep': 'args' is no plain data, but an object of 'argparse.Namespace'"
    ):
        written(tmp_path, f"{tmp_path}/t.pt", keep=["args"])


def test_no_value_is_kept_that_was_not_asked_for(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "token": "secret", "epoch": 1}, tmp_path / "t.pt")
    for options in ({}, {"nested": True}, {"keep": ["epoch"]}):
        written(tmp_path, f"{tmp_path}/t.pt", **options)
        assert b"secret" not in (tmp_path / "out.pt").read_bytes()


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        ([], {"keep": ["epok"]}, r"option 'keep': 'epok' is no value beside the tensors\. Did you mean 'epoch'\?"),
        ([], {"keep": 3}, r"option 'keep': expected a list of names, or all, got 3"),
        ([], {"nested": 1}, r"option 'nested': expected true or false, got 1"),
        ([], {"bare": True, "nested": True}, "one tensor without a dict around it is not nested"),
        (
            [{"move": {"from": "w", "to": "epoch"}}],
            {"keep": ["epoch"]},
            "cannot be nested: 'epoch' and 'epoch' would lie at one place",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    tmp_path: Path, steps: list[Any], options: Any, message: str
) -> None:
    torch.save({"w": torch.ones(1), "epoch": 1}, tmp_path / "t.pt")
    with pytest.raises(PlanError, match=message) as caught:
        written(tmp_path, f"{tmp_path}/t.pt", *steps, **options)
    assert sorted((d.severity, d.code) for d in caught.value.diagnostics) == [
        ("error", "output-options"), ("note", "input-left-out"),
    ]  # fmt: skip
    assert not (tmp_path / "out.pt").exists()


def test_formats_without_containers_have_nothing_to_go_back_into(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", {"a.w": counting((2,))})
    with pytest.raises(PlanError, match=r"no containers to restore: .*m\.safetensors has none"):
        written(tmp_path, str(source), nested=True)
    assert list(written(tmp_path, str(source))) == ["a.w"]  # as the hint says


# --- DCP --------------------------------------------------------------------------------------------------------------


def to_dcp(place: Path, source: str, **options: Any) -> str:
    output = {"path": f"{place}/", "format": "dcp", "options": options}
    bs.load({"inputs": [source], "output": output}).run(durable=False)
    return str(place)


def test_a_folder_of_dcp_keeps_its_nesting_and_values(tmp_path: Path) -> None:
    root = {"model": {"w": torch.ones(2), "l": [torch.zeros(1)]}, "epoch": 3, "note": {"by": "me"}}
    source = saved(tmp_path / "in", root)
    again = to_dcp(tmp_path / "out", source, keep="all")
    before, after = (FileSystemReader(path).read_metadata() for path in (source, again))
    assert after.planner_data == before.planner_data
    assert after.state_dict_metadata.keys() == before.state_dict_metadata.keys()
    target = {"model": {"w": torch.zeros(2), "l": [torch.ones(1)]}, "epoch": 0, "note": {"by": ""}}
    state_dict_loader.load(target, checkpoint_id=again, no_dist=True)
    assert same(target, root)


def test_the_nesting_goes_from_one_format_to_the_other(tmp_path: Path) -> None:
    root = {"model": OrderedDict(w=torch.ones(2)), "epoch": 3, "log": [1, 2]}
    torch.save(root, tmp_path / "t.pt")
    folder = to_dcp(tmp_path / "dcp", f"{tmp_path}/t.pt", keep="all")
    again = written(tmp_path, folder, keep="all")
    assert same(again, {"model": {"w": torch.ones(2)}, "epoch": 3, "log": [1, 2]})
