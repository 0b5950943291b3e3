"""mergekit's own methods beside ours, on tiny models: how far results are apart, as a table of the documentation.

`make mergekit` runs this: mergekit wants an environment of its own, and a missing one is an error.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.behaviour.homes import ROOT
from tests.checkpoints import read
from tests.importers.merges import put_models

THEIRS = ROOT / os.environ.get("BEHAVIOUR_MERGEKIT_PYTHON", ".venv-mergekit/bin/python")
SHOWN = ROOT / "docs" / "merging.md"


class Beside(NamedTuple):
    """A method with parameters: those of the models, and those for all. `ours`: where we call them otherwise.

    `apart`: units in the last place of float32 (of the largest value of a tensor) that results may be apart.
    """

    method: str
    each: tuple[Mapping[str, float], ...] = ({"weight": 0.6}, {"weight": 0.3})
    every: Mapping[str, Any] = {}
    ours: Mapping[str, Any] | None = None
    apart: int = 0
    label: str = ""

    @property
    def name(self) -> str:
        return f"{self.method}{'_' if self.label else ''}{self.label}"


HALVES = ({"weight": 0.6, "density": 0.5}, {"weight": 0.3, "density": 0.5})
ROWS = (
    Beside("linear"),
    Beside("slerp", ({}, {}), {"t": 0.3}, apart=4),
    Beside("nuslerp", apart=4),
    Beside("nuslerp", every={"nuslerp_flatten": False}, ours={"flatten": False}, apart=4, label="rows"),
    Beside("nuslerp", every={"nuslerp_flatten": False, "nuslerp_row_wise": True},
           ours={"flatten": False, "row_wise": True}, apart=4, label="columns"),
    Beside("multislerp", apart=4),
    Beside("karcher", ({}, {}), apart=16),
    Beside("task_arithmetic"),
    Beside("ties", HALVES),
    Beside("dare_linear", ({"weight": 0.6, "density": 1.0}, {"weight": 0.3, "density": 1.0})),
    Beside("dare_ties", ({"weight": 0.6, "density": 1.0}, {"weight": 0.3, "density": 1.0})),
    Beside("breadcrumbs", HALVES, {"gamma": 0.1}),
    Beside("breadcrumbs_ties", HALVES, {"gamma": 0.1}),
    Beside("model_stock", ({}, {}), apart=64),
    Beside("model_stock", ({}, {}), {"filter_wise": True}, apart=64, label="rows"),
    Beside("sce", ({}, {}), {"select_topk": 0.5}, apart=4),
    Beside("arcee_fusion", ({},)),
    Beside("nearswap", ({},), {"t": 0.1}),
    Beside("ram", ({}, {}), {"epsilon": 0.5}),
    Beside("ramplus_tl", ({}, {}), {"epsilon": 0.5}),
    Beside("passthrough", ({},), {"scale": 0.5}),
)  # fmt: skip
BASED = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "model_stock", "sce",
         "arcee_fusion", "nearswap", "ram", "ramplus_tl")  # fmt: skip


def models_of(row: Beside) -> list[str]:
    return ["b", "c"][: len(row.each)] if row.method in BASED else ["a", "b"][: len(row.each)]


def config_of(row: Beside, dtype: str) -> dict[str, Any]:
    """What mergekit reads."""
    models = [
        {"model": f"./{alias}", "parameters": dict(own)} for alias, own in zip(models_of(row), row.each, strict=True)
    ]
    config: dict[str, Any] = {"merge_method": row.method, "models": models, "dtype": dtype}
    if row.method in BASED:
        config["base_model"] = "./a"
    if row.method == "slerp":
        config["base_model"] = "./a"
    if row.method == "passthrough":
        return (
            config
            | {"slices": [{"sources": [{"model": "./a", "layer_range": [0, 4]}]}]}
            | {"models": None}
            | {"parameters": dict(row.every)}
        )
    return config | {"parameters": dict(row.every)}


def plan_for(row: Beside, folder: Path, compat: str) -> dict[str, Any]:
    """Our step."""
    given = {alias: dict(own) for alias, own in zip(models_of(row), row.each, strict=True)}
    keys = {"method": row.method, "models": given, "to": "merged", "compat": compat}
    keys |= {"base": "a"} if row.method in BASED else {}
    keys["parameters"] = dict(row.every if row.ours is None else row.ours)
    out = {"path": f"ours-{row.name}-{compat}.safetensors", "alias": "merged"}
    return {"inputs": ["a::a", "b::b", "c::c"], "transforms": [{"merge": keys}], "output": out}


class Apart(NamedTuple):
    """The largest difference of any tensor, in units in the last place of its largest value; with our rounding and with
    theirs."""

    ours: float
    compat: float


def differences(folder: Path, dtype: str) -> dict[str, Apart]:
    """How far every method is apart."""
    os.chdir(folder)
    put_models(folder, dtype)
    for row in ROWS:
        config = {key: value for key, value in config_of(row, dtype).items() if value is not None}
        (folder / f"{row.name}.yml").write_text(json.dumps(config))
    if not THEIRS.exists():
        raise FileNotFoundError(f"no mergekit at {THEIRS}: `make mergekit` installs it and runs the tests")
    script = ROOT / "tests" / "behaviour" / "mergekit_many.py"
    done = subprocess.run([THEIRS, script], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for row in ROWS:
        said = folder / f"theirs-{row.name}.txt"
        assert not said.exists(), f"{row.name}: {said.read_text()[-500:]}"
        theirs = read(folder / f"theirs-{row.name}" / "model.safetensors")
        found[row.name] = Apart(*(_apart(theirs, _run(row, folder, compat)) for compat in ("no", "mergekit")))
    return found


def _run(row: Beside, folder: Path, compat: str) -> dict[str, np.ndarray]:
    plan = plan_for(row, folder, compat)
    bs.load(plan).run(durable=False)
    return read(plan["output"]["path"])


def _apart(theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> float:
    assert set(theirs) == set(ours)
    worst = 0.0
    for name, x in theirs.items():
        a, b = x.astype(np.float64), ours[name].astype(np.float64)
        bits = 7 if ours[name].dtype.name == "bfloat16" else 23  # mergekit writes some results as float32
        unit = 2.0 ** (np.floor(np.log2(max(np.abs(a).max(), 1e-30))) - bits)
        worst = max(worst, float(np.abs(a - b).max() / unit))
    return worst


def table(found: Mapping[str, Mapping[str, Apart]]) -> str:
    """The table of the documentation."""
    lines = ["| method | float32 | float32, `compat` | bfloat16 | bfloat16, `compat` |", "|---|---:|---:|---:|---:|"]
    for row in ROWS:
        apart = [figure for dtype in ("float32", "bfloat16") for figure in found[dtype][row.name]]
        lines.append(f"| `{row.method}`{f' ({row.label})' if row.label else ''} | "
                     + " | ".join(f"{x:.3g}" for x in apart) + " |")  # fmt: skip
    return "\n".join(lines)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Apart]]:
    here = Path.cwd()
    try:
        return {d: differences(tmp_path_factory.mktemp(d), d) for d in ("float32", "bfloat16")}
    finally:
        os.chdir(here)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_mergekit_makes_the_same_of_float32(row: Beside, found: dict[str, dict[str, Apart]]):
    apart = found["float32"][row.name]
    assert apart.compat <= row.apart
    assert apart.ours <= max(8, row.apart)


def test_the_table_of_the_documentation_is_the_one_that_was_found(found: dict[str, dict[str, Apart]]):
    text = table(found)
    print(text)
    assert text in SHOWN.read_text(encoding="utf-8")
