"""A slice of the fuzz campaign: random plans load and check with nothing but clean diagnostics."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import brainsurgery_jax.select.pattern as pattern_module
from brainsurgery_jax.select.limit import TimeLimit
from tests.fuzz_plans import Case, Fuzzer, TooSlow, time_limit

CASES, SEED = 300, 2026


def test_random_plans_give_nothing_but_diagnostics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # plans name files
    monkeypatch.setattr(pattern_module, "TIME_LIMIT", TimeLimit(0.05))
    fuzzer = Fuzzer(SEED, limit_s=60.0)
    failed = {number: trace for number in range(CASES) if (trace := fuzzer.failure(number))}
    assert not failed, next(iter(failed.values()))
    assert len(fuzzer.seen) > 30, "the cases have become too much alike"
    assert not os.listdir(tmp_path), "checking wrote a file"


def test_a_case_is_made_of_the_seed_and_its_number_alone() -> None:
    assert Fuzzer(1).case(7) == Fuzzer(1).case(7)
    assert Fuzzer(1).case(7) != Fuzzer(2).case(7)


def test_the_fuzzer_notices_what_is_no_diagnostic() -> None:
    fuzzer = Fuzzer(1)
    fuzzer.world.sources.clear()  # a world that is broken: what it raises is nothing that a plan can be blamed for
    del fuzzer.world.sources
    found = [fuzzer.failure(number) for number in range(40)]
    assert any(one is not None and "AttributeError" in one[1] for one in found)


def test_the_fuzzer_stops_what_takes_too_long() -> None:
    with pytest.raises(TooSlow, match=r"more than 0\.01 s"), time_limit(0.01):
        while True:
            pass


def test_a_plan_without_a_mistake_counts_as_clean() -> None:
    fuzzer = Fuzzer(1)
    fuzzer.check(Case(b"inputs: [m::m.safetensors]\ntransforms: [{scale_: {target: wte.weight, by: 2}}]\noutput: o.pt"))
    assert (fuzzer.clean, dict(fuzzer.seen)) == (1, {})


@pytest.mark.parametrize(
    "step",
    [
        "pad: {from: wte.weight, to: x, width: [2, 9223372036854775808]}",
        "ones: {target: x, shape: [4000000000, 4000000000]}",
        "repeat: {from: wte.weight, to: x, times: 1000000000000000000000, mode: each}",
    ],
)
def test_a_tensor_that_no_disk_could_hold_is_refused(step: str) -> None:
    (found,) = Fuzzer(1).check(Case(f"inputs: [m::m.safetensors]\ntransforms: [{{{step}}}]".encode()))
    assert found.code == "tensor-too-large"
