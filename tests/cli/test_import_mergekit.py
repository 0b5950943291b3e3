"""`import-mergekit CONFIG.yml`: prints a plan, or writes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import read
from tests.cli.conftest import Command
from tests.importers.merges import CASES, put_config, put_models


@pytest.fixture
def config(place: Path) -> Path:
    put_models(place)
    return put_config(place, CASES["stacked"].config)


def test_the_plan_is_printed_and_runs(command: Command, place: Path, config: Path):
    done = command("import-mergekit", "merge.yml")
    assert (done.code, done.err) == (0, "")
    (place / "merge.yaml").write_text(done.out)
    assert command("merge.yaml", "output.path=six/", "-q").code == 0
    assert "model.layers.5.mlp.up_proj.weight" in read(place / "six" / "model.safetensors")


def test_the_plan_is_written_where_it_is_wanted(command: Command, place: Path, config: Path):
    done = command("import-mergekit", "merge.yml", "--out", "merge.yaml")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("wrote merge.yaml; ")
    assert command("check", "merge.yaml").code == 0


def test_a_plan_that_is_there_is_replaced_only_when_told_to(command: Command, place: Path, config: Path):
    codes = [
        command("import-mergekit", "merge.yml", "--out", "plan.yaml", *more).code for more in ([], ["--overwrite"])
    ]
    assert codes == [2, 0]


def test_what_cannot_be_imported_is_1_with_its_place(command: Command, place: Path, config: Path):
    put_config(place, {**CASES["stacked"].config, "merge_method": "karcher"})
    done = command("import-mergekit", "merge.yml")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("merge.yml:4:5: karcher merges several models, and a slice has 'a' alone")


def test_a_missing_configuration_is_1_with_the_nearest(command: Command, config: Path):
    done = command("import-mergekit", "merg.yml")
    assert (done.code, "Did you mean 'merge.yml'?" in done.err) == (1, True)


def test_a_damaged_model_is_3(command: Command, place: Path, config: Path):
    (place / "a" / "model.safetensors").write_bytes(b"x")
    assert command("import-mergekit", "merge.yml").code == 3
