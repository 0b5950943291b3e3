"""The benchmarks themselves, tiny: what they record and draw, and that the profile finds its way in the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._profile import Clock, is_whole
from tests.checkpoints import write

ROOT = Path(__file__).parents[2]
PAGE = "# Performance\n\nBefore.\n\n<!-- bench: begin -->\nold\n<!-- bench: end -->\n\nAfter.\n"
PLAN = """\
inputs: [m::m.safetensors]
transforms: [{move: {from: 'a', to: 'b'}}, {scale_: {target: 'c', by: 2}}]
output: out.safetensors
"""


def python(script: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | env
    line = [sys.executable, str(ROOT / "benchmarks" / script), *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents in which one row is recorded and another was just measured."""
    folder = tmp_path_factory.mktemp("docs")
    figures = {"kind": "ours", "wall_s": 1.5, "cpu_s": 1.5, "anonymous_mb": 99.0, "moved_gb": 0.0, "gb_per_s": 0.0}
    machine = {"cpu": "a processor", "cores": 8, "memory_gib": 1.0, "system": "Linux 6", "python": "3.11"}
    earlier = {
        "row": "check_20k", "question": "an earlier row", "date": "2026-01-01", "repetitions": 3, "small": False,
        "machine": {**machine, "jax": None, "numpy": None, "torch": None}, "jobs": {"ours": figures}, "goals": [],
        "profiles": {},
    }  # fmt: skip
    (folder / "performance.json").write_text(json.dumps({"schema_version": 1, "rows": {"check_20k": earlier}}))
    (folder / "performance.md").write_text(PAGE)
    data = str(tmp_path_factory.mktemp("data"))
    tiny = {"BENCH_SMALL": "1", "BENCH_REPETITIONS": "1", "BENCH_DATA": data, "BENCH_DOCS": str(folder)}
    done = python("all.py", "inspect", "--no-plots", **tiny)
    assert done.returncode == 0, done.stderr
    return folder


def _rows(docs: Path) -> dict[str, Any]:
    return json.loads((docs / "performance.json").read_text())["rows"]


def test_a_row_is_recorded_beside_earlier_ones(docs: Path):
    rows = _rows(docs)
    assert set(rows) == {"inspect", "check_20k"}
    assert rows["check_20k"]["jobs"]["ours"]["wall_s"] == 1.5


def test_a_record_holds_figures_of_every_job_verdicts_and_the_machine(docs: Path):
    row = _rows(docs)["inspect"]
    assert {"help", "inspect a model", "inspect 300 tensors", "inspect 20,000 tensors"} < set(row["jobs"])
    for figures in row["jobs"].values():
        assert figures["wall_s"] > 0 and figures["cpu_s"] > 0 and figures["anonymous_mb"] > 0
    assert {goal["job"] for goal in row["goals"]} == set(row["profiles"])
    assert row["machine"]["cores"] >= 1 and row["repetitions"] == 1 and row["small"]


def test_shares_of_a_profile_add_up(docs: Path):
    for profile in _rows(docs)["inspect"]["profiles"].values():
        assert 0.9 < sum(profile["shares"].values()) < 1.01


def test_time_belongs_to_the_innermost_of_what_a_thread_is_at() -> None:
    ticks = iter([0.0, 1.0, 4.0, 6.0])
    clock = Clock(lambda: next(ticks))
    clock.within("planning", lambda: clock.within("imports", int))
    assert clock.seconds() == {"planning": 3.0, "imports": 3.0}


def test_a_module_is_left_alone_while_a_thread_executes_it_or_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in_the_making"
    folder.mkdir()
    ask = "import sys\nsys.found.append(sys.ask('in_the_making.inner'))\n"
    (folder / "__init__.py").write_text("import in_the_making.inner\n" + ask)
    (folder / "inner.py").write_text(ask)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "found", found := [], raising=False)
    monkeypatch.setattr(sys, "ask", is_whole, raising=False)
    import_module("in_the_making")
    assert [*found, is_whole("in_the_making.inner")] == [False, False, True]


def test_the_table_takes_its_place_between_the_markers(docs: Path):
    text = (docs / "performance.md").read_text()
    assert text.startswith("# Performance\n\nBefore.\n\n<!-- bench: begin -->\n| job |")
    assert text.endswith("<!-- bench: end -->\n\nAfter.\n")
    assert "| an earlier row (`check_20k`) |" in text and "| inspect 300 tensors |" in text and "old" not in text


def test_a_row_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path):
    done = python("all.py", "renam", BENCH_DOCS=str(tmp_path))
    assert done.returncode == 2 and "there is no row renam; there are: rename, scale" in done.stderr


def test_the_profile_knows_where_the_engine_plans_reads_computes_copies_and_writes(here: Path):
    write("m.safetensors", {"a": np.ones((4, 4), np.float32), "c": np.ones(4, np.float32)})
    Path("plan.yaml").write_text(PLAN)
    done = python("_profile.py", "profile.json", "run", "--quiet", "plan.yaml")
    assert done.returncode == 0, done.stderr
    seconds = json.loads(Path("profile.json").read_text())["seconds"]
    expected = {"imports", "planning", "reading", "kernels", "copying", "writing", "flushing", "other in threads"}
    assert expected <= {what for what, spent in seconds.items() if spent > 0}
