"""What formats without trees keep of one, and what a run says of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.store.key_paths import NOTES
from tests.trees.judge import restore, save, tree_of

TREE = {"layers": [{"w": jnp.ones(2)}, {"w": jnp.ones(2)}], "opt": ({"m": jnp.ones(2)}, None, {}), "step": 3}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state in the folder `in`."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "in", TREE)


def run(source: str, output: Any, *steps: Any) -> tuple[str, ...]:
    """Run a plan; yields what it notes."""
    plan = {"inputs": [f"m::{source}"], "transforms": list(steps), "output": output}
    return tuple(note.message for note in bs.load(plan).run(durable=False).notes)


ORBAX = {"path": "back/", "format": "orbax", "options": {"version": "v0"}}


@pytest.mark.parametrize("middle", ["m.npz", "m.safetensors", "folder/"])
def test_notes_bring_the_tree_back(middle: str) -> None:
    assert run("in", middle) == ()
    assert run(middle.rstrip("/"), ORBAX) == ()
    assert tree_of(Path("back"), holders=False) == tree_of(Path("in"), holders=False)
    assert restore(Path("back").absolute(), "v0")["step"] == 3


def test_notes_follow_names_in_a_format_without_trees() -> None:
    run("in", "m.npz")
    run("m.npz", "n.safetensors", {"move": {"from": r"layers\.(.*)", "to": r"model.blocks.\1"}})
    run("n.safetensors", ORBAX)
    assert isinstance(restore(Path("back").absolute(), "v0")["model"]["blocks"], list)


def test_a_format_without_metadata_tells_what_it_loses() -> None:
    assert run("in", "m.pt") == ("output: torch holds tensors alone; left out, since they are empty: opt.1, opt.2",)


def test_notes_that_an_archive_has_no_room_for_are_told_of_and_left_out() -> None:
    bs.save("big/", {"w": jnp.ones(1), "e": {f"{'x' * 90}{n}": None for n in range(700)}}, format="orbax")
    (note,) = run("big", "m.npz")
    assert note.startswith(
        "output: npz has no room for notes on a tree this large; left out, since they are empty: e.x"
    )
    assert NOTES not in bs.open("m.npz").metadata


def test_a_tree_of_dicts_needs_no_notes() -> None:
    save(Path("plain").absolute(), {"a": {"w": jnp.ones(2)}})
    run("plain", "m.safetensors")
    assert NOTES not in bs.open("m.safetensors").metadata


def test_an_output_may_say_the_notes_itself() -> None:
    run("in", {**ORBAX, "metadata": {NOTES: "{}"}})
    found = restore(Path("back").absolute(), "v0")
    assert found["layers"].keys() == {"0", "1"}
    assert found["opt"].keys() == {"0"}


def test_what_a_plan_saves_and_loads_again_has_its_tree() -> None:
    steps = [{"save": {"path": "snap/", "format": "orbax"}}, {"load": {"path": "snap/", "alias": "n"}}]
    run("in", {**ORBAX, "alias": "n"}, *steps)
    assert tree_of(Path("back")) == tree_of(Path("in")) == tree_of(Path("snap"))


def test_a_part_of_a_tree_is_the_tree_below_it() -> None:
    run("in::opt", ORBAX)
    assert tree_of(Path("back")) == tree_of(save(Path("own").absolute(), TREE["opt"]))
    run("in::-opt", {**ORBAX, "path": "less/"})
    assert "opt" not in restore(Path("less").absolute(), "v0")
