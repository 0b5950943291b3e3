"""Merges of models with the shapes of Llama 3 8B, projected from the headers of sparse files."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

import pytest

import brainsurgery_jax as bs
from tests.merging.cases import CASES

WIDTH, INNER, WORDS, KV = 4096, 14336, 128256, 1024
LAYERS = 2  # of 32: what a run holds at a time are its largest tensors, not all of them
MOST = 1.5e9
OF_MERGEKIT = (
    "linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties",
    "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "model_stock", "sce", "arcee_fusion", "nearswap", "ram",
    "ramplus_tl", "passthrough",
)  # fmt: skip


def shapes(layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (WORDS, WIDTH), "lm_head.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,),
    }  # fmt: skip
    for i in range(layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        found |= {
            f"{attention}.{name}_proj.weight": (size, WIDTH) for name, size in zip("qkv", (WIDTH, KV, KV), strict=True)
        }
        found |= {f"{mlp}.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        found |= {f"{attention}.o_proj.weight": (WIDTH, WIDTH), f"{mlp}.down_proj.weight": (WIDTH, INNER)}
    return found


def write_sparse(path: Path, layers: int = LAYERS) -> None:
    """A file of bfloat16 zeros, which takes no space."""
    header, at = {}, 0
    for name, shape in shapes(layers).items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * prod(shape)]}
        at += 2 * prod(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and three models."""
    folder = tmp_path_factory.mktemp("models")
    for alias in ("base", "a", "b", "c"):
        write_sparse(folder / f"{alias}.safetensors")
    return folder


@pytest.mark.parametrize("method", OF_MERGEKIT)
def test_a_merge_of_8b_shapes_is_projected_to_hold_less_than_a_gigabyte_and_a_half(method: str, models: Path) -> None:
    drawn = {
        "method": method,
        "base": "base",
        "models": ["a", "b", "c"],
        "to": "merged",
        "parameters": {"density": 0.5},
    }
    step = next((c.keys for c in CASES.values() if c.keys["method"] == method and "a" in c.keys["models"]), drawn)
    inputs = [f"{alias}::{models / alias}.safetensors" for alias in ("base", "a", "b", "c")]
    plan = bs.load({"inputs": inputs, "transforms": [{"merge": dict(step)}],
                    "output": {"path": str(models / "out/"), "alias": "merged"}})  # fmt: skip
    assert 0 < plan.explain().peak_in_all < MOST


THREE = {
    "linear": {"models": ["base", "a", "b"]},
    "slerp": {"models": ["base", "a"], "parameters": {"t": 0.5}},
    "ties": {"base": "base", "models": ["a", "b"], "parameters": {"density": 0.5}},
    "task_arithmetic": {"base": "base", "models": ["a", "b"], "parameters": {"weight": 0.5}},
}
"""Merges that benchmarks hold against mergekit, of three models (slerp: of two)."""


@pytest.fixture(scope="module")
def all_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three models of all 32 layers, 16 GB each."""
    folder = tmp_path_factory.mktemp("all_layers")
    for alias in ("base", "a", "b"):
        write_sparse(folder / f"{alias}.safetensors", layers=32)
    return folder


@pytest.mark.parametrize("method", THREE)
def test_a_merge_of_three_whole_models_of_8b_is_projected_to_hold_an_eighth_of_that(
    method: str, all_layers: Path
) -> None:
    step = {"method": method, **THREE[method], "to": "merged"}
    used = ("base", "a") if method == "slerp" else ("base", "a", "b")
    plan = bs.load({"inputs": [f"{alias}::{all_layers / alias}.safetensors" for alias in used],
                    "transforms": [{"merge": step}],
                    "output": {"path": str(all_layers / "out/"), "alias": "merged"}})  # fmt: skip
    found = plan.explain()
    assert (found.tasks, found.bytes_computed) == (len(shapes(32)), 2 * sum(map(prod, shapes(32).values())))
    assert 0 < found.peak_in_all < MOST / 8
