"""Chains of ops that only move elements, drawn at random, against numpy doing the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainsurgery_jax.index import moves
from brainsurgery_jax.index import take as taking
from tests.checkpoints import bits, counting, run_plan, set_block


@st.composite
def component(draw: st.DrawFn, size: int, *, drops: bool = True) -> tuple[str, Any]:
    """One component of a slice as plans spell it, and as numpy does."""
    kind = draw(st.sampled_from(["all", "range", "step", "int"] if drops else ["all", "range", "step"]))
    if kind == "all":
        return ":", slice(None)
    if kind == "int" and size:
        at = draw(st.integers(-size, size - 1))
        return str(at), at
    start = draw(st.none() | st.integers(-size - 1, size + 1))
    stop = draw(st.none() | st.integers(-size - 1, size + 1))
    step = draw(st.integers(1, 4)) if kind == "step" else None
    text = f"{'' if start is None else start}:{'' if stop is None else stop}" + (f":{step}" if step else "")
    return text, slice(start, stop, step)


@st.composite
def slices(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[str, tuple[Any, ...]]:
    """A slice for a tensor of that shape: the text between brackets, and numpy's key."""
    count = draw(st.integers(0, len(shape)))
    parts = [draw(component(n)) for n in shape[:count]]
    return ", ".join(p[0] for p in parts), tuple(p[1] for p in parts)


@st.composite
def factored(draw: st.DrawFn, size: int) -> list[int]:
    """A shape of `size` elements."""
    shape = []
    while size > 1 and len(shape) < 3:
        n = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
        shape.append(n)
        size //= n
    return [*shape, size]


@st.composite
def chains(draw: st.DrawFn) -> tuple[np.ndarray, list[dict[str, Any]], dict[str, np.ndarray]]:
    """The tensor `t0`, steps, and what numpy says every tensor that they make is."""
    first = counting(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)), np.int32)
    made, steps = {"t0": first}, []
    for number in range(1, draw(st.integers(2, 7))):
        more, value = draw(links(made, f"t{number}"))
        steps += more
        made[f"t{number}"] = value
    return first, steps, made


@st.composite
def links(draw: st.DrawFn, made: dict[str, np.ndarray], new: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Steps that make the tensor `new` of one of those there are, and its value."""
    name = draw(st.sampled_from([list(made)[-1], *made]))
    x = made[name]
    text, key = draw(slices(x.shape))
    part, source = np.asarray(x[key]), f"{name}::[{text}]"
    kinds = ["copy", "permute", "reshape", "concat", "split", "assign", "shift", "take", "repeat", "pad", "stack"]
    kind = draw(st.sampled_from([*kinds, "unstack"]))
    if kind == "permute" and part.ndim:
        order = list(draw(st.permutations(range(part.ndim))))
        return [{"permute": {"from": source, "to": new, "order": order}}], part.transpose(order)
    if kind == "reshape" and part.size:
        shape = draw(factored(part.size))
        return [{"reshape": {"from": source, "to": new, "shape": shape}}], part.reshape(shape)
    if kind == "concat" and part.ndim:
        axis, times = draw(st.integers(-part.ndim, part.ndim - 1)), draw(st.integers(2, 3))
        return [{"concat": {"from": [source] * times, "to": new, "dim": axis}}], np.concatenate([part] * times, axis)
    if kind == "split" and part.ndim and part.shape[-1] > 1:
        sizes = [draw(st.integers(1, part.shape[-1] - 1))]
        sizes.append(part.shape[-1] - sizes[0])
        names = [new, f"{new}.rest"] if draw(st.booleans()) else [f"{new}.rest", new]
        step = {"split": {"from": source, "to": names, "sizes": sizes, "dim": -1}}
        return [step], np.split(part, [sizes[0]], -1)[names.index(new)]
    if kind in ("take", "repeat", "unstack") and part.ndim and part.size:
        return draw(picked(kind, source, part, new))
    if kind == "stack":
        axis = draw(st.integers(-part.ndim - 1, part.ndim))
        return [{"stack": {"from": [source] * 2, "to": new, "dim": axis}}], np.stack([part] * 2, axis)
    if kind == "pad" and part.ndim:
        width = [draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in part.shape]
        step = {"pad": {"from": source, "to": new, "width": [list(w) for w in width], "value": 7}}
        return [step], np.pad(part, width, constant_values=7)
    if kind == "assign":
        value = x.copy()
        value[key] = part * 3
        scale, copy = {"scale": {"from": source, "to": f"{new}.v", "by": 3}}, {"copy": {"from": name, "to": new}}
        return [scale, copy, {"assign": {"from": f"{new}.v", "to": f"{new}::[{text}]"}}], value
    if kind == "shift" and x.shape and x.shape[0] > 1:
        value = x.copy()
        value[1:] = x[:-1]
        return [
            {"copy": {"from": name, "to": new}},
            {"assign": {"from": f"{name}::[:-1]", "to": f"{new}::[1:]"}},
        ], value
    return [{"copy": {"from": source, "to": new}}], part


@st.composite
def picked(
    draw: st.DrawFn, kind: str, source: str, part: np.ndarray, new: str
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """A step that makes `new` of entries of `source` along an axis, and its value."""
    axis = draw(st.integers(-part.ndim, part.ndim - 1))
    size = part.shape[axis]
    if kind == "take":
        entries = draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=8))
        return [{"take": {"from": source, "to": new, "indices": entries, "dim": axis}}], part.take(entries, axis)
    if kind == "unstack":
        step = {"unstack": {"from": source, "to": f"{new}.${{k}}", "over": "k", "dim": axis}}
        last = {"copy": {"from": rf"{new}\.{size - 1}", "to": new}}
        return [step, last], part.take(-1, axis)
    times = draw(st.integers(1, 3))
    if draw(st.booleans()):
        step = {"from": source, "to": new, "times": times, "mode": "each", "dim": axis}
        return [{"repeat": step}], np.repeat(part, times, axis)
    step = {"from": source, "to": new, "times": times, "mode": "tile", "dim": axis}
    return [{"repeat": step}], np.concatenate([part] * times, axis)


@pytest.mark.parametrize(
    ("block", "least", "least_run"),
    [(1 << 20, 1 << 10, 1 << 16), (8, 8, 1), (16, 4, 16), (4, 4, 1 << 16)],
    ids=["real", "byte-runs-everywhere", "small", "boxes-everywhere"],
)
@settings(max_examples=60)
@given(chain=chains())
def test_a_chain_of_structural_steps_is_what_numpy_makes_of_it(
    chain: tuple[np.ndarray, list[dict[str, Any]], dict[str, np.ndarray]], block: int, least: int, least_run: int
) -> None:
    first, steps, made = chain
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        set_block(patch, block, least)
        patch.setattr(moves, "LEAST_RUN", least_run)
        patch.setattr(taking, "TOGETHER", 16 * least_run)
        taking._chunks.cache_clear()
        written = run_plan(Path(folder), {"t0": first}, steps)
    for name, value in made.items():
        assert written[name].shape == value.shape, name
        assert bits(written[name]) == bits(value), name
