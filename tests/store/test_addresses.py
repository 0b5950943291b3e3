"""How a part of a checkpoint is named, wherever a path of a checkpoint is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.store.address import Address, parse_address, split_alias
from tests.checkpoints import counting, read, write


@pytest.fixture
def timm(here: Path) -> str:
    """A checkpoint of a trainer: a model, its average, an optimizer."""
    w, ema = torch.ones(2, 3), torch.full((2, 3), 2.0)
    root = {"epoch": 3, "state_dict": {"h.w": w}, "state_dict_ema": {"h.w": ema, "h.n": ema[0]}, "opt": {"m": w}}
    (here / "in").mkdir()
    torch.save(root, here / "in/timm.pth")
    return "in/timm.pth"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORDS = st.from_regex(r"[a-z0-9_./][a-z0-9_./-]{0,8}", fullmatch=True)


@given(WORDS, st.one_of(st.just(""), WORDS), st.lists(WORDS, max_size=3).map(tuple))
def test_an_address_reads_as_it_is_written(path: str, part: str, leave_out: tuple[str, ...]) -> None:
    address = Address(path, part, leave_out)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "alias", "address"),
    [
        ("base::model", "base", "model"),
        ("base::m.pt::ema", "base", "m.pt::ema"),
        ("m.pt::ema", "", "m.pt::ema"),
        ("./model::ema", "", "./model::ema"),
        ("in/model::ema", "", "in/model::ema"),
        ("m.pth.tar::ema::-x", "", "m.pth.tar::ema::-x"),
        ("v1.5::m.pt", "v1.5", "m.pt"),
        ("model", "", "model"),
        ("::m.pt", "", "m.pt"),
    ],
)
def test_the_first_word_of_an_input_is_an_alias_unless_it_is_a_path(text: str, alias: str, address: str) -> None:
    assert split_alias(text) == (alias, address)


def test_a_file_with_the_mark_in_its_name_is_that_file(here: Path) -> None:
    write(here / "a::b.safetensors", {"x": counting((2,))})
    assert list(bs.open("a::b.safetensors")) == ["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("in/timm.pth::", "names an entry without a name"),
        ("in/timm.pth::a::b", "names more than one part: a and b"),
        ("in/timm.pth::state_dict::-", "names an entry without a name"),
        (
            "in/timm.pth::state_dict_em",
            r"has no part 'state_dict_em'. Did you mean 'state_dict_ema'\?\n.*There are: state",
        ),
        ("in/timm.pth::epoch", r"holds no tensor in 'epoch'"),
        ("in/timm.pth::state_dict::-h.x", r"has no entry 'h.x' to leave out. Did you mean 'h.w'\?"),
        ("in/none.pth::state_dict", r"^in/none.pth: does not exist"),
    ],
)
def test_an_address_of_nothing_is_explained(timm: str, text: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        bs.open(text)


def test_one_colon_before_a_part_is_answered_with_two(timm: str) -> None:
    with pytest.raises(StoreError) as caught:
        bs.open(f"{timm}:state_dict_ema")
    mended = str(caught.value).partition("Did you mean '")[2].partition("'")[0]
    assert mended == f"{timm}::state_dict_ema"
    assert list(bs.open(mended)) == list(bs.open(f"{timm}::state_dict_ema"))


def test_a_part_is_an_entry_and_all_below_under_the_names_that_they_have_there(timm: str) -> None:
    assert {n: float(t[..., 0].max()) for n, t in bs.open(f"{timm}::state_dict_ema").items()} == {"h.w": 2, "h.n": 2}
    assert list(bs.open(f"{timm}::.")) == ["state_dict.h.w", "state_dict_ema.h.w", "state_dict_ema.h.n", "opt.m"]
    assert list(bs.open(f"{timm}::opt.m")) == ["m"]
    assert list(bs.open(f"{timm}::.::-opt::-state_dict_ema.h.w")) == ["state_dict.h.w", "state_dict_ema.h.n"]


def test_slices_and_ranges_of_a_part_are_read_like_those_of_a_whole(timm: str) -> None:
    source = bs.open(f"{timm}::state_dict_ema").source
    assert source.read("h.w", ((0, 2, 1), (0, 3, 2))).tolist() == [[2, 2], [2, 2]]
    assert source.read_range("h.w", 1, 3).tolist() == [2, 2]
    assert source.file_run("h.w", 0, 2) is not None
    with pytest.raises(StoreError, match=r"timm.pth::state_dict_ema: has no tensor 'state_dict_ema.h.w'"):
        source.read("state_dict_ema.h.w")


@pytest.mark.filterwarnings("ignore")
def test_parts_of_every_format_go_by_the_beginning_of_names(here: Path) -> None:
    tensors = {"enc.w": counting((2,)), "enc.b": counting((3,)), "dec.w": counting((4,)), "encoder": counting((1,))}
    write(here / "m.safetensors", tensors)
    np.savez(here / "m.npz", **tensors)  # type: ignore[arg-type]
    with ocp.PyTreeCheckpointer() as saver:
        saver.save(here / "tree", {"enc": {"w": counting((2,)), "b": counting((3,))}, "dec": {"w": counting((4,))}})
    for path in ("m.safetensors", "m.npz", "tree"):
        assert sorted(bs.open(f"{path}::enc")) == ["b", "w"]
        assert bs.open(f"{path}::dec")["w"].tolist() == [0, 1, 2, 3]


def test_an_entry_that_is_a_tensor_and_the_beginning_of_others_is_not_clear(here: Path) -> None:
    write(here / "m.safetensors", {"w": counting((2,)), "w.scale": counting((3,))})
    with pytest.raises(StoreError, match=r"has an entry 'w' and others below that name"):
        bs.open("m.safetensors::w")


# --- In plans ---------------------------------------------------------------------------------------------------------

INPUTS: list[Any] = [
    "ema::in/timm.pth::state_dict_ema",
    "in/timm.pth::state_dict_ema",
    {"alias": "ema", "path": "in/timm.pth", "part": "state_dict_ema"},
    {"path": "in/timm.pth", "part": "state_dict_ema"},
    {"path": "in/timm.pth", "part": ".", "leave_out": ["opt", "state_dict"]},
]


@pytest.mark.parametrize("given", INPUTS, ids=str)
def test_an_input_may_be_a_part(timm: str, here: Path, given: Any) -> None:
    bs.load(
        {"inputs": [given], "transforms": [{"scale_": {"target": ".*h.w", "by": 2}}], "output": "out.safetensors"}
    ).run()
    assert [float(t.max()) for t in read(here / "out.safetensors").values()] == [4, 2]


def test_two_parts_of_one_file_are_two_inputs(timm: str, here: Path) -> None:
    inputs = [f"live::{timm}::state_dict", f"ema::{timm}::state_dict_ema"]
    step = {"subtract_": {"from": "live::h.w", "to": "ema::h.w"}}
    output = {"path": "out.safetensors", "alias": "ema"}
    bs.load({"inputs": inputs, "transforms": [step], "output": output}).run(durable=False)
    assert float(read(here / "out.safetensors")["h.w"].max()) == 1


def test_a_step_may_load_a_part_of_a_file_or_of_what_was_saved(timm: str, here: Path) -> None:
    steps = [
        {"load": {"path": f"{timm}::state_dict_ema", "alias": "ema"}},
        {"save": {"path": "whole.safetensors", "alias": "all"}},
        {"load": {"path": "whole.safetensors::state_dict_ema.h", "alias": "again"}},
        {"assert": {"equal": {"left": "ema::h.w", "right": "again::w"}}},
    ]
    bs.load({"inputs": [f"all::{timm}::."], "transforms": steps}).run(durable=False)
    steps[1] = {"save": {"path": "again.safetensors", "alias": "all"}}
    steps[2] = {"load": {"path": "again.safetensors::none", "alias": "again"}}
    found = bs.check(bs.load({"inputs": [f"all::{timm}::."], "transforms": steps[:3]}), None)
    assert [d.code for d in found if d.severity == "error"] == ["io-input"]


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ({"alias": "a"}, "key-missing", "inputs: missing key 'path'"),
        ({"path": "m.pt", "parts": "x"}, "key-unknown", r"inputs: unknown key 'parts'. Did you mean 'part'\?"),
        ({"path": "m.pt", "part": ["x"]}, "value-type", "inputs: part: expected text without '::'"),
        ({"path": "m.pt::x"}, "value-type", "inputs: path: expected text without '::'"),
        ({"path": "m.pt", "leave_out": "x"}, "value-type", "inputs: leave_out: expected a list of names"),
        (["m.pt"], "inputs-form", "inputs: expected 'alias::path'"),
    ],
)
def test_a_wrong_form_of_an_input_is_one_mistake(given: Any, code: str, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        bs.load({"inputs": [given], "transforms": [{"delete": {"target": "x"}}], "output": "o.pt"}).check()
    assert [d.code for d in caught.value.diagnostics] == [code]


def test_the_schema_knows_the_form() -> None:
    import jsonschema

    from brainsurgery_jax.plan.schema import plan_schema

    validator = jsonschema.Draft202012Validator(plan_schema())
    assert validator.is_valid({"inputs": INPUTS})
    assert not validator.is_valid({"inputs": [{"alias": "x"}]})


def test_side_files_of_a_part_are_those_of_its_file(timm: str, here: Path) -> None:
    (here / "in/config.json").write_text('{"a": 1}')
    bs.load({"inputs": [f"{timm}::state_dict_ema"], "output": "out/"}).run(durable=False)
    assert json.loads((here / "out/config.json").read_text()) == {"a": 1}


def test_a_summary_and_hints_name_the_part(timm: str) -> None:
    plan = {"inputs": [f"{timm}::state_dict_ema"], "transforms": [{"delete": {"target": "none"}}]}
    (found,) = bs.check(bs.load(plan))
    assert f"`list(bs.open('{timm}::state_dict_ema'))`" in found.hint


def test_a_run_that_is_refused_has_the_notes_that_explain_it(timm: str) -> None:
    plan = {"inputs": [timm], "transforms": [{"delete": {"target": "none"}}], "output": "out.safetensors"}
    with pytest.raises(bs.PlanError, match="no tensor matches 'none'") as refused:
        bs.load(plan).run(durable=False)
    assert [d.severity for d in refused.value.diagnostics if d.code == "input-parts"] == ["note"]


# --- At the command line ----------------------------------------------------------------------------------------------


def test_inspect_shows_parts_and_notes(timm: str, capsys: pytest.CaptureFixture[str]) -> None:
    from brainsurgery_jax.cli.inspect_ import inspect

    assert inspect(timm, None, "compact", stats=False) == 0
    shown = capsys.readouterr()
    assert "1 tensor, 6 parameters" in shown.out
    assert "beside it there are state_dict_ema (2 tensors), opt (1 tensor) [input-parts]" in shown.err
    assert inspect(f"{timm}::state_dict_ema", None, "json", stats=False) == 0
    shown = capsys.readouterr()
    assert (list(json.loads(shown.out)["tensors"]), shown.err) == (["h.w", "h.n"], "")


def test_diff_compares_parts(timm: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = bs.diff(f"{timm}::state_dict", f"{timm}::state_dict_ema")
    assert [d.name for d in found.differing] == ["h.w"]
    assert list(found.only_right) == ["h.n"]
    assert bs.diff(timm, timm).notes


def test_convert_takes_a_part(timm: str, here: Path) -> None:
    bs.convert(f"{timm}::state_dict_ema", "out.safetensors")
    assert list(read(here / "out.safetensors")) == ["h.w", "h.n"]


def test_a_session_goes_on_from_a_part_and_writes_a_plan_that_names_it(timm: str, here: Path) -> None:
    session = bs.Session.begin(bs.load({"inputs": [f"ema::{timm}::state_dict_ema"]}))
    session = session.step(*session.parse("delete: { target: h.n }")).run()
    assert session.to_plan()["inputs"] == [f"ema::{timm}::state_dict_ema"]
    session.close()
