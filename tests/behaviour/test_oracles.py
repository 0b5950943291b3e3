"""Layouts beside what the libraries themselves expect and make: the trees and digests that `collect` has kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.layout.bind import bind
from brainsurgery_jax.layout.library import layout_names, load_layout
from tests.behaviour.planted import digests, planted
from tests.checkpoints import read, write

ORACLES = sorted(Path(__file__).with_name("oracles").glob("*.json"))
TABLES = sorted(Path(__file__).with_name("oracles").joinpath("tables").glob("*.json"))
NOT_INSTALLED = {"levanter-llama", "bigvision-paligemma", "openpi-paligemma"}
"""Layouts that nothing but their round trip judges."""

OUR_OWN = ("flax", "bigvision", "vitjax", "easylm")
"""Families whose models are written out in this folder, since no library that can be installed has them."""

EACH = pytest.mark.parametrize("oracle", ORACLES, ids=lambda path: path.stem)
EACH_TABLE = pytest.mark.parametrize(
    "oracle", [o for o in ORACLES if o.stem.startswith("maxtext")], ids=lambda p: p.stem
)


def read_oracle(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a library said, and the options of the layout that it is for."""
    said = json.loads(path.read_text())
    pairs = {"pairs": True} if said["layout"] == "maxtext-llama" else {}  # their model is one of llama3.1
    return said, ({"scan": said["scan"]} if "scan" in said else {}) | pairs


def on_disk(said: dict[str, Any], name: str) -> str:
    """The name of a leaf in a checkpoint: MaxText has its tree below the item `params`."""
    return f"params.{name}" if "scan" in said else name


def converted(tensors: dict[str, np.ndarray], step: dict[str, Any], folder: Path) -> dict[str, str]:
    """The digests of what a layout step makes of tensors."""
    source, out = write(folder / "hf.safetensors", tensors), folder / "maxtext.safetensors"
    bs.load({"inputs": [str(source)], "transforms": [{"layout": step}], "output": str(out)}).run(durable=False)
    return digests(read(out))


def test_every_layout_for_a_library_has_an_oracle() -> None:
    told = {json.loads(path.read_text())["layout"] for path in ORACLES}
    told |= {json.loads(path.read_text())["layout"] for path in TABLES} | NOT_INSTALLED
    assert told == {name for name in layout_names() if name.partition("-")[0] not in OUR_OWN} | NOT_INSTALLED


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_a_layout_pairs_the_tensors_that_maxtexts_own_table_pairs(table: Path) -> None:
    said = json.loads(table.read_text())
    bound = bind(load_layout(said["layout"]), said["config"], {"scan": said["scan"]})
    made = {n.removeprefix("params.").replace(".", "-"): sorted(p.hf) for p in bound.pairs for n in p.target}
    assert made == said["table"]


@EACH
def test_a_layout_makes_the_tree_that_the_library_expects(oracle: Path) -> None:
    said, options = read_oracle(oracle)
    bound = bind(load_layout(said["layout"]), said["config"], options)
    made = {n: list(s) for p in bound.pairs for n, s in zip(p.target, p.target_shapes, strict=True)}
    assert made == {on_disk(said, name): shape for name, shape in said["tree"].items()}


@EACH_TABLE
def test_a_layout_makes_the_values_that_maxtexts_own_tables_and_hooks_make(oracle: Path, tmp_path: Path) -> None:
    said, options = read_oracle(oracle)
    tensors = {name: planted(name, shape) for name, shape in said["hf"].items()}
    made = converted(tensors, {"name": said["layout"], "config": said["config"], "options": options}, tmp_path)
    told = {on_disk(said, name): value for name, value in said["digests"].items()}
    assert {name: made[name] for name in told} == told


@pytest.mark.parametrize("base", ["model.language_model.", "language_model.model."])
def test_gemma_3_is_found_below_the_names_of_its_sibling_with_vision(base: str, tmp_path: Path) -> None:
    said, options = read_oracle(Path(__file__).with_name("oracles") / "maxtext-gemma3-gemma3-scan.json")
    tensors = {name.replace("model.", base, 1): planted(name, shape) for name, shape in said["hf"].items()}
    config = {"model_type": "gemma3", "text_config": said["config"]}
    made = converted(tensors, {"name": said["layout"], "config": config, "options": options}, tmp_path)
    assert made == {on_disk(said, name): value for name, value in said["digests"].items()}


@EACH_TABLE
def test_maxtexts_tables_tell_every_value_but_where_they_contradict_its_model(oracle: Path) -> None:
    said, _ = read_oracle(oracle)
    untold = said["tree"].keys() - said["digests"].keys()
    stacked_elsewhere = {"params.decoder.layers.MoeBlock_0.gate.kernel"}
    assert untold == (stacked_elsewhere if oracle.stem == "maxtext-mixtral-mixtral-scan" else set())


@pytest.mark.parametrize(
    ("family", "words", "rows"),
    # The rows that the configurations of the libraries' released models have, all three alike.
    [("gemma2", 256000, 256128), ("gemma3", 262208, 262144), ("gemma3", 262144, 262144)],
)
@pytest.mark.parametrize("library", ["tunix", "gemma", "maxtext"])
def test_released_gemmas_get_the_rows_that_the_libraries_give_them(
    library: str, family: str, words: int, rows: int
) -> None:
    layout = load_layout(f"{library}-{family}")
    bound = bind(layout, {**layout.example, "vocab_size": words})
    (table,) = (
        p for p in bound.pairs if p.target[0].endswith("input_embedding" if library != "maxtext" else "embedding")
    )
    assert table.target_shapes == ((rows, 32),)
