"""Digests of what passes: what is read again for a lock are the pieces that did not pass as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.provenance import watching
from tests.checkpoints import normal, read, write
from tests.provenance.test_lock import PIECE, oracle

SIDE = 3000  # two boxes of whole rows, whose border lies within a piece


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each piece that is read from a file for its digest."""
    found: list[object] = []
    begin = watching.begin_xxh3

    def note() -> object:
        found.append(None)
        return begin()

    monkeypatch.setattr(watching, "begin_xxh3", note)
    return found


def test_of_an_output_that_is_written_in_boxes_only_their_border_is_read_again(here: Path, again: list[object]):
    write("in.safetensors", {"w": normal((SIDE, SIDE))})
    plan = bs.load({"inputs": ["in.safetensors"], "transforms": [{"transpose_": {"target": "w"}}], "output": "o/"})
    plan.run(lock=True, durable=False)
    pieces = -(-SIDE * SIDE // PIECE)
    assert len(again) == pieces + 1  # all of the input, which was read in columns, and the border of the output
    assert bs.verify("o").ok
    made = read("o/model.safetensors")["w"]
    assert oracle(made) in Path("o/brainsurgery.lock.json").read_text()
    assert oracle(read("in.safetensors")["w"]) in Path("o/brainsurgery.lock.json").read_text()
