"""Access counters: the table of the plan language, row by row.

A fetch or a successful existence test is a read, a store is a write. What is loaded or made starts with no read and one
write.
"""

from __future__ import annotations

import pytest

from tests.null.world import Headers, after, complaints

FILES = {
    "m.safetensors": {"s": "f32[4,4]", "d": "f32[4,4]", "t": "f32[4,4]"},
    "one.safetensors": {"only": "f32[2]"},
}

# What a step does to (reads, writes) of the tensors it names, all loaded before.
TABLE: dict[str, tuple[dict[str, object], dict[str, tuple[int, int]]]] = {
    "copy": ({"copy": {"from": "s", "to": "n"}}, {"s": (1, 1), "n": (0, 1)}),
    "scale": ({"scale": {"from": "s", "to": "n", "by": 2}}, {"s": (1, 1), "n": (0, 1)}),
    "cast": ({"cast": {"from": "s", "to": "n", "dtype": "float16"}}, {"s": (1, 1), "n": (0, 1)}),
    "clamp": ({"clamp": {"from": "s", "to": "n", "min": 0}}, {"s": (1, 1), "n": (0, 1)}),
    "reshape": ({"reshape": {"from": "s", "to": "n", "shape": [16]}}, {"s": (1, 1), "n": (0, 1)}),
    "permute": ({"permute": {"from": "s", "to": "n", "order": [1, 0]}}, {"s": (1, 1), "n": (0, 1)}),
    "fill": ({"fill": {"from": "s", "to": "n", "mode": "constant", "value": 0}}, {"s": (1, 1), "n": (0, 1)}),
    "move": ({"move": {"from": "s", "to": "n"}}, {"s": (0, 0), "n": (1, 1)}),
    "assign": ({"assign": {"from": "s", "to": "d"}}, {"s": (1, 1), "d": (2, 2)}),
    "add_": ({"add_": {"from": "s", "to": "d"}}, {"s": (1, 1), "d": (2, 2)}),
    "subtract_": ({"subtract_": {"from": "s", "to": "d"}}, {"s": (1, 1), "d": (2, 2)}),
    "add": ({"add": {"from_a": "s", "from_b": "t", "to": "d"}}, {"s": (1, 1), "t": (2, 1), "d": (2, 2)}),
    "subtract": ({"subtract": {"from_a": "s", "from_b": "t", "to": "d"}}, {"s": (1, 1), "t": (2, 1), "d": (2, 2)}),
    "multiply": ({"multiply": {"from_a": "s", "from_b": "t", "to": "d"}}, {"s": (1, 1), "t": (2, 1), "d": (2, 2)}),
    "matmul": ({"matmul": {"from_a": "s", "from_b": "t", "to": "n"}}, {"s": (1, 1), "t": (2, 1), "n": (0, 1)}),
    "scale_": ({"scale_": {"target": "s", "by": 2}}, {"s": (1, 2)}),
    "a slice that selects nothing": ({"scale_": {"target": "s::[4:]", "by": 2}}, {"s": (1, 1)}),
    "compute into such a slice": (
        {"compute": {"from": {"x": "t::[4:]"}, "to": "s::[4:]", "expr": "x"}},
        {"t": (1, 1), "s": (1, 1)},
    ),
    "clamp_": ({"clamp_": {"target": "s", "min": 0}}, {"s": (1, 2)}),
    "fill_": ({"fill_": {"target": "s", "mode": "constant", "value": 0}}, {"s": (1, 2)}),
    "cast_": ({"cast_": {"target": "s", "to": "float16"}}, {"s": (1, 2)}),
    "reshape_": ({"reshape_": {"target": "s", "shape": [16]}}, {"s": (1, 2)}),
    "phlora_": ({"phlora_": {"target": "s", "rank": 1}}, {"s": (1, 2)}),
    "zeroes": ({"zeroes": {"target": "n", "shape": [2]}}, {"n": (0, 1)}),
    "ones": ({"ones": {"target": "n", "shape": [2]}}, {"n": (0, 1)}),
    "rand": ({"rand": {"target": "n", "shape": [2]}}, {"n": (0, 1)}),
    "load with to": ({"load": {"path": "one.safetensors", "to": "n"}}, {"n": (0, 1)}),
    "concat": ({"concat": {"from": ["s", "t"], "to": "n"}}, {"s": (1, 1), "t": (1, 1), "n": (0, 1)}),
    "split": ({"split": {"from": "s", "to": ["n", "o"], "sizes": [1, 3]}}, {"s": (1, 1), "n": (0, 1), "o": (0, 1)}),
    "phlora": (
        {"phlora": {"target": "s", "target_a": "a", "target_b": "b", "rank": 1, "delete_original": False}},
        {"s": (2, 1), "a": (0, 1), "b": (0, 1)},
    ),
    "delete": ({"delete": {"target": "s"}}, {"s": (0, 0)}),
    "dump": ({"dump": {"target": "s"}}, {"s": (1, 1)}),
    "diff": ({"diff": {"left": "s", "right": "s"}}, {"s": (2, 1)}),
    "assert shape": ({"assert": {"shape": {"of": "s", "is": [4, 4]}}}, {"s": (1, 1)}),
    "assert dimensions": ({"assert": {"dimensions": {"of": "s", "is": 2}}}, {"s": (1, 1)}),
    "assert dtype": ({"assert": {"dtype": {"of": "s", "is": "float32"}}}, {"s": (1, 1)}),
    "assert iszero": ({"assert": {"iszero": "s"}}, {"s": (1, 1)}),
    "assert equal": ({"assert": {"equal": {"left": "s", "right": "t"}}}, {"s": (1, 1), "t": (2, 1)}),
    "assert exists": ({"assert": {"exists": "s"}}, {"s": (0, 1)}),
    "assert count": ({"assert": {"count": {"of": "s", "is": 1}}}, {"s": (0, 1)}),
    "assert reads": ({"assert": {"reads": {"of": "s", "is": 0}}}, {"s": (0, 1)}),
    "assert writes": ({"assert": {"writes": {"of": "s", "is": 1}}}, {"s": (0, 1)}),
    "save a state dict": ({"save": "snap"}, {"s": (1, 1), "d": (1, 1), "t": (1, 1)}),
    "save one tensor": ({"save": {"path": "s.safetensors", "target": "s"}}, {"s": (2, 1)}),
}


@pytest.mark.parametrize("row", TABLE)
def test_a_step_counts_as_the_plan_language_says(row: str):
    step, counts = TABLE[row]
    space = after(step, world=Headers(FILES)).spaces["m"]
    found = {n: (space.reads.get(n, 0), space.writes.get(n, 1) if n in space.names else 0) for n in counts}
    untouched = {n: space.reads.get(n, 0) for n in space.names if n not in counts}
    assert found == counts
    assert set(untouched.values()) <= {0}


def test_asserts_read_the_counters_of_the_steps_before_them():
    steps = (
        {"scale_": {"target": "s", "by": 2}},
        {"assert": {"all": [{"reads": {"of": "s", "is": 1}}, {"writes": {"of": "s", "is": 2}}]}},
    )
    assert complaints(*steps, world=Headers(FILES)) == []


def test_a_failed_step_counts_nothing():
    steps = ({"copy": {"from": "s", "to": "d"}}, {"assert": {"reads": {"of": "s", "is": 0}}})
    assert complaints(*steps, world=Headers(FILES)) == ["dest-exists"]
