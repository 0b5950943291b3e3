"""Devices that XLA only simulates on the CPU do not change the bits of a run.

XLA divides its threads among them, and once rounded `compute` in another way with two of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import normal, plan_of

EXPRESSIONS = (
    *("exp(x) / (1 + exp(x))", "tanh(x) * sqrt(abs(y))", "sin(x) * cos(y) + log(abs(x) + 1)", "x * sigmoid(1.702 * x)"),
    *(
        "erf(x / 1.4142135)",
        "expm1(x) - log1p(abs(y))",
        "arctan2(x, y)",
        "softmax(x, axis=-1)",
        "logsumexp(x, axis=-1)",
    ),
    *(
        "x / norm(x)",
        "matmul(x, transpose(y))",
        "(x * y + x) * (y - x * x)",
        "mean(x * x, axis=0)",
        "cumsum(x, axis=1)",
    ),
)


def digest(folder: Path, devices: int) -> str:
    """The digest of what a plan with all expressions writes, in a process with so many devices."""
    tensors = {"x": normal((256, 1024), seed=1), "y": normal((256, 1024), seed=2)}
    steps = [
        {"compute": {"from": {"x": "x", "y": "y"} if "y" in e else {"x": "x"}, "expr": e, "to": f"made{i}"}}
        for i, e in enumerate(EXPRESSIONS)
    ]
    plan = plan_of(folder, tensors, steps)
    (folder / "plan.yaml").write_text(json.dumps(plan))
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "brainsurgery_jax", str(folder / "plan.yaml"), "--no-fsync"]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return hashlib.sha256(Path(plan["output"]["path"]).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return digest(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_simulated_devices_do_not_change_the_bits_of_compute(tmp_path: Path, alone: str, devices: int) -> None:
    assert digest(tmp_path, devices) == alone
