"""Keys of `fill`, `fill_` and `rand` that do nothing: taken, as the reference takes them, and told."""

from __future__ import annotations

import pytest

from tests.null.world import found


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"rand": {"target": "x", "shape": [4], "std": 0.02}}, ["rand.std"]),
        (
            {"rand": {"target": "x", "shape": [4], "distribution": "normal", "low": 5, "high": 6}},
            ["rand.low", "rand.high"],
        ),
        ({"fill_": {"target": "w", "mode": "rand", "value": 3}}, ["fill_.value"]),
        ({"fill": {"from": "w", "to": "x", "mode": "constant", "value": 1, "seed": 5}}, ["fill.seed"]),
        ({"rand": {"target": "x", "shape": [4], "distribution": "normal", "std": 0.02, "seed": 3}}, []),
        ({"fill_": {"target": "w", "mode": "tensor", "values": [1, 2, 3]}}, []),
    ],
)
def test_keys_of_another_mode_are_told_and_stop_nothing(step: object, told: list[str]):
    notes = found(step)
    assert {(d.code, d.severity) for d in notes} <= {("key-idle", "note")}
    assert [d.message.partition(":")[0] for d in notes] == told
