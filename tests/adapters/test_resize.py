"""`lora_resize`: the best approximation of each product at another rank, scaled as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import brainsurgery_jax as bs
from brainsurgery_jax.adapters import kernels
from brainsurgery_jax.errors import PlanError
from tests.adapters.models import QUIET, adapted, gpt2, llama, logits, with_adapter
from tests.checkpoints import normal, plan_of, run_plan

pytestmark = QUIET

KEYS = {"r": 8, "lora_alpha": 24, "target_modules": ["q_proj", "up_proj", "embed_tokens"],
        "rank_pattern": {r"layers\.1\..*q_proj": 2}, "alpha_pattern": {"up_proj": 3}}  # fmt: skip


def resize(folder: Path, **keys: Any) -> Path:
    plan = {
        "inputs": [f"adapter::{folder / 'adapter'}"],
        "transforms": [{"lora_resize": {"adapter": "adapter", "to": "small", **keys}}],
        "output": {"path": str(folder / "small"), "alias": "small", "format": "peft"},
    }
    bs.load(plan).run(durable=False)
    return folder / "small"


def merged(folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    return dict(with_adapter(folder, adapter).merge_and_unload().state_dict())


@pytest.mark.parametrize("keys", [{}, {"use_rslora": True}], ids=["plain", "rank-stabilized"])
@pytest.mark.parametrize("rank", [16, 8])
def test_a_rank_that_is_no_smaller_changes_no_logits(rank: int, keys: Any, tmp_path: Path):
    wanted = logits(adapted(tmp_path, llama(), **KEYS, **keys))
    small = resize(tmp_path, rank=rank)
    torch.testing.assert_close(logits(with_adapter(tmp_path, small)), wanted, rtol=1e-5, atol=1e-6)
    ranks = {
        x.shape[0] for n, x in load_file(small / "adapter_model.safetensors").items() if n.endswith("lora_A.weight")
    }
    assert ranks == {rank}


@pytest.mark.parametrize("keys", [{}, {"use_rslora": True}], ids=["plain", "rank-stabilized"])
def test_a_smaller_rank_gives_the_best_approximation_of_what_is_added(keys: Any, tmp_path: Path):
    adapted(tmp_path, llama(), **KEYS, **keys)
    base = load_file(tmp_path / "base/model.safetensors")
    before, after = merged(tmp_path, tmp_path / "adapter"), merged(tmp_path, resize(tmp_path, rank=3))
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight",
                 "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):  # fmt: skip
        u, s, v = torch.linalg.svd((before[name] - base[name]).double(), full_matrices=False)
        wanted = u[:, :3] @ torch.diag(s[:3]) @ v[:3]
        within = 5e-6 * float(wanted.abs().max())
        torch.testing.assert_close((after[name] - base[name]).double(), wanted, rtol=0, atol=within, msg=name)


def test_transposed_matrices_are_resized(tmp_path: Path):
    adapted(tmp_path, gpt2(), r=6, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True)
    before, after = merged(tmp_path, tmp_path / "adapter"), merged(tmp_path, resize(tmp_path, rank=6))
    torch.testing.assert_close(after, before)


def test_each_product_keeps_its_share_of_the_energy(tmp_path: Path):
    adapted(tmp_path, llama(), **KEYS)
    factors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    found = load_file(resize(tmp_path, energy=0.8) / "adapter_model.safetensors")
    names = [n for n in factors if n.endswith("lora_A.weight")]
    assert names
    for a in names:
        b = a.replace("lora_A", "lora_B")
        s2 = torch.linalg.svdvals((factors[b] @ factors[a]).double()) ** 2
        assert found[a].shape[0] == found[b].shape[1] == 1 + int((s2.cumsum(0) < 0.8 * s2.sum()).sum())
    config = json.loads((tmp_path / "small/adapter_config.json").read_text())
    assert config["rank_pattern"] and config["alpha_pattern"]


def test_the_alpha_of_kohya_goes_with_the_rank_and_convolutions_keep_their_shape(tmp_path: Path):
    a, b = normal((4, 3, 3, 3)), normal((5, 4, 1, 1), seed=1)
    adapter = {"lora_unet_c.lora_down.weight": a, "lora_unet_c.lora_up.weight": b, "lora_unet_c.alpha": np.float32(2)}
    made = run_plan(tmp_path, {"adapter": adapter}, {"lora_resize": {"adapter": "adapter", "rank": 2}})
    down, up = made["lora_unet_c.lora_down.weight"], made["lora_unet_c.lora_up.weight"]
    assert (down.shape, up.shape, float(made["lora_unet_c.alpha"])) == ((2, 3, 3, 3), (5, 2, 1, 1), 1.0)
    u, s, v = np.linalg.svd(b.reshape(5, 4) @ a.reshape(4, 27), full_matrices=False)
    np.testing.assert_allclose(up.reshape(5, 2) @ down.reshape(2, 27), (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)


def test_the_product_is_never_formed():
    space, product = kernels.refactor.workspace, 4096 * 11008 * 4
    avals = tuple(bs.dtypes.Aval(shape, bs.dtypes.FLOAT32) for shape in ((4096, 16), (16, 11008)))
    assert space is not None and space(avals, {}) < product / 10


def test_under_jit_it_is_the_same(tmp_path: Path):
    tensors = {"h.w.lora_A.weight": normal((4, 9)), "h.w.lora_B.weight": normal((7, 4), seed=1)}
    step = {"lora_resize": {"adapter": "adapter", "rank": 2}}
    made = run_plan(tmp_path, {"adapter": tensors}, step)
    plan = bs.load({"inputs": ["adapter::tree"], "transforms": [step]})
    traced = jax.jit(lambda tree: plan.apply(tree, checks="skip"))(tensors)
    product = lambda t: np.asarray(t["h.w.lora_B.weight"]) @ np.asarray(t["h.w.lora_A.weight"])  # noqa: E731
    np.testing.assert_allclose(product(traced), product(made), atol=1e-5)


@pytest.mark.parametrize(("tensors", "keys", "why"), [
    ({"w": normal((2, 2))}, {"rank": 2}, "of which it is not known how they change a model"),
    ({"base_model.model.n.weight": normal((2,))}, {"rank": 2}, "holds no factors"),
    ({"m.lora_A.weight": normal((2, 3)), "m.lora_B.weight": normal((4, 5))}, {"rank": 2}, "no factors of one product"),
    ({"m.lora_A.weight": normal((2, 3)), "m.lora_B.weight": normal((4, 2))}, {},
     "how large are the factors\\? Of rank and energy give one, not none"),
])  # fmt: skip
def test_what_is_no_adapter_is_refused(tensors: Any, keys: Any, why: str, tmp_path: Path):
    step = {"lora_resize": {"adapter": "adapter", **keys}}
    with pytest.raises(PlanError, match=why):
        bs.load(plan_of(tmp_path, {"adapter": tensors}, step)).explain()


def test_factors_of_integers_are_refused_and_cast_they_are_resized(tmp_path: Path) -> None:
    factors = {"w.lora_A.weight": np.arange(6, dtype=np.int32).reshape(2, 3),
               "w.lora_B.weight": np.arange(8, dtype=np.int32).reshape(4, 2)}  # fmt: skip
    step = {"lora_resize": {"adapter": "model", "rank": 1}}
    with pytest.raises(PlanError, match=r"factors are floats, and 'w\.lora_A\.weight' is i32\[2,3\]") as caught:
        run_plan(tmp_path, factors, [step])
    (found,) = caught.value.diagnostics
    assert found.hint == "Cast first: `cast_: {target: ..., to: float64}`."
    made = run_plan(tmp_path, factors, [{"cast_": {"target": ".*", "to": "float64"}}, step])
    u, s, vt = np.linalg.svd(factors["w.lora_B.weight"] @ factors["w.lora_A.weight"])
    np.testing.assert_allclose(made["w.lora_B.weight"] @ made["w.lora_A.weight"], s[0] * np.outer(u[:, 0], vt[0]))
