"""`--ops FILE.py`: the command knows the ops of a file, whatever it is told to do with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import read
from tests.cli.conftest import Command

MY_OPS = Path(__file__).parents[1] / "user_ops" / "my_ops.py"
STEP = "transforms[0]={reverse_axes: {from: 'h.0.w', to: 'layer.0.w'}}"


@pytest.fixture
def ops(place: Path) -> tuple[str, str]:
    """The option that names a file of ops in `place`."""
    shutil.copy(MY_OPS, place / "my_ops.py")
    return "--ops", "my_ops.py"


def test_run_takes_them(command: Command, place: Path, ops: tuple[str, str]):
    assert command("plan.yaml", STEP, *ops, "-q") == (0, "", "")
    assert read(place / "out.safetensors")["layer.0.w"].shape == (3, 2)


@pytest.mark.parametrize("verb", ["check", "explain"])
def test_check_and_explain_take_them(command: Command, ops: tuple[str, str], verb: str):
    assert command(verb, "plan.yaml", STEP, *ops).code == 0


def test_without_them_the_op_is_unknown(command: Command):
    done = command("check", "plan.yaml", STEP)
    assert (done.code, "unknown op 'reverse_axes'" in done.err) == (1, True)


def test_the_list_the_page_and_the_schema_show_them(command: Command, ops: tuple[str, str]):
    assert "\nmy_ops\n  reverse_axes  Reverse the order of the axes.\n" in command("ops", *ops).out
    assert command("ops", "soft_cap", *ops).out.startswith("soft_cap\n\nBend values smoothly")
    assert command("ops", "bounded", *ops).out.startswith("assert.bounded\n")
    assert "op.soft_cap_" in json.loads(command("schema", *ops).out)["$defs"]


def test_several_files_may_be_given(command: Command, place: Path, ops: tuple[str, str]):
    text = MY_OPS.read_text().replace("soft_cap", "hard_cap").replace("reverse_axes", "axes").replace("bounded", "b")
    (place / "more.py").write_text(text)
    assert command("ops", "axes", *ops, "--ops", "more.py").code == 0


def test_a_file_that_fails_is_1_without_a_traceback(command: Command, place: Path):
    (place / "bad.py").write_text("import math\nmath.sqrt(-1)\n")
    done = command("plan.yaml", "--ops", "bad.py")
    assert done.code == 1
    assert done.err.startswith("bad.py:2:1: running this file raised ValueError")
    assert "Traceback" not in done.err


def test_check_tells_a_file_that_fails_in_json(command: Command):
    done = command("check", "plan.yaml", "--ops", "none.py", "--json")
    assert [d["code"] for d in json.loads(done.out)["diagnostics"]] == ["ops-file"]


def test_an_op_that_raises_is_no_defect_of_ours(command: Command, place: Path, ops: tuple[str, str]):
    (place / "my_ops.py").write_text(MY_OPS.read_text().replace("bound = cap", "bound = undefined"))
    done = command("plan.yaml", "transforms=[{soft_cap_: {target: 'h.*', cap: 1}}]", *ops)
    assert done.code == 1
    assert "'soft_cap' raised NameError: name 'undefined' is not defined [ops-file]" in done.err
    assert done.err.startswith("my_ops.py:")
    assert not (place / "out.safetensors").exists()


def test_a_file_that_imports_jax_finds_it_arranged_as_for_any_run(command: Command, place: Path, ops: tuple[str, str]):
    head = "import os, jax\nprint('CACHE', bool(jax.config.jax_compilation_cache_dir), os.environ['PJRT_NPROC'])\n"
    text = MY_OPS.read_text()
    (place / "my_ops.py").write_text(
        text.replace("from brainsurgery_jax.errors", head + "from brainsurgery_jax.errors")
    )
    assert "CACHE True 1" in command("plan.yaml", STEP, *ops, JAX_COMPILATION_CACHE_DIR=str(place / "cache")).out


def test_help_and_inspect_load_no_ops(loaded: Callable[..., set[str]], ops: tuple[str, str]):
    assert "brainsurgery_jax.ops" not in loaded("--help")
    assert "brainsurgery_jax.ops" not in loaded("inspect", "base.safetensors")


def test_a_file_of_ops_makes_a_plan_of_names_load_no_jax(loaded: Callable[..., set[str]], ops: tuple[str, str]):
    assert "jax" not in loaded("run", "plan.yaml", STEP, *ops)
