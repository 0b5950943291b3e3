"""Hints about files and folders, done as they say: what comes out is what was meant, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests import checkpoints
from tests.hints.calls import DOUBLE, GPT2, WTE, W, gpt2, hint_of, run

pytestmark = pytest.mark.usefixtures("here")


def opaque(path: str, **more: Any) -> bytes:
    """A file with a tensor of packed 4-bit numbers, and others of whole bytes."""
    header: dict[str, Any] = {"packed": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    data = b"\x12\x34"
    for name, array in more.items():
        place = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": place}
        data += array.tobytes()
    return checkpoints.write_raw(path, header, data).read_bytes()


def packed(path: str) -> bytes:
    """The packed bytes of a file, read by hand."""
    raw = Path(path).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + size])["packed"]["data_offsets"]
    return raw[8 + size + begin : 8 + size + end]


def ran(*transforms: Any, output: Any) -> None:
    bs.load({"inputs": ["p.safetensors"], "transforms": list(transforms), "output": output}).run(durable=False)


@pytest.mark.parametrize("output", ["out.npz", "out.pt", {"path": "out", "format": "orbax"}], ids=str)
def test_packed_numbers_are_written_as_safetensors(output: Any) -> None:
    before = opaque("p.safetensors", w=W)
    hint_of(lambda: ran(DOUBLE, output=output), "Write safetensors")
    ran(DOUBLE, output="out.safetensors")
    assert packed("out.safetensors") == b"\x12\x34"
    assert Path("p.safetensors").read_bytes() == before


def test_packed_numbers_are_left_out_of_what_computes() -> None:
    opaque("p.safetensors", w=W)
    hint_of(
        lambda: ran({"scale_": {"target": "(packed|w)", "by": 2}}, output="out.safetensors"),
        "Narrow the pattern, so that it leaves such tensors out.",
    )
    ran(DOUBLE, output="out.safetensors")
    assert packed("out.safetensors") == b"\x12\x34"


def test_packed_numbers_are_copied_renamed_and_deleted_whole() -> None:
    opaque("p.safetensors")
    hint_of(lambda: bs.open("p.safetensors")["packed"], "copied, renamed and deleted whole")
    ran({"copy": {"from": "packed", "to": "c"}}, {"move": {"from": "c", "to": "d"}}, {"delete": {"target": "d"}},
        output="out.safetensors")  # fmt: skip
    assert packed("out.safetensors") == b"\x12\x34"


def test_half_a_character_is_taken_out_of_a_name() -> None:
    hint_of(lambda: bs.save("out.npz", {"x\ud800": W}, durable=False), "Rename the tensor")
    bs.save("out.npz", {"x": W}, durable=False)
    assert bs.open("out.npz")["x"].tolist() == W.tolist()


def test_a_shard_outside_of_its_folder_is_moved_there_and_the_index_corrected(here: Path) -> None:
    folder = here / "sharded"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "../m.safetensors", "ids": "../m.safetensors"}}))
    hint_of(lambda: bs.open(str(folder)), "move the shard there and correct the index")
    shutil.move("m.safetensors", folder / "model-00001-of-00001.safetensors")
    index.write_text(index.read_text().replace("../m.safetensors", "model-00001-of-00001.safetensors"))
    assert {name: array.tolist() for name, array in bs.open(str(folder)).items()} == {"w": W.tolist(), "ids": [1, 2]}


def test_a_partial_of_a_run_that_is_known_to_be_over_is_deleted(here: Path) -> None:
    from brainsurgery_jax.store.atomic import stage

    Path(stage(str(here / "out.safetensors")).staging).write_text("half")
    hint = hint_of(lambda: run(DOUBLE, output=str(here / "out.safetensors")), "If you know that nothing runs, delete")
    left = Path(hint.rpartition("delete ")[2].removesuffix("."))
    assert left.parent == here
    shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert run(DOUBLE, output=str(here / "out.safetensors"))["w"] == [0, 2, 4, 6]
    assert sorted(os.listdir(here)) == ["m.safetensors", "out.safetensors"]


def test_a_partial_of_another_host_whose_run_is_over_is_deleted_by_hand(here: Path) -> None:
    from brainsurgery_jax.store.atomic import stage
    from brainsurgery_jax.store.runs import RunId

    out = here / "out.safetensors"
    item = stage(str(out), run=RunId(1, 1, "node7_3fa91c0b", ""))
    Path(item.staging).write_text("half")
    (note,) = bs.load({"inputs": ["m.safetensors"], "output": str(out)}).run(durable=False).notes
    assert note.hint.startswith("It was left alone. When that run is over, delete it by hand: ")
    Path(note.hint.rpartition("by hand: ")[2]).unlink()
    assert not bs.load({"inputs": ["m.safetensors"], "output": str(out)}).run(durable=False, overwrite=True).notes


def test_what_is_not_there_is_not_left_out() -> None:
    hint_of(lambda: bs.open("m.safetensors::-x"), "Drop it, or correct its name.")
    assert set(bs.open("m.safetensors")) == {"w", "ids"}
    assert set(bs.open("m.safetensors::-ids")) == {"w"}


def test_a_part_that_is_not_there_is_one_of_those_there_are() -> None:
    arrays: dict[str, Any] = {"a.x": W, "b.x": W + 1}
    np.savez("n.npz", **arrays)
    hint = hint_of(lambda: bs.open("n.npz::c"), "There are: ")
    assert "a" in hint
    assert bs.open("n.npz::a")["x"].tolist() == W.tolist()


def test_a_part_has_a_path_and_a_name() -> None:
    arrays: dict[str, Any] = {"a.x": W, "b.x": W + 1}
    np.savez("n.npz", **arrays)
    hint_of(lambda: bs.open("n.npz::"), "Write PATH::PART")
    assert bs.open("n.npz::b")["x"].tolist() == (W + 1).tolist()


def test_a_folder_of_folders_is_named_by_one_of_them() -> None:
    gpt2("below")
    Path("runs").mkdir()
    shutil.move("below", "runs/below")
    hint = hint_of(lambda: bs.open("runs"), "There are checkpoints in folders below. Name one: ")
    assert bs.open(hint.rpartition(": ")[2].removesuffix("."))["wte.weight"].tobytes() == WTE.tobytes()


def test_a_checkpoint_without_its_suffix_gets_one() -> None:
    bs.save("m.npz", {"w": W})  # an archive, as torch files are
    Path("m.npz").rename("m.zip2")
    hint_of(lambda: bs.open("m.zip2"), "If it is one of these, give it that suffix.")
    Path("m.zip2").rename("m.npz")
    assert bs.open("m.npz")["w"].tolist() == W.tolist()


def test_a_dead_link_is_mended() -> None:
    os.symlink("gone.safetensors", "link.safetensors")
    hint_of(lambda: bs.open("link.safetensors"), "Restore the file, or fix the link.")
    shutil.copy("m.safetensors", "gone.safetensors")
    assert bs.open("link.safetensors")["w"].tolist() == W.tolist()


def test_a_config_that_is_no_json_is_mended_or_left_as_it_is() -> None:
    source = gpt2()
    Path(source, "config.json").write_text("{")
    output = {"path": "out/", "config": {"x": 1}}
    hint_of(
        lambda: run(inputs=f"m::{source}", output=output), "Correct the file, or write the output without `config`."
    )
    assert run(inputs=f"m::{source}", output={"path": "out/"})["wte.weight"] == WTE.tolist()
    Path(source, "config.json").write_text(json.dumps(GPT2))
    run(inputs=f"m::{source}", output={**output, "path": "two/"})
    assert json.loads(Path("two/config.json").read_text()) == {**GPT2, "x": 1}


def test_an_input_is_replaced_by_the_output_and_not_by_a_step() -> None:
    from contextlib import closing

    from brainsurgery_jax.session import Session

    with closing(Session.begin(bs.load({"inputs": ["m.safetensors"]}))) as session:
        (step,) = session.parse("save: path: m.safetensors, overwrite: true")
        hint_of(lambda: session.step(step), "The plan's output may replace an input")
        (step,) = session.parse("save: path: other.safetensors")
        session.step(step).run()
    assert bs.open("other.safetensors")["w"].tolist() == W.tolist()
    assert run(DOUBLE, output={"path": "m.safetensors", "overwrite": True})["w"] == [0, 2, 4, 6]
