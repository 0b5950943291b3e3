"""Hints on plan files that execute others: what they say is done in the file that they name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import brainsurgery_jax as bs
from tests.checkpoints import counting, read, write

PLAN = {
    "inputs": ["model.safetensors"], "transforms": [{"execute": {"path": "again.yaml"}}], "output": "out.safetensors"
}  # fmt: skip


def test_a_step_that_executes_its_own_file_is_removed(here: Path) -> None:
    write(here / "model.safetensors", {"w": counting((2, 3))})
    file = here / "again.yaml"
    file.write_text("- scale_: {target: w, by: 2}\n- execute: {path: again.yaml}\n")
    (found,) = bs.check(bs.load(PLAN))
    assert found.hint == "Remove this step: 'again.yaml' is being executed already."
    assert str(found.span) == "again.yaml:2:19"
    file.write_text(file.read_text().splitlines()[0])
    bs.load(PLAN).run(durable=False)
    np.testing.assert_array_equal(read(here / "out.safetensors")["w"], 2 * counting((2, 3)))
