"""What a command imports before it answers: nobody waits for what the answer does not need.

That `inspect` and `run --help` load pydantic is typer's doing, which from 0.29 on converts arguments with it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Loaded = Callable[..., set[str]]


def test_help_loads_nothing_heavy(loaded: Loaded):
    assert loaded("--help") == set()


def test_help_loads_the_command_line_alone():
    code = "import sys; from brainsurgery_jax.cli.app import main\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True).stdout
    ours = {name.partition(".")[2] for name in out.splitlines()[-1].split() if name.startswith("brainsurgery_jax.")}
    assert {name for name in ours if not name.startswith("cli")} == {"version"}


def test_the_help_of_a_command_loads_nothing_heavy(loaded: Loaded):
    assert loaded("run", "--help") <= {"pydantic"}


def test_inspect_loads_neither_numpy_nor_jax_nor_the_ops(loaded: Loaded):
    assert loaded("inspect", "base.safetensors") <= {"pydantic"}


def test_inspect_with_a_target_loads_nothing_more(loaded: Loaded):
    assert loaded("inspect", "base.safetensors", "--target", r"h\..*") <= {"pydantic"}


def test_checking_a_plan_of_names_loads_neither_jax_nor_numpy(loaded: Loaded):
    assert not loaded("check", "plan.yaml") & {"jax", "numpy", "backend"}


def test_running_a_plan_of_names_loads_no_jax(loaded: Loaded):
    assert "jax" not in loaded("run", "plan.yaml")


def test_checking_a_plan_that_computes_starts_no_backend(loaded: Loaded, place: Path):
    steps = "[{matmul: {from_a: 'h.0.w::[:, :2]', from_b: h.0.w, to: p}}, {phlora_: {target: p, rank: 1}}]"
    (place / "plan.yaml").write_text(f"inputs: [base.safetensors]\ntransforms: {steps}\noutput: out.safetensors\n")
    assert "backend" not in loaded("check", "plan.yaml")


def test_a_plan_loads_only_the_ops_that_it_names(place: Path):
    code = "import sys; from brainsurgery_jax.cli.app import main\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    (place / "plan.yaml").write_text("inputs: [base.safetensors]\ntransforms: [{scale_: {target: bias, by: 2}}]\n")
    words = [sys.executable, "-c", code, "check", "plan.yaml"]
    out = subprocess.run(words, capture_output=True, text=True, cwd=place).stdout
    assert {"elementwise", "merge", "adapters"} & {
        name.rpartition(".")[2] for name in out.splitlines()[-1].split() if name.startswith("brainsurgery_jax.ops.")
    } == {"elementwise"}
