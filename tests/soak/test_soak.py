"""A short soak, always the same: some random plans in one process, alone, two and four at a time."""

from __future__ import annotations

import gc
import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from tests.soak import soak
from tests.soak.soak import Held, Round

SEED = 7


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system must tell of descriptors")
def test_runs_at_the_same_time_give_the_bits_of_single_runs_and_leave_nothing(tmp_path: Path):
    soak.prepare(tmp_path)
    before = soak.held()
    found = list(islice(soak.rounds(tmp_path, SEED), 6))
    assert [r.at_a_time for r in found] == [1, 2, 4, 1, 2, 4]
    assert [r.different for r in found] == [0] * 6
    assert (found[-1].held.descriptors, found[-1].held.threads) == (found[0].held.descriptors, before.threads)
    assert os.listdir(tmp_path) == ["in.safetensors"]


def count_objects() -> Counter[type]:
    gc.collect()
    return Counter(map(type, gc.get_objects()))


@pytest.mark.parametrize("number", range(6))
def test_a_plan_that_runs_again_leaves_no_objects(tmp_path: Path, number: int):
    soak.prepare(tmp_path)
    plan = soak.plan_of(tmp_path, SEED, number)
    seen: list[Counter[type]] = []
    for _ in range(3):
        for _ in range(5):
            soak.run(plan)
        seen.append(count_objects())
    first, second = seen[1] - seen[0], seen[2] - seen[1]
    assert {kind: n for kind, n in (first & second).items() if n >= 5} == {}  # a leak comes again, a cache does not


def test_a_plan_is_made_of_the_seed_and_its_number_alone(tmp_path: Path):
    assert soak.plan_of(tmp_path, 1, 7) == soak.plan_of(tmp_path, 1, 7)
    assert soak.plan_of(tmp_path, 1, 7) != soak.plan_of(tmp_path, 2, 7)


def test_what_grows_and_what_differs_is_told(capsys: pytest.CaptureFixture[str]):
    flat = [Round(1, 0, Held(100.0, 6, 1))] * 20
    assert soak.tell(flat, 60.0)
    assert not soak.tell([Round(1, 0, Held(100.0 + 10 * n, 6, 1)) for n in range(20)], 60.0)
    assert not soak.tell([Round(1, 0, Held(100.0, 6 + n, 1)) for n in range(20)], 60.0)
    assert not soak.tell([*flat, Round(4, 1, Held(100.0, 6, 1))], 60.0)
    assert "| 4 | 4 | 1 |" in capsys.readouterr().out
