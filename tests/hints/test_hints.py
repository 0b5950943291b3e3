"""What a hint says, done as it says, mends the plan and harms nothing."""

from __future__ import annotations

import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import Diagnostic
from tests import checkpoints
from tests.hints.cases import CASES, Case
from tests.hints.cases_adapters import ADAPTERS
from tests.hints.cases_codes import CODED
from tests.hints.cases_editing import EDITS
from tests.hints.cases_files import FILES
from tests.hints.cases_merge import MERGES
from tests.hints.cases_ops import OPS

ALL = (*CASES, *OPS, *CODED, *EDITS, *MERGES, *ADAPTERS, *FILES)


def _plan(case: Case) -> dict[str, Any]:
    inputs = {"inputs": ["a::a.safetensors", "b::b.safetensors"]}
    return deepcopy({**inputs, "transforms": case.transforms, "output": dict(case.output), **case.plan})


def _files(case: Case) -> dict[str, bytes]:
    there = {"a": case.a, "b": case.b, "there": case.b}
    if any(array.dtype == np.complex128 for array in case.a.values()):
        with zipfile.ZipFile("a.npz", "w") as archive:
            for name, array in case.a.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
        checkpoints.write("b.safetensors", case.b)
    else:
        for name, tensors in there.items():
            checkpoints.write(f"{name}.safetensors", tensors)
    case.world()
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file() and not p.parts[0].startswith("there")}


def _found(case: Case, plan: dict[str, Any]) -> Diagnostic:
    """The first mistake of a plan, or its one note of that code."""
    loaded = bs.load(plan)
    if case.note:
        (found,) = (d for d in bs.check(loaded) if d.code == case.code)
        assert found.severity == "note"
        return found
    with pytest.raises(bs.PlanError) as refused:
        loaded.run(durable=False) if case.at_run else loaded.check()
    return next(d for d in refused.value.diagnostics if d.severity == "error")


def hint_of(case: Case) -> str:
    """The hint that a case prints, in the current folder."""
    return _found(case, _begun(case)[0]).hint


def _begun(case: Case) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The plan of a case, and its files."""
    before, plan = _files(case), _plan(case)
    if "a.npz" in before:
        plan["inputs"][0] = "a::a.npz"
    return plan, before


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_a_hint_that_is_followed_mends_the_plan_and_harms_nothing(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, before = _begun(case)
    found = _found(case, plan)
    assert found.code == case.code
    mended = case.mend(deepcopy(plan), found.hint)
    assert case.code not in {d.code for d in bs.check(bs.load(mended))}
    bs.load(mended).run(durable=False)
    path = mended["output"]["path"]
    made = bs.open(path)
    wanted = {**(case.base or case.a), **case.expect}
    assert set(made) == {name for name, array in wanted.items() if array is not None}
    for name, array in wanted.items():
        if array is not None:
            assert (made[name].dtype, made[name].tobytes()) == (array.dtype, np.asarray(array).tobytes()), name
    assert {name: Path(name).read_bytes() for name in before} == before
