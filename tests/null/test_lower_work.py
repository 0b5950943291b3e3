"""How much work lowering is, in counts: shapes are inferred once a signature, and most plans need no JAX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from brainsurgery_jax.graph import expr
from tests.null.world import Headers, after, program, write_zeros

MANY = {f"layers.{i}.weight": "bf16[8,8]" for i in range(300)}


def test_300_tensors_of_one_shape_are_inferred_once_a_step(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    infer = expr.infer
    monkeypatch.setattr(expr, "infer", lambda kernel, *rest: asked.append(kernel.name) or infer(kernel, *rest))
    steps = [
        {"scale_": {"target": ".*", "by": 0.5}},
        {"cast_": {"target": ".*", "to": "float32"}},
        {"permute": {"from": "(.*)", "to": r"t.\1", "order": [1, 0]}},
    ]
    after(*steps, world=Headers({"m.safetensors": MANY}))
    assert asked == ["scale", "cast", "permute"]


def test_a_step_makes_one_expression_a_tensor():
    world = Headers({"m.safetensors": MANY})
    made = [e.id for e in after({"scale_": {"target": ".*", "by": 2}}, world=world).spaces["m"].names.values()]
    assert sorted(made) == list(range(300, 600))


def test_effects_name_every_tensor_of_a_step():
    (effect,) = program({"scale_": {"target": ".*", "by": 2}}, world=Headers({"m.safetensors": MANY})).effects
    assert len(effect.changed) == 300


def test_checking_a_plan_of_moves_arithmetic_and_header_asserts_does_not_load_jax(tmp_path: Path):
    write_zeros(tmp_path / "m.safetensors", MANY)
    (tmp_path / "plan.yaml").write_text(
        "inputs: [m.safetensors]\n"
        "transforms:\n"
        "  - copy: {from: '(.*)', to: 'c.\\1'}\n"
        "  - scale_: {target: 'c\\..*', by: 2}\n"
        "  - cast_: {target: 'c\\..*', to: float32}\n"
        "  - assert: {dtype: {of: 'c\\..*', is: float32}}\n"
        "output: out.safetensors\n"
    )
    code = (
        "import sys, brainsurgery_jax as bs; bs.load('plan.yaml').check(); "
        "sys.exit(bool({'jax', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2])}, check=False
    )
    assert done.returncode == 0
