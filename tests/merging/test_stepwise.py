"""`compat: mergekit` of means on a sphere, beside the formulas in PyTorch, every step in the dtype of the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.checkpoints import normal
from tests.merging.cases import merge

SHAPES = {"w": (9, 7), "v": (11,), "t": (3, 4, 5)}


def models(dtype: Any, letters: str) -> dict[str, dict[str, np.ndarray]]:
    return {
        letter: {name: normal(shape, seed=31 * at + len(name) + shape[0]).astype(dtype)
                 for name, shape in SHAPES.items()} for at, letter in enumerate(letters)
    }  # fmt: skip


def torched(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16 if x.dtype == ml_dtypes.bfloat16 else torch.float32)


def multislerp(xs: list[torch.Tensor], weights: list[float], base: torch.Tensor | None) -> torch.Tensor:
    """One tangent step, as the formula says, in the dtype of the tensors."""
    rows = torch.stack([(x if base is None else x - base).reshape(-1) for x in xs])
    w = torch.tensor(weights, dtype=rows.dtype)
    w = w / w.sum()
    norms = rows.norm(dim=1, keepdim=True)
    units = rows / (norms + 1e-8)
    mean = (units * w[:, None]).sum(0)
    mean = mean / mean.norm()
    tangents = units - (units * mean).sum(1, keepdim=True) * mean
    step = (tangents * w[:, None]).sum(0)
    angle = step.norm()
    made = mean * torch.cos(angle) + step * (torch.sin(angle) / angle)
    made = (made * (w * norms[:, 0]).sum()).reshape(xs[0].shape)
    return made if base is None else base + made


def karcher(xs: list[torch.Tensor]) -> torch.Tensor:
    """Steps along the mean of tangents; norms in float32, all else in the dtype of the tensors."""
    vectors, share = [x.reshape(-1) for x in xs], 1 / len(xs)
    norms = [torch.linalg.norm(x.float()) for x in vectors]
    units = [x / n for x, n in zip(vectors, norms, strict=True)]
    mean = torch.zeros_like(units[0])
    for unit in units:
        mean = mean + share * unit
    mean = mean / torch.linalg.norm(mean.float())
    for _ in range(10):
        step = torch.zeros_like(mean)
        for unit in units:
            angle = torch.arccos(torch.clamp(torch.dot(mean, unit), -1, 1))
            if angle.item() >= 1e-5:
                step = step + share * (angle / torch.sin(angle)) * (unit - torch.cos(angle) * mean)
        length = torch.linalg.norm(step.float())
        if length.item() < 1e-5:
            break
        mean = torch.cos(length) * mean + torch.sin(length) * (step / length)
        mean = mean / torch.linalg.norm(mean.float())
    return (sum(share * n for n in norms) * mean).reshape(xs[0].shape)


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("weights", [[0.6, 0.3], [0.2, 0.5, 0.4]])
def test_multislerp_is_equal_to_the_last_bit_in_bfloat16(weights: list[float], based: bool, tmp_path: Path):
    letters = "abc"[: len(weights)]
    tensors = models(ml_dtypes.bfloat16, letters + "z")
    keys: dict[str, Any] = {"method": "multislerp", "models": dict(zip(letters, weights, strict=True)), "to": "m"}
    keys |= {"compat": "mergekit"} | ({"base": "z"} if based else {})
    made = merge(tmp_path, tensors, keys)
    for name in SHAPES:
        own = [torched(tensors[letter][name]) for letter in letters]
        wanted = multislerp(own, weights, torched(tensors["z"][name]) if based else None)
        assert np.array_equal(made[name].astype(np.float32), wanted.float().numpy()), name


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("letters", ["ab", "abc"])
def test_karcher_is_equal_but_for_single_roundings(letters: str, dtype: Any, tmp_path: Path):
    tensors = models(dtype, letters)
    made = merge(tmp_path, tensors, {"method": "karcher", "models": list(letters), "to": "m", "compat": "mergekit"})
    digits = 7 if dtype is ml_dtypes.bfloat16 else 23
    for name in SHAPES:
        wanted = karcher([torched(tensors[letter][name]) for letter in letters]).double().numpy()
        apart = np.abs(made[name].astype(np.float64) - wanted)
        assert apart.max() <= np.abs(wanted).max() * 2.0 ** (3 - digits), name
        if digits == 7:
            assert np.count_nonzero(apart) <= 0.05 * apart.size, name


def test_in_either_rounding_opposed_models_take_the_straight_line(tmp_path: Path):
    x = normal((6, 5), seed=3)
    tensors = {"a": {"w": x}, "b": {"w": -x}}
    for compat in ("no", "mergekit"):
        made = merge(tmp_path, tensors, {"method": "multislerp", "models": ["a", "b"], "to": "m", "compat": compat})
        np.testing.assert_array_equal(made["w"], 0 * x)


def test_a_model_of_zeros_has_no_direction(tmp_path: Path):
    x = normal((6, 5), seed=3)
    tensors = {"a": {"w": 0 * x}, "b": {"w": x}}
    for compat in ("no", "mergekit"):
        made = merge(tmp_path, tensors, {"method": "karcher", "models": ["a", "b"], "to": "m", "compat": compat})
        np.testing.assert_allclose(made["w"], x / 2, rtol=1e-6)
