"""What looks broken in a checkpoint, and measurements that are ended early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.looking.health import find_problems
from tests.checkpoints import write


def problems(here: Path, **tensors: np.ndarray) -> dict[str, str]:
    return find_problems(bs.stats(write(here / "x.safetensors", tensors)))


def test_each_kind_of_broken_tensor_is_told_in_words(here: Path):
    rng = np.random.default_rng(0)
    layers = {f"h.{at}.w": rng.normal(size=(4, 4)).astype("f4") for at in range(5)}
    layers["h.3.w"] *= 1000
    broken = np.ones(4, "f4")
    broken[0] = np.nan
    infinite = np.array([1, np.inf, -np.inf], "f4")
    found = problems(here, **layers, nan=broken, inf=infinite, zero=np.zeros(3, "f4"), one=np.full(3, 2, "f4"))
    assert found.pop("h.3.w").startswith("magnitude ")
    assert found == {"nan": "1 NaN", "inf": "2 infinite", "zero": "zero everywhere", "one": "constant: 2"}


def test_healthy_tensors_and_a_single_number_are_no_problem(here: Path):
    assert problems(here, w=np.arange(4, dtype="f4"), scale=np.array([3.0], "f4"), bits=np.arange(3)) == {}


def test_two_tensors_are_too_few_to_tell_which_is_too_large(here: Path):
    small = np.arange(1, 5, dtype="f4")
    assert problems(here, **{"h.0.w": small, "h.1.w": small * 1e6}) == {}


@pytest.mark.parametrize(
    "measure",
    [
        lambda path, stop: bs.stats(path, stop=stop),
        lambda path, stop: bs.stats(path, effective_rank=True, stop=stop),
        lambda path, stop: bs.spectrum(path, stop=stop),
        lambda path, stop: bs.spectrum(path, most=2, stop=stop),
        lambda path, stop: bs.histogram(path, "w", stop=stop),
        lambda path, stop: bs.heat_map(path, "w", stop=stop),
        lambda path, stop: bs.diff(path, path, stop=stop),
    ],
)
def test_a_measurement_ends_when_it_is_told_to(here: Path, measure: Callable[[str, Event], object]):
    path = str(write(here / "x.safetensors", {"w": np.eye(8, dtype="f4")}))
    stop = Event()
    assert measure(path, stop) is not None
    stop.set()
    with pytest.raises(bs.Stopped):
        measure(path, stop)
