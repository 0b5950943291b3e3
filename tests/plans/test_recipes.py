"""Every recipe by its name on a small checkpoint, alone and within a plan; and that packages hold them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import brainsurgery_jax as bs
from brainsurgery_jax.cli.app import app
from brainsurgery_jax.cli.recipes import recipes as print_recipes
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.plan.recipes import find_recipe, recipe_names
from tests.checkpoints import normal, read, write
from tests.plans import recipe_inputs

ROOT = Path(__file__).resolve().parents[2]

INPUTS: Mapping[str, Callable[[Path], Mapping[str, Any]]] = recipe_inputs.INPUTS


def test_every_recipe_is_run_here():
    assert sorted(INPUTS) == list(recipe_names())


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_a_recipe_runs_by_its_name(name: str, tmp_path: Path):
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in INPUTS[name](tmp_path).items()}
    plan = bs.load(f"recipe:{name}", **settings)
    assert [d for d in bs.check(plan) if d.severity == "error"] == []
    written = plan.run(durable=False).published
    assert [Path(path) for path, _, _ in written] == ([Path(settings["out"])] if "out" in settings else [])


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_a_recipe_declares_its_variables_with_help_and_shows_how_it_is_run(name: str):
    recipe = find_recipe(name)
    assert recipe.summary
    assert [v.name for v in recipe.variables.values() if not v.help] == []
    (usage,) = (line for line in recipe.about if line.startswith("  brainsurgery-jax run recipe:"))
    assert usage.split()[2] == f"recipe:{name}"
    given = {word.partition("=")[0] for word in usage.split()[3:]}
    assert {v.name for v in recipe.variables.values() if v.default is None} <= given <= set(recipe.variables)


SMALLER: Mapping[str, tuple[str, ...]] = {
    "rome": ("layer=17",), "emmet": ("layer=17",), "steering": ("layer=6",), "expert-removal": ("expert=63",),
    "transplant": (r"of=model\.layers\.5\.mlp\..+",), "surgery-validated": ("layer=5",),
    "olmoe": ("experts=64", "per_token=8"),
}  # fmt: skip
"""What the command of a recipe says of a model that is larger than ours."""


def usage_of(name: str) -> list[str]:
    """The command that documents a recipe, as a shell splits it."""
    (usage,) = (line for line in find_recipe(name).about if line.startswith("  brainsurgery-jax run recipe:"))
    return shlex.split(usage)


def documented(name: str, folder: Path) -> list[str]:
    """The command that documents a recipe, and in the working directory the checkpoints that it names: small ones, made
    in a folder.

    Variables that it leaves to their defaults are given where our models are smaller than what the defaults are for.
    """
    command, settings = usage_of(name), dict(INPUTS[name](folder))
    for at, word in enumerate(command[3:], 3):
        key, _, value = word.partition("=")
        ours = settings.pop(key, None)
        if find_recipe(name).variables[key].type in ("path", "paths") and key != "out":
            for path, source in zip(value.split(","), ours if isinstance(ours, list) else [ours], strict=True):
                link(Path(source), Path(path), in_folder=path.endswith("/"))
        elif word in SMALLER.get(name, ()):
            command[at] = f"{key}={ours}"
    return [*command, *(f"{key}={value}" for key, value in settings.items())]


def link(source: Path, path: Path, *, in_folder: bool) -> None:
    """Make a checkpoint known under a path, a file by itself or in a folder."""
    target = path / "model.safetensors" if in_folder and source.is_file() else path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_the_documented_command_of_a_recipe_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "made").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    program, *words = documented(name, tmp_path / "made")
    done = CliRunner().invoke(app, words)
    assert (program, done.exit_code) == ("brainsurgery-jax", 0), done.output


def test_experts_that_were_joined_get_low_ranks_by_the_two_documented_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "made").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _, *words in (documented("flexolmo-merge", tmp_path / "made"), usage_of("flexmore")):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    joined, low = (read(Path(f"{folder}/model.safetensors")) for folder in ("joined", "flexmore"))
    assert {n: x.shape for n, x in low.items()} == {n: x.shape for n, x in joined.items()}


# --- By name ----------------------------------------------------------------------------------------------------------


def models(folder: Path) -> dict[str, str]:
    """A base and two models to merge, and where the result goes."""
    made = {
        name: str(write(folder / f"{name}.safetensors", {"w": normal((4, 3), seed=at)}))
        for at, name in enumerate(("base", "a", "b"))
    }
    return {"base": made["base"], "models": f"{made['a']},{made['b']}", "out": str(folder / "out.safetensors")}


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(PlanError, match=r"there is no recipe 'merge-tie'\. Did you mean 'merge-ties'\?"):
        bs.load("recipe:merge-tie")


def test_underscores_stand_for_dashes():
    assert find_recipe("merge_ties").name == "merge-ties"


def test_a_recipe_within_a_plan_does_what_it_does_alone(tmp_path: Path):
    given = models(tmp_path)
    bs.load("recipe:merge-ties", **given, density=0.3).run(durable=False)
    within = {**given, "out": str(tmp_path / "within.safetensors"), "density": 0.3}
    bs.load({"transforms": [{"execute": {"recipe": {"merge-ties": within}}}]}).run(durable=False)
    np.testing.assert_array_equal(read(tmp_path / "within.safetensors")["w"], read(tmp_path / "out.safetensors")["w"])


def merge_ties(given: dict[str, Any], out: Path, density: float) -> dict[str, Any]:
    return {"execute": {"recipe": {"merge-ties": {**given, "out": str(out), "density": density}}}}


def test_recipes_in_a_row_have_aliases_of_their_own(tmp_path: Path):
    given, densities = models(tmp_path), (0.3, 0.6)
    outs = [tmp_path / f"{density}.safetensors" for density in densities]
    steps = [merge_ties(given, out, density) for out, density in zip(outs, densities, strict=True)]
    bs.load({"transforms": steps}).run(durable=False)
    for out, density in zip(outs, densities, strict=True):
        alone = {**given, "out": str(tmp_path / f"alone_{density}.safetensors")}
        bs.load("recipe:merge-ties", **alone, density=density).run(durable=False)
        np.testing.assert_array_equal(read(out)["w"], read(alone["out"])["w"])


def test_an_alias_of_the_plan_is_what_it_was_after_a_recipe_with_one_of_that_name(tmp_path: Path):
    given, own = models(tmp_path), normal((2, 2), seed=9)
    write(tmp_path / "own.safetensors", {"x": own})
    plan = {
        "inputs": [f"base::{tmp_path / 'own.safetensors'}"],
        "transforms": [merge_ties(given, tmp_path / "merged.safetensors", 0.3), {"scale_": {"target": "x", "by": 2}}],
        "output": str(tmp_path / "after.safetensors"),
    }
    bs.load(plan).run(durable=False)
    np.testing.assert_array_equal(read(tmp_path / "after.safetensors")["x"], own * 2)


def test_the_aliases_of_a_recipe_end_with_it(tmp_path: Path):
    steps = [merge_ties(models(tmp_path), tmp_path / "out.safetensors", 0.3), {"assert": {"exists": "models_1::w"}}]
    assert [found.code for found in bs.check(bs.load({"transforms": steps}))] == ["alias-unknown"]


@pytest.mark.parametrize(
    ("recipe", "code", "message"),
    [
        ("merge-tie", "recipe-unknown", "Did you mean 'merge-ties'"),
        ("merge-ties", "vars-missing", "'base' has no value; it is a path (the model that the others"),
        ({"merge-ties": {"densty": 1}}, "key-unknown", "has no variable 'densty'. Did you mean 'density'"),
        ({"merge-ties": {"base": "b", "models": ["m"], "out": "o", "density": "x"}}, "value-type", "got 'x'"),
        ({"merge-ties": "base"}, "value-type", "expected the variables of 'merge-ties'"),
        ([], "value-type", "expected a recipe and its variables"),
    ],
)
def test_a_wrong_recipe_within_a_plan_is_refused(recipe: Any, code: str, message: str):
    found = bs.check(bs.load({"inputs": ["m::m.safetensors"], "transforms": [{"execute": {"recipe": recipe}}]}))
    problem = next(d for d in found if d.code not in ("io-input",))
    assert (problem.code, message in problem.message) == (code, True), problem


def test_the_remedies_of_wrong_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for at, name in enumerate(("base", "a", "b")):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "model.safetensors", {"w": normal((4, 3), seed=at)})

    def hint(recipe: Any) -> str:
        with pytest.raises(PlanError) as refused:
            bs.load({"transforms": [{"execute": {"recipe": recipe}}]}).check()
        return refused.value.diagnostics[0].hint

    def run(text: str) -> None:
        bs.load({"transforms": [{"execute": yaml.safe_load(text)}]}).run(durable=False)

    run(hint([]).removeprefix("Write `").removesuffix("`."))
    assert Path("out/model.safetensors").exists()
    filled = hint({"merge-ties": "base"}).removeprefix("Write `").removesuffix("`.")
    assert filled == "recipe: {merge-ties: {base: ...}}"
    run(filled.replace("...", "base/, models: a/, out: with-one/"))
    known = hint({"merge-ties": {"x": 1}}).removeprefix("Its variables: ").removesuffix(".").split(", ")
    values = dict(zip(known, ("base", "a", "named/", "0.5"), strict=True))
    run(f"recipe: {{merge-ties: {{{', '.join(f'{k}: {v}' for k, v in values.items())}}}}}")
    assert Path("named/model.safetensors").exists()
    assert hint("merge-tie") == "`brainsurgery-jax recipes` in a shell lists them all."
    print_recipes(None, json=False)


# --- Pages ------------------------------------------------------------------------------------------------------------


def test_the_list_and_the_page_name_what_is_needed(capsys: pytest.CaptureFixture[str]):
    print_recipes(None, json=True)
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert [each["name"] for each in listed] == list(recipe_names())
    print_recipes("recipe:merge-ties", json=True)
    page = json.loads(capsys.readouterr().out)
    density = next(v for v in page["variables"] if v["name"] == "density")
    assert density["help"].startswith("share of the entries")
    assert (density["type"], density["required"], density["default"]) == ("number", False, 0.5)
    print_recipes(None, json=False)
    assert "merge-ties" in capsys.readouterr().out
    print_recipes("merge-ties", json=False)
    assert "density  number, default 0.5: share" in capsys.readouterr().out


def test_a_word_that_is_no_name_lists_the_recipes_that_mention_it(capsys: pytest.CaptureFixture[str]):
    print_recipes("Pruning heads", json=True)
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert [each["name"] for each in listed] == ["head-pruning"]
    print_recipes("merge_ties", json=False)  # a name is no word
    assert "density  number" in capsys.readouterr().out
    for unknown in ("no-such-word", "recipe:Pruning"):
        with pytest.raises(PlanError, match="there is no recipe"):
            print_recipes(unknown, json=False)


# --- Packages ---------------------------------------------------------------------------------------------------------


def test_a_wheel_holds_the_recipes_the_schema_and_the_page_of_diagnostics(tmp_path: Path):
    """Built from a copy without what other tests may change."""
    source = tmp_path / "source"
    source.mkdir()
    for name in (
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
        "converters",
        "plans",
        "docs",
        "brainsurgery_jax",
    ):
        (source / name).symlink_to(ROOT / name)
    build = "import setuptools.build_meta as b; print(b.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = source.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"brainsurgery_jax/recipes/{path.name}" for path in (ROOT / "plans").glob("*.yaml")} <= held
    assert "brainsurgery_jax/recipes/schema.json" in held
    assert [name for name in held if name.endswith(".md") and "dist-info" not in name] == [
        "brainsurgery_jax/pages/diagnostics.md"
    ]
