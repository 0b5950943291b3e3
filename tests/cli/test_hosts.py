"""`explain --hosts`, and the options of `run --distributed`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from brainsurgery_jax.cli.app import app
from tests.checkpoints import write


@pytest.fixture
def plan(tmp_path: Path) -> str:
    write(tmp_path / "m.safetensors", {f"w.{n}": np.zeros((64, 64), np.float32) for n in range(8)})
    text = {"inputs": [f"m::{tmp_path / 'm.safetensors'}"], "transforms": [{"scale_": {"target": ".*", "by": 2}}],
            "output": str(tmp_path / "out.safetensors")}  # fmt: skip
    (tmp_path / "plan.yaml").write_text(json.dumps(text))
    return str(tmp_path / "plan.yaml")


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_explain_models_the_run_on_hosts_as_they_are_described(plan: str):
    done = invoke("explain", plan, "--hosts", "2", "--cluster", "reads=1MB,writes=64KB,memory=1GB", "--json")
    cluster = json.loads(done.stdout)["cluster"]
    assert [phase["bound"] for phase in cluster["phases"]] == ["writes"]
    assert sum(host["bytes_written"] for host in cluster["hosts"]) == 8 * 64 * 64 * 4


def test_explain_prints_time_balance_and_memory_of_the_model(plan: str):
    done = invoke("explain", plan, "--hosts", "1")
    assert "1 host: 3 s by the model, largest part 1.00 x the mean, peak" in done.stdout


@pytest.mark.parametrize(
    ("cluster", "told"),
    [("speed=2", "is no part of a cluster"), ("reads=fast", "'reads=fast'"), ("flops=0", "above 0")],
)
def test_explain_refuses_what_describes_no_cluster(plan: str, cluster: str, told: str):
    done = invoke("explain", plan, "--hosts", "2", "--cluster", cluster)
    assert done.exit_code == 2
    assert told in done.output


def test_explain_tells_that_a_run_with_such_a_budget_is_refused_and_one_with_more_is_not(plan: str):
    small, large = (json.loads(invoke("explain", plan, "--memory", size, "--json").stdout) for size in ("1KB", "1GB"))
    run = invoke("run", plan, "--memory", "1KB")
    assert (run.exit_code, small["refusal"] in run.output) == (1, True)
    assert f"refused: {small['refusal']}. Give more: `--memory`." in invoke("explain", plan, "--memory", "1KB").stdout
    assert large["refusal"] is None
    assert invoke("run", plan, "--memory", "1GB").exit_code == 0


def test_a_cluster_needs_hosts(plan: str):
    assert "needs --hosts" in invoke("explain", plan, "--cluster", "reads=1GB").output


def test_the_number_of_a_process_needs_distributed(plan: str):
    done = invoke("run", plan, "--process-id", "1")
    assert (done.exit_code, "needs --distributed" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--process-id", "2", "--process-count", "2"), "numbered from 0 to 1, got 2"),
        (("--coordinator", "localhost"), "'localhost' is no address: write HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_is_wrong_usage(options: tuple[str, ...], told: str, plan: str):
    done = invoke("run", plan, "--distributed", *options)
    assert done.exit_code == 2 and told in " ".join(done.output.replace("│", " ").split())


def test_a_distributed_run_has_no_prompt(plan: str):
    assert "a prompt has one process" in invoke("run", plan, "--distributed", "-i").output
