"""The layouts that come with the package: each is proven on its own example, and found by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainsurgery_jax.cli.convert import layouts as page
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.layout.library import layout_for, layout_names, load_layout
from brainsurgery_jax.layout.proof import proofs


@pytest.mark.parametrize("name", layout_names())
def test_a_layout_is_a_bijection_whose_shapes_close(name: str) -> None:
    found = list(proofs(load_layout(name)))
    assert [str(problem) for proof in found for problem in proof.problems] == []
    assert all(proof.hf > 0 for proof in found) or load_layout(name).rest


@pytest.mark.parametrize("name", layout_names())
def test_a_layout_says_what_it_is_for(name: str) -> None:
    layout = load_layout(name)
    assert layout.name == name
    assert layout.doc and layout.source.startswith("https://")
    assert layout.models or layout.rest


def test_a_layout_of_ones_own_is_named_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("layout: mine\ndoc: mine\nrest: true\n")
    assert load_layout(str(file)).file == str(file)


def test_a_layout_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        load_layout(str(tmp_path / "none.yaml"))


def test_check_fails_for_a_layout_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("layout: mine\ndoc: mine\nrules: [{hf: a, to: b, shape: [2], ops: [{reshape: [3]}]}]\n")
    assert page(["check", str(file)], json=False) == 1
    assert "mine: WRONG" in capsys.readouterr().out


def test_check_tells_what_is_proven(capsys: pytest.CaptureFixture[str]) -> None:
    assert page(["check", "flax-gpt2"], json=True) == 0
    (proof,) = json.loads(capsys.readouterr().out)["proofs"]
    assert (proof["holds"], proof["tensors"], proof["target_tensors"], proof["lossy"]) == (True, 40, 40, [])


def test_the_word_of_a_library_shows_its_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    assert page(["tunix"], json=False) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "tunix-gemma2", "tunix-gemma3", "tunix-llama",
    ]  # fmt: skip
    assert page(["check", "tunix"], json=True) == 0
    assert len(json.loads(capsys.readouterr().out)["proofs"]) == 3


@pytest.mark.parametrize(("word", "meant"), [("chek", "check"), ("tunx", "tunix"), ("flax-gtp2", "flax-gpt2")])
def test_a_misspelt_word_has_a_suggestion(word: str, meant: str) -> None:
    with pytest.raises(PlanError, match=f"unknown layout '{word}'. Did you mean '{meant}'\\?"):
        page([word], json=False)


def test_a_library_takes_the_layout_for_the_model() -> None:
    assert layout_for("maxtext", {"model_type": "mixtral"}).name == "maxtext-mixtral"
    with pytest.raises(PlanError, match="no layout of 'maxtext' is for model_type 'gpt2'"):
        layout_for("maxtext", {"model_type": "gpt2"})
    with pytest.raises(PlanError, match="no layout of 'maxtext' is for no model_type"):
        layout_for("maxtext", None)


def test_check_tells_mistakes_of_text_and_of_names_in_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "layout: mine\ndoc: mine\ndims: {D: width}\nrules:\n- {hf: a, to: x, shape: [D], ops: [transpse]}\n"
        "- {hf: b, to: y, shape: [D]}\n- {hf: c, to: y, shape: [D]}\nexample: {width: 2}\n"
    )
    assert page(["check", str(file)], json=False) == 1
    said = capsys.readouterr().err
    assert "unknown op 'transpse'. Did you mean 'transpose'?" in said
    assert "'b' and 'c' both correspond to the target name 'y'" in said
