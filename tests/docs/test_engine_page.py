"""The page on the engine agrees with the code: its walk is what a run passes, its constants are in the modules."""

from __future__ import annotations

import re
import subprocess
import sys
from ast import literal_eval
from functools import reduce
from importlib import import_module
from operator import lshift

import pytest

from tests.docs.write import ROOT

PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")


def between(mark: str) -> str:
    found = re.search(rf"<!-- {mark}:begin -->\n(.*?)<!-- {mark}:end -->", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def test_a_run_passes_every_function_of_the_main_line():
    line = [entry for entry in between("walk").splitlines() if entry and not entry.startswith("```")]
    tool = [sys.executable, str(ROOT / "tools" / "walk.py"), "--all"]
    out = subprocess.run(tool, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    passed = {words[-2] for row in out.splitlines() if len(words := row.split()) in (2, 3)}
    assert [entry for entry in line if entry not in passed] == []
    assert f"{len(line)} functions in {len({entry.partition(':')[0] for entry in line})} modules" in PAGE


CONSTANTS = re.findall(r"^\| `([\w.]+)\.([A-Z_]+)` \| `([\d <]+)` \|", between("constants"), re.MULTILINE)


@pytest.mark.parametrize(("module", "name", "value"), CONSTANTS, ids=[f"{m}.{n}" for m, n, _ in CONSTANTS])
def test_a_constant_has_the_value_that_the_page_shows(module: str, name: str, value: str):
    shown = reduce(lshift, map(literal_eval, value.split(" << ")))
    assert getattr(import_module(f"brainsurgery_jax.{module}"), name) == shown


def test_every_kind_of_work_is_on_the_page():
    work = import_module("brainsurgery_jax.engine.plan.work")
    kinds = [kind.__name__ for kind in (work.Copy, work.Stream, work.Boxes, work.Whole, work.Fold)]
    assert re.findall(r"^\| `(\w+)` \|", PAGE.partition("## What may import")[0], re.MULTILINE) == kinds
