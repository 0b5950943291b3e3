"""Charts as data: what they hold, that it is JSON, and that it can be seen on either ground."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("nicegui", reason="NiceGUI is not installed: pip install 'brainsurgery-jax[web]'")

import brainsurgery_jax as bs
from brainsurgery_jax.looking.spectra import Spectrum
from brainsurgery_jax.web import charts
from brainsurgery_jax.web.charts import draw_change, draw_energy, draw_heat_map, draw_histograms


def test_charts_are_json_also_of_what_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    x = np.arange(12, dtype="f4").reshape(3, 4)
    x[1, 2] = np.nan
    save_file({"w": x}, "w.safetensors")
    found = draw_heat_map(bs.heat_map("w.safetensors", "w"), np.nan)
    cells = json.loads(json.dumps(found, allow_nan=False))["series"][0]["data"]
    assert {(at, row): value for at, row, value in cells} == {
        (c, r): x[r, c] for r in range(3) for c in range(4) if (r, c) != (1, 2)
    }
    assert json.dumps(draw_change({("a", 0): np.inf, ("a", None): 0.5}), allow_nan=False)
    zeros = Spectrum((2, 2), np.zeros(2))
    assert draw_energy({"zero": zeros, "nan": Spectrum((2, 2), np.full(2, np.nan))})["series"] == []


def test_a_histogram_is_drawn_from_the_first_edge_to_the_last(tmp_path: Path):
    save_file({"w": np.array([0, 0, 1, 4], "f4")}, tmp_path / "w.safetensors")
    found = bs.histogram(tmp_path / "w.safetensors", "w", bins=2)
    (series,) = json.loads(json.dumps(draw_histograms({"w": found})))["series"]
    assert series["data"] == [[0, 3], [2, 1], [4, 1]]  # a step ends where the next begins


def luminance(colour: np.ndarray) -> float:
    """Relative luminance of sRGB from 0 to 1 (WCAG 2.2)."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# CSS: invert(1), then hue-rotate(180deg), whose matrix is 2 w - 1 with the weights of red, green and blue in each row.
TURN = 2 * np.tile([0.213, 0.715, 0.072], (3, 1)) - np.eye(3)


@pytest.mark.parametrize("line", charts.LINES)
def test_a_line_is_seen_in_the_light_and_in_the_dark(line: str):
    colour = np.array([int(line[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    assert contrast(colour, np.ones(3)) >= 3  # WCAG 2.2, 1.4.11
    assert contrast(np.clip(TURN @ (1 - colour), 0, 1), np.full(3, 0x1D / 255)) >= 3
