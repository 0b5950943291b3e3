"""What Python and notebooks show of objects: counts, names and sizes, short and escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import treescope

import brainsurgery_jax as bs
from tests.checkpoints import write

ATTACK = "<script>alert('\"&\x1b')</script>"
MANY = 1000
MOST = 10_000


def shown(found: Any) -> dict[str, Any]:
    """Everything that has a representation, of a plan over many tensors with long and hostile names."""
    return {
        "checkpoint": bs.open("a.safetensors"),
        "plan": found,
        "explanation": found.explain(),
        "report": found.run(),
        "difference": bs.diff("a.safetensors", "out.safetensors"),
        "spectrum": bs.spectrum("a.safetensors", target="w")["w"],
        "some values": bs.spectrum("a.safetensors", target="w", most=2)["w"],
        "nothing finite": bs.spectrum("a.safetensors", target="bad")["bad"],
        "histogram": bs.histogram("a.safetensors", "w"),
        "heat map": bs.heat_map("a.safetensors", "w"),
    }


@pytest.fixture
def objects(here: Path) -> dict[str, Any]:
    tensors = {f"layers.{i}.{'x' * 200}": np.ones(2, np.float32) for i in range(MANY)}
    tensors |= {ATTACK: np.ones(1), "w": np.diag([3.0, 2, 1]), "bad": np.full((2, 2), np.nan)}
    write("a.safetensors", tensors)
    steps = [{"scale_": {"target": ".*", "by": 2}} for _ in range(50)]
    return shown(bs.load({"inputs": ["m::a.safetensors"], "transforms": steps, "output": "out.safetensors"}))


def test_representations_are_short_and_say_how_much_there_is(objects: dict[str, Any]):
    texts = {name: repr(one) for name, one in objects.items()}
    assert all(len(text) < 200 for text in texts.values()), texts
    assert texts["checkpoint"] == "<Checkpoint a.safetensors: 1,003 tensors, 8,112 bytes>"
    assert texts["plan"] == "<Plan: 1 input, 50 steps, 1 output>"
    assert texts["explanation"].startswith("<Explanation: 50 steps, 1 output, ")
    assert texts["report"] == "<Report: 1 checkpoint published, 50 steps, 1 note>"
    assert texts["difference"].endswith("1 equal, 1,002 differing>")
    assert texts["spectrum"] == "<Spectrum of [3, 3]: 3 values, largest 3, effective rank 2.7>"
    assert texts["some values"] == "<Spectrum of [3, 3]: 2 values, largest 3, captured 0.9286>"
    assert texts["nothing finite"] == "<Spectrum of [2, 2]: not finite>"
    assert texts["histogram"] == "<Histogram: 9 elements in 64 bins from 0 to 3>"
    assert texts["heat map"] == "<HeatMap: 3 x 3 cells of [0:3, 0:3] of [3, 3]>"


@pytest.mark.filterwarnings("ignore:The chararray class is deprecated:DeprecationWarning")  # treescope asks for it
def test_treescope_shows_the_line_and_the_table_and_unfolds_nothing(objects: dict[str, Any]):
    rich = {name: one for name, one in objects.items() if hasattr(one, "_repr_html_")}
    assert len(rich) == 8
    for one in rich.values():
        assert treescope.render_to_text(one).splitlines()[0] == repr(one)
        page = treescope.render_to_html(one, compressed=False)
        assert len(page) < 10 * MOST
        assert "Rich HTML representation" in page
        assert ATTACK not in page


def test_html_is_short_and_escaped(objects: dict[str, Any]):
    pages = {name: one._repr_html_() for name, one in objects.items() if hasattr(one, "_repr_html_")}
    assert set(pages) >= {"checkpoint", "plan", "explanation", "report", "difference", "spectrum"}
    assert {name: len(text) for name, text in pages.items() if len(text) > MOST} == {}
    for text in pages.values():
        assert "<script" not in text
        assert "\x1b" not in text
        assert text.count("<div") == text.count("</div>")
    assert "out.safetensors" in pages["report"]
    assert "scale_" in pages["plan"]
    assert "983 more" in pages["checkpoint"]
    assert "<polyline" in pages["spectrum"]


def test_a_hostile_name_is_text(here: Path):
    page = bs.open(str(write("a.safetensors", {ATTACK: np.ones(1)})))._repr_html_()
    assert "&lt;script&gt;alert(&#x27;&quot;&amp;\\x1b&#x27;)&lt;/script&gt;" in page


def test_showing_a_checkpoint_reads_no_tensor(here: Path):
    checkpoint = bs.open(str(write("a.safetensors", {"w": np.ones(9)})))
    assert "[9]" in checkpoint._repr_html_()
    assert checkpoint.source.bytes_read == 0
