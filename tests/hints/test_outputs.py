"""Hints about outputs, places, devices and the prompt, done as they say: the run does what was meant."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax import desk, plugins
from brainsurgery_jax.cli import demo
from brainsurgery_jax.engine.compute import devices
from brainsurgery_jax.session import Session
from brainsurgery_jax.store import atomic, replacing
from brainsurgery_jax.store.orbax import encode as orbax_encode
from brainsurgery_jax.store.safetensors import layout as safetensors_layout
from brainsurgery_jax.store.torch import encode as torch_encode
from tests import checkpoints
from tests.hints.calls import DOUBLE, WTE, W, gpt2, hint_of, run
from tests.hints.cases import quoted

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.filterwarnings("ignore")]


# --- Places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", ["new", "empty"])
def test_a_demo_goes_to_a_new_or_an_empty_folder(new: str, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkdir("empty")
    before = Path("m.safetensors").read_bytes()
    hint_of(lambda: demo.demo("."), "Choose a new or an empty folder for the demo.")
    demo.demo(new)
    assert Path(new, "base/model.safetensors").exists()
    assert Path("m.safetensors").read_bytes() == before


def test_a_demo_below_a_file_goes_to_another_folder(capfd: pytest.CaptureFixture[str]) -> None:
    hint_of(lambda: demo.demo("m.safetensors/demo"), "Choose another folder.")
    demo.demo("demo")
    assert Path("demo/base/model.safetensors").exists()


@pytest.mark.parametrize("way", ["path", "permissions"])
def test_an_output_in_a_folder_that_is_not_writable(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir("closed")
    closed, access = os.path.abspath("closed"), os.access
    with monkeypatch.context() as patch:
        patch.setattr(replacing.os, "access", lambda path, mode: path != closed and access(path, mode))
        hint_of(lambda: run(DOUBLE, output="closed/out.safetensors"), "another path, or change the permissions.")
        if way == "path":
            assert run(DOUBLE, output="out.safetensors")["w"] == (W * 2).tolist()
    if way == "permissions":
        assert run(DOUBLE, output="closed/out.safetensors")["w"] == (W * 2).tolist()


def test_a_file_where_a_folder_is_goes_into_it() -> None:
    os.mkdir("out.safetensors")
    hint = hint_of(lambda: replacing.check_destination("out.safetensors", 1, False, directory=False), "another path.")
    path = hint.removeprefix("Write to ").partition(", or")[0]
    assert run(DOUBLE, output=path)["w"] == (W * 2).tolist()
    assert run(DOUBLE, output="else.safetensors")["w"] == (W * 2).tolist()


def test_what_appeared_at_the_last_moment_is_moved_to_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    run(DOUBLE, output="out/")
    rename = atomic._renameat2

    def racing(source: str, target: str, flag: int) -> bool:
        Path("out/notes.txt").write_text("mine")
        return rename(source, target, flag)

    monkeypatch.setattr(atomic, "_renameat2", racing)
    plan = bs.load({"inputs": ["m.safetensors"], "transforms": [DOUBLE], "output": {"path": "out/", "overwrite": True}})
    (note,) = plan.run(durable=False).notes
    shutil.move(note.hint.removeprefix("Move it to a place of its own: "), "mine")
    assert Path("mine/notes.txt").read_text() == "mine"
    assert bs.open("out")["w"].tolist() == (W * 2).tolist()


# --- Formats ----------------------------------------------------------------------------------------------------------


def test_an_output_that_torch_writes_needs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch_encode, "find_spec", lambda name: None)
        hint = hint_of(lambda: run(DOUBLE, output="out.pt"), "or write another format.")
        assert quoted(hint) == ["pip install 'brainsurgery-jax[torch]'"]
        assert run(DOUBLE, output="out.safetensors")["w"] == (W * 2).tolist()
    assert run(DOUBLE, output="out.pt")["w"] == (W * 2).tolist()


def test_an_orbax_output_on_a_full_disk_goes_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **more: object) -> None:
        raise ValueError("No space left on device")

    output = {"path": "out", "format": "orbax"}
    with monkeypatch.context() as patch:
        patch.setattr(orbax_encode, "_save", full)
        hint_of(lambda: run(DOUBLE, output=output), "If the disk is full, write to another disk.")
    assert os.listdir() == ["m.safetensors"]
    assert run(DOUBLE, output={**output, "path": "other/out"})["w"] == (W * 2).tolist()


def test_packed_numbers_are_cut_where_they_fill_whole_bytes() -> None:
    header = {"p": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    checkpoints.write_raw("m.safetensors", header, b"\x12\x34")

    def made(sizes: list[int]) -> list[tuple[int, ...]]:
        split = {"split": {"from": "p", "to": ["a", "b"], "sizes": sizes}}
        bs.load({"inputs": ["m.safetensors"], "transforms": [split], "output": "out.safetensors"}).run(durable=False)
        return [bs.open("out.safetensors").avals[name].shape for name in "abp"]

    hint_of(lambda: made([1, 3]), "Cut it where its elements fill whole bytes.")
    assert made([2, 2]) == [(2,), (2,), (4,)]
    assert sorted(Path("out.safetensors").read_bytes()[-4:]) == [0x12, 0x12, 0x34, 0x34]


def test_a_header_that_is_too_long_is_cut_into_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.write("m.safetensors", {f"w{i}": W for i in range(8)})
    monkeypatch.setattr(safetensors_layout, "MAX_HEADER", 300)
    hint_of(lambda: run(), "Write a folder with a smaller shard size.")
    made = run(output={"path": "out/", "shard": "32B"})
    assert made == {f"w{i}": W.tolist() for i in range(8)}


def test_texts_of_a_tree_are_kept_by_orbax() -> None:
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(Path("tree").absolute(), {"w": W, "n": "a text"})
    plan = {"inputs": ["m::tree"], "transforms": [DOUBLE]}
    (note,) = bs.load({**plan, "output": {"path": "out", "format": "safetensors"}}).run(durable=False).notes
    key, _, value = quoted(note.hint)[0].partition(": ")
    bs.load({**plan, "output": {"path": "two", key: value}}).run(durable=False)
    assert bs.open("two")["w"].tolist() == (W * 2).tolist()
    assert bs.open("two").source.header.tree.others["n"].text == "a text"


def test_a_file_that_does_not_travel_is_copied_by_hand() -> None:
    source = gpt2()
    Path(source, "notes.txt").write_text("mine")
    plan = bs.load({"inputs": [f"m::{source}"], "output": "out/"})
    (note,) = plan.run(durable=False).notes
    assert note.hint.endswith("Copy others yourself.")
    shutil.copy(Path(source, "notes.txt"), "out/notes.txt")
    assert bs.open("out")["wte.weight"].tobytes() == WTE.tobytes()
    assert Path("out/notes.txt").read_text() == "mine"


LORA = {"q.a": np.ones((2, 4), np.float32), "q.b": np.ones((3, 2), np.float32)}


@pytest.mark.parametrize("way", ["rename", "config", "safetensors"])
def test_an_adapter_with_names_of_its_own(way: str) -> None:
    checkpoints.write("lora.safetensors", LORA)
    output: dict[str, Any] = {"path": "out/", "format": "peft"}
    given = {"inputs": "m::lora.safetensors", "output": output}
    hint_of(lambda: run(**given), "LoRA's are called base_model.model.MODULE.lora_A.weight")
    renames = [{"move": {"from": f"q.{mark.lower()}", "to": f"base_model.model.q.lora_{mark}.weight"}} for mark in "AB"]
    alpha = {"options": {"config": {"lora_alpha": 2}}}
    ways: dict[str, Any] = {
        "rename": lambda: run(*renames, **{**given, "output": output | alpha}),
        "config": lambda: run(**{**given, "output": output | {"options": {"config": {"peft_type": "MINE"}}}}),
        "safetensors": lambda: run(**{**given, "output": "out.safetensors"}),
    }
    assert [*ways[way]().values()] == [array.tolist() for array in LORA.values()]


# --- Values and shapes ------------------------------------------------------------------------------------------------


def test_a_tensor_beyond_all_disks_gets_other_numbers() -> None:
    step = {"rand": {"target": "big", "shape": [1 << 31, 1 << 31], "distribution": "normal"}}
    hint_of(lambda: run(step), "Correct the numbers that it is made with: a width, a shape, a count.")
    step["rand"]["shape"] = [3]
    assert len(run(step)["big"]) == 3


def test_a_function_of_ones_own_returns_an_array() -> None:
    text = (
        "from brainsurgery_jax.op import Form, op\n\n@op(Form('half_', ('target',), ('target',), 'existing'))\n"
        'def half(x):\n    """Half of a tensor."""\n    y = x / 2\n'
    )
    Path("none.py").write_text(text)
    Path("mine.py").write_text(text + "    return y\n")

    def made(path: str) -> Any:
        with plugins.scope():
            plugins.register(path)
            return run({"half_": {"target": "w"}})

    hint_of(lambda: made("none.py"), "Return the array, or a tuple of arrays, at the end of the function.")
    assert made("mine.py")["w"] == (W / 2).tolist()


@pytest.mark.parametrize("way", ["skip", "outside"])
def test_an_assert_that_cannot_be_traced_is_skipped_or_asked_outside(way: str) -> None:
    plan = bs.load({"inputs": ["m::m.safetensors"], "transforms": [{"assert": {"identical": {"left": "w", "right":
                    "w"}}}, DOUBLE]})  # fmt: skip
    hint = hint_of(lambda: jax.jit(lambda t: plan.apply(t, checks="return"))({"w": W}), 'Use checks="skip", or apply')
    assert "outside of `jax.jit`" in hint
    ways: dict[str, Any] = {
        "skip": lambda: jax.jit(lambda t: plan.apply(t, checks="skip"))({"w": W}),
        "outside": lambda: plan.apply({"w": W}),
    }
    assert ways[way]()["w"].tolist() == (W * 2).tolist()


def test_platforms_without_a_cpu_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = jax.local_devices

    def found(backend: str | None = None) -> Any:
        if backend == "cpu" and "cpu" not in os.environ["JAX_PLATFORMS"]:
            raise RuntimeError("no such backend")
        return real(backend=backend)

    monkeypatch.setattr(jax, "local_devices", found)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    hint = hint_of(devices._cpu, "Add it, as in")
    name, _, value = quoted(hint)[0].partition("=")
    monkeypatch.setenv(name, value)
    assert devices._cpu().platform == "cpu"


# --- Words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "meant"), [("quit", "exit"), ("list", "show"), ("unod", "undo")])
def test_a_word_of_another_prompt_has_one_here(word: str, meant: str) -> None:
    hint = desk._command_hint(word)
    assert hint == f" Did you mean '{meant}'?"
    assert meant in desk.COMMANDS


def test_a_session_opens_a_checkpoint_first() -> None:
    with closing(Session.begin(bs.load({}))) as session:
        hint = hint_of(lambda: session.parse("scale_: target: w, by: 2"), "Open one first: ")
        Path("m.safetensors").rename("model.safetensors")
        (opened,) = session.parse(quoted(hint)[0])
        session = session.step(opened).run() or session.step(opened)
        (step,) = session.parse("scale_: target: w, by: 2")
        assert step.op is not None


def test_steps_of_a_second_file_are_appended_behind_nulls() -> None:
    Path("plan.yaml").write_text("inputs: [m.safetensors]\ntransforms: [{scale_: {target: w, by: 2}}]\n"
                                 "output: out.safetensors")  # fmt: skip
    Path("more.yaml").write_text("transforms: [{scale_: {by: 3}}]")
    (note,) = (d for d in bs.check(bs.load("plan.yaml", "more.yaml")) if d.code == "steps-merged")
    assert "begin its list with a `null` for each earlier step" in note.hint
    Path("more.yaml").write_text("transforms: [null, {scale_: {target: w, by: 3}}]")
    bs.load("plan.yaml", "more.yaml").run(durable=False)
    assert bs.open("out.safetensors")["w"].tolist() == (W * 6).tolist()
