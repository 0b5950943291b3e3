"""mergekit's own methods beside ours, on tiny models and on the shapes of GPT-2: how far results are apart, as a table
of the documentation.

`make mergekit` runs this: mergekit wants an environment of its own, and a missing one is an error.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.behaviour.homes import ROOT
from tests.checkpoints import read
from tests.importers.merges import GPT2, TINY, Size, put_models

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
BASED = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs",
         "breadcrumbs_ties", "model_stock", "sce", "arcee_fusion", "nearswap", "ram", "ramplus_tl")  # fmt: skip


def models_of(row: Beside) -> list[str]:
    return ["b", "c"][: len(row.each)] if row.method in BASED else ["a", "b"][: len(row.each)]


def config_of(row: Beside, dtype: str, layers: int) -> dict[str, Any]:
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
            | {"slices": [{"sources": [{"model": "./a", "layer_range": [0, layers]}]}]}
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
    keys["parameters"] |= {"rescale": "l1"} if row in RANDOM else {}
    out = {"path": f"ours-{row.name}-{compat}.safetensors", "alias": "merged"}
    return {"inputs": ["a::a", "b::b", "c::c"], "transforms": [{"merge": keys}], "output": out}


class Off(NamedTuple):
    """The largest difference of any tensor, in units in the last place of its largest value, and the share of entries
    that differ."""

    most: float
    share: float

    def __str__(self) -> str:
        share = f"{100 * self.share:.2g}" if self.share < 0.995 else "100"
        return f"{self.most:.3g} ({share} %)" if self.share else "0"


class Apart(NamedTuple):
    """How far results are apart with our rounding and with theirs."""

    ours: Off
    compat: Off


def differences(folder: Path, dtype: str, size: Size) -> dict[str, Apart]:
    """How far every method is apart."""
    os.chdir(folder)
    put_models(folder, dtype, size)
    run_theirs(folder, ROWS, dtype, size.layers)
    found = {}
    for row in ROWS:
        theirs = read(folder / f"theirs-{row.name}" / "model.safetensors")
        found[row.name] = Apart(*(_apart(theirs, _run(row, folder, compat)) for compat in ("no", "mergekit")))
    return found


def run_theirs(folder: Path, rows: Sequence[Beside], dtype: str, layers: int) -> None:
    """Let mergekit merge, row by row, into `theirs-NAME`."""
    for row in rows:
        config = {key: value for key, value in config_of(row, dtype, layers).items() if value is not None}
        (folder / f"{row.name}.yml").write_text(json.dumps(config))
    if not THEIRS.exists():
        raise FileNotFoundError(f"no mergekit at {THEIRS}: `make mergekit` installs it and runs the tests")
    script = ROOT / "tests" / "behaviour" / "mergekit_many.py"
    done = subprocess.run([THEIRS, script], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    for row in rows:
        said = folder / f"theirs-{row.name}.txt"
        assert not said.exists(), f"{row.name}: {said.read_text()[-500:]}"


def _run(row: Beside, folder: Path, compat: str) -> dict[str, np.ndarray]:
    plan = plan_for(row, folder, compat)
    bs.load(plan).run(durable=False)
    return read(plan["output"]["path"])


def _apart(theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> Off:
    assert set(theirs) == set(ours)
    worst, apart = 0.0, 0
    for name, own in ours.items():
        # mergekit writes some results of bfloat16 as float32.
        a, b = theirs[name].astype(own.dtype).astype(np.float64), own.astype(np.float64)
        bits = 7 if own.dtype.name == "bfloat16" else 23
        unit = 2.0 ** (np.floor(np.log2(max(np.abs(a).max(), 1e-30))) - bits)
        worst = max(worst, float(np.abs(a - b).max() / unit))
        apart += int(np.count_nonzero(a != b))
    return Off(worst, apart / sum(x.size for x in ours.values()))


Found = Mapping[tuple[str, str], Mapping[str, Apart]]
"""What was found, by the size of the models and their dtype."""
SIZES = {"tiny": TINY, "GPT-2": GPT2}
DTYPES = ("float32", "bfloat16")


def table(found: Found) -> str:
    """The table of the documentation."""
    columns = [(size, dtype) for size in SIZES for dtype in DTYPES]
    heads = [f"{dtype}, {size}{how}" for size, dtype in columns for how in ("", ", `compat`")]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row in ROWS:
        label = f"`{row.method}`{f' ({row.label})' if row.label else ''}"
        cells = [str(off) for column in columns for off in found[column][row.name]]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    here = Path.cwd()
    try:
        return {(name, d): differences(tmp_path_factory.mktemp(f"{name}-{d}"), d, size)
                for name, size in SIZES.items() for d in DTYPES}  # fmt: skip
    finally:
        os.chdir(here)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_mergekit_makes_the_same_of_float32(row: Beside, found: Found):
    apart = found["tiny", "float32"][row.name]
    assert apart.compat.most <= row.apart
    assert apart.ours.most <= max(8, row.apart)


SAME = ("linear", "task_arithmetic", "dare_linear", "dare_ties", "nearswap", "ram", "ramplus_tl", "passthrough")
"""Methods that are computed entry by entry, without sums over tensors and without thresholds."""


@pytest.mark.parametrize("row", [row for row in ROWS if row.method in SAME], ids=lambda row: row.name)
def test_what_is_computed_by_entry_is_the_same_to_the_last_bit(row: Beside, found: Found):
    assert {column: apart[row.name].compat.share for column, apart in found.items()} == dict.fromkeys(found, 0.0)


def test_the_table_of_the_documentation_is_the_one_that_was_found(found: Found):
    text = table(found)
    print(text)
    assert text in SHOWN.read_text(encoding="utf-8")


# --- Methods that draw ------------------------------------------------------------------------------------------------

THIN = {"weight": 1.0, "density": 0.6}
RANDOM = tuple(
    Beside(method, (THIN,), {"normalize": False, **({"epsilon": 0.3} if "della" in method else {})})
    for method in ("dare_linear", "dare_ties", "della_linear", "della")
)
"""Methods that keep entries by chance, with one model: then what is kept can be seen."""


class Chances(NamedTuple):
    """Of the entries of matrices: the share that is kept, of all and of the fifths of each row by magnitude, the
    smallest first; what these are multiplied by; and the mean of the result less that of the base."""

    kept: float
    fifths: tuple[float, ...]
    factor: float
    mean: float

    def __str__(self) -> str:
        fifths = ", ".join(f"{100 * share:.1f}" for share in self.fifths)
        return f"{100 * self.kept:.1f} | {fifths} | {self.factor:.3f} | {self.mean:.1e}"


def chances(
    merged: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], tuned: Mapping[str, np.ndarray]
) -> Chances:
    """What can be seen of the draws."""
    kept, fifths, before, after, mean, count = 0, np.zeros(5), 0.0, 0.0, 0.0, 0
    for name in (name for name in base if base[name].ndim == 2):
        delta, found = tuned[name] - base[name], merged[name] - base[name]
        ranks = np.argsort(np.argsort(np.abs(delta), axis=1), axis=1) * 5 // delta.shape[1]
        there = found != 0
        kept, count = kept + int(there.sum()), count + delta.size
        fifths += [int((there & (ranks == fifth)).sum()) for fifth in range(5)]
        before, after = before + float(np.abs(delta[there]).sum()), after + float(np.abs(found).sum())
        mean += float((found - delta).sum())
    return Chances(kept / count, tuple(5 * fifths / count), after / before, mean / count)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Chances, Chances]]:
    """What mergekit and we draw, by method, on the shapes of GPT-2."""
    here, folder = Path.cwd(), tmp_path_factory.mktemp("random")
    try:
        os.chdir(folder)
        put_models(folder, "float32", GPT2)
        run_theirs(folder, RANDOM, "float32", GPT2.layers)
        models = [read(folder / letter / "model.safetensors") for letter in "ab"]
        made = {row.name: (read(folder / f"theirs-{row.name}" / "model.safetensors"), _run(row, folder, "mergekit"))
                for row in RANDOM}  # fmt: skip
        return {name: (chances(theirs, *models), chances(ours, *models)) for name, (theirs, ours) in made.items()}
    finally:
        os.chdir(here)


@pytest.mark.parametrize("row", RANDOM, ids=lambda row: row.name)
def test_as_many_are_kept_of_each_magnitude_and_scaled_by_as_much(
    row: Beside, drawn: Mapping[str, tuple[Chances, Chances]]
):
    theirs, ours = drawn[row.name]
    assert abs(theirs.kept - ours.kept) < 2e-3 and abs(ours.kept - 0.6) < 2e-3
    np.testing.assert_allclose(theirs.fifths, ours.fifths, atol=3e-3)  # of a million draws each: six deviations
    assert abs(theirs.factor - ours.factor) < 5e-3
    assert max(abs(theirs.mean), abs(ours.mean)) < 5e-3


def test_the_table_of_draws_is_the_one_that_was_found(drawn: Mapping[str, tuple[Chances, Chances]]):
    lines = ["| method | | kept, % | of each fifth by magnitude, % | factor | mean less that of the model |",
             "|---|---|---:|---|---:|---:|"]  # fmt: skip
    for name, both in drawn.items():
        lines += [f"| `{name}` | {who} | {found} |" for who, found in zip(("mergekit", "`merge`"), both, strict=True)]
    print(text := "\n".join(lines))
    assert text in SHOWN.read_text(encoding="utf-8")
