"""Large votes and sums of task vectors are compiled: with the bits that numpy gives, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import brainsurgery_jax as bs
from brainsurgery_jax.dtypes import BFLOAT16, FLOAT32, Aval, DType, to_numpy
from brainsurgery_jax.engine.compute import evaluate
from brainsurgery_jax.engine.compute.kernels import compiled_and_marked, exact
from brainsurgery_jax.engine.plan import compiling
from brainsurgery_jax.graph.expr import Expr, Graph
from brainsurgery_jax.kernel import Kernel
from brainsurgery_jax.merging import tensors as merged
from brainsurgery_jax.merging.combine import add_multiples
from brainsurgery_jax.merging.linear import weighted_mean, weighted_sum
from brainsurgery_jax.merging.sparsify import KeepBand, Sparsifier
from brainsurgery_jax.merging.task_vectors import Summing, add_task_vectors
from brainsurgery_jax.numerics.ordinary import are_ordinary, is_marked, marked
from tests.checkpoints import write

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {BF16: BFLOAT16, np.dtype(np.float32): FLOAT32}
SIZE = 1 << 12
MODELS = ("base", "a", "b")
VALUES = (0.0, -0.0, 1e-39, -3e-41, 1e-45, 1e-38, 1e38, -3e38, np.inf, -np.inf, np.nan, 2.0**-40, -(2.0**59), 2.0**60)


def tensors(seed: int, count: int, dtype: np.dtype) -> list[np.ndarray]:
    """A base and models near to it: of many sizes, with zeros of both signs, some entries unchanged."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(SIZE) * 2.0 ** rng.integers(-38, 38, SIZE)
    near = (base + (rng.random(SIZE) < 0.7) * rng.standard_normal(SIZE) * 0.1 * abs(base) for _ in range(count))
    found = [np.where(abs(x) < 2.0**-39, 0, x).astype(np.float32).astype(dtype) for x in (base, *near)]
    for x in found:
        x[rng.integers(0, SIZE, SIZE // 8)] = 0
        x[rng.integers(0, SIZE, SIZE // 8)] = -0.0
    return found


def compiled(kernel: Kernel[..., Any], static: Mapping[str, Any], tensors: Sequence[Any], *values: Any) -> np.ndarray:
    """The compiled result, rounded to the `dtype` of a kernel behind its sum in float32."""
    wide = tuple({**static, "dtype": FLOAT32}.items())
    with exact():
        function = compiled_and_marked(kernel, wide, len(tensors), to_numpy(static["dtype"]))
        return np.asarray(function([*tensors, *values], {}))


def mixed(draw: st.DrawFn, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Tensors in bfloat16 or float32, each or all."""
    dtypes = draw(st.sampled_from([[dtype] for dtype in DTYPES]) | st.just(list(DTYPES)))
    return [x.astype(draw(st.sampled_from(dtypes))) for x in xs]


@st.composite
def sums(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, Any]]:
    """Operands, thresholds, and parameters of a sum, with a vote or without."""
    count = draw(st.integers(1, 4))
    xs = mixed(draw, tensors(draw(st.integers(0, 999)), count, np.dtype(np.float32)))
    each = st.sampled_from([0.5, 2.0]) | st.floats(2**-8, 2**8)
    weights = draw(st.just((1.0,) * count) | st.tuples(*[each] * count))
    kept = tuple(draw(st.sampled_from([Sparsifier(), KeepBand()])) for _ in range(count))
    values = [np.array([draw(st.sampled_from([0.0, 1e-9, 1e-3, 3.0]))]) for one in kept if one.values]
    consensus = draw(st.booleans())
    normalize = consensus and draw(st.booleans())
    summing = Summing(
        weights, kept, draw(st.sampled_from([1.0, 0.5, 2.0, 0.3])), consensus=consensus, normalize=normalize
    )
    out = draw(st.sampled_from(list(DTYPES.values())))
    return xs, values, {"values": len(values), "summing": summing, "dtype": out, "exact": True}


@given(sums())
def test_compiled_code_has_the_bits_of_numpy_where_all_numbers_are_of_ordinary_size(case: Any) -> None:
    xs, values, static = case
    assert all(map(are_ordinary, xs))
    by_numpy = np.asarray(add_task_vectors(*xs, *values, **static))
    found = compiled(add_task_vectors, static, xs, *values)
    assert found.dtype == by_numpy.dtype
    assert found.tobytes() == by_numpy.tobytes()
    assert not is_marked(found)


@given(
    st.integers(0, 999), st.integers(2, 4), st.sampled_from(list(DTYPES)), st.sampled_from(list(DTYPES.values())),
    st.booleans(), st.data(),
)  # fmt: skip
def test_compiled_multiples_of_tensors_add_up_to_the_bits_of_numpy(
    seed: int, count: int, dtype: np.dtype, out: DType, based: bool, data: st.DataObject
) -> None:
    xs = tensors(seed, count - 1, dtype)
    magnitudes = st.floats(2.0**-40, 2.0**20)
    factors = np.array([data.draw(st.sampled_from([1, -1])) * data.draw(magnitudes) for _ in xs])
    static = {"values": 1, "based": based, "divided": False, "dtype": out, "exact": True}
    by_numpy = np.asarray(add_multiples(*xs, factors, **static))
    found = compiled(add_multiples, static, xs, factors)
    assert found.tobytes() == by_numpy.tobytes()


@given(
    st.sampled_from([weighted_sum, weighted_mean]), st.integers(0, 999), st.integers(1, 4),
    st.sampled_from(list(DTYPES)), st.sampled_from(list(DTYPES.values())), st.data(),
)  # fmt: skip
def test_compiled_weighted_sums_and_means_have_the_bits_of_numpy(
    kernel: Kernel[..., Any], seed: int, count: int, dtype: np.dtype, out: DType, data: st.DataObject
) -> None:
    xs = tensors(seed, count - 1, dtype)
    magnitudes = st.sampled_from([0.5, 1.0, 2.0]) | st.floats(2.0**-8, 2.0**8)
    weights = tuple(data.draw(st.sampled_from([1, -1])) * data.draw(magnitudes) for _ in xs)
    assume(sum(weights) != 0)
    static = {"values": 0, "weights": weights, "dtype": out, "exact": True}
    assert kernel.alike is not None
    assert kernel.alike(tuple(Aval(x.shape, DTYPES[x.dtype]) for x in xs), static)
    by_numpy = np.asarray(kernel(*xs, **static))
    found = compiled(kernel, static, xs)
    assert found.tobytes() == by_numpy.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out", DTYPES, ids=str)
def test_a_result_is_marked_where_an_operand_is_not_of_ordinary_size(dtype: np.dtype, out: np.dtype) -> None:
    xs = [np.ones(len(VALUES), dtype), np.array(VALUES, np.float32).astype(dtype), np.ones(len(VALUES), dtype)]
    made = np.asarray(jax.jit(lambda xs: marked(jax.numpy.ones(len(VALUES), np.float32), xs, out))(xs))
    odd = [not are_ordinary(xs[1][at : at + 1]) for at in range(len(VALUES))]
    assert [is_marked(made[at : at + 1]) for at in range(len(VALUES))] == odd
    assert is_marked(made) and not is_marked(made[~np.array(odd)]) and not is_marked(made[:0])


def test_a_sum_is_rounded_to_bfloat16_as_numpy_rounds_it() -> None:
    halves = np.arange(1 << 17, dtype=np.uint32) << 15  # each bfloat16, and what lies half way to the next
    near = np.concatenate([halves, halves - 1, halves + 1]).view(np.float32)
    sums = near[np.isfinite(near)]
    made = np.asarray(jax.jit(lambda xs: marked(xs[0], [jax.numpy.ones(sums.shape, BF16)], BF16))([sums]))
    assert made.tobytes() == sums.astype(BF16).tobytes()


@pytest.mark.parametrize("dtype", [*DTYPES, np.dtype(np.float64)], ids=str)
def test_ordinary_numbers_are_zero_or_neither_tiny_nor_huge(dtype: np.dtype) -> None:
    good = np.array([0, -0.0, 1, -2.5, 2.0**-40, -(2.0**-40), 1.9 * 2.0**59]).astype(dtype)
    assert are_ordinary(good) and are_ordinary(good[:0])
    for odd in (1e-39, -1e-45, 1.9 * 2.0**-41, 2.0**60, -1e38, np.inf, -np.inf, np.nan):
        if dtype != np.float64 and np.float32(odd).astype(dtype) == 0:
            continue
        assert not are_ordinary(np.append(good, np.array(odd).astype(dtype))), odd


ODD = (1e-39, -3e-41, 1e38, -3e38, np.inf, -np.inf, np.nan)


TIES = {"method": "ties", "parameters": {"density": 0.5}}
TASK_ARITHMETIC = {"method": "task_arithmetic", "parameters": {"weight": 0.5}}
LINEAR = {"method": "linear"}


def run(tmp_path: Path, to: str, method: Mapping[str, Any]) -> bytes:
    """The file that a merge makes of a base and two models: one tensor of ordinary numbers, one with an odd one."""
    made = zip(tensors(1, 2, BF16), tensors(2, 2, BF16), strict=True)
    for at, (name, (plain, odd)) in enumerate(zip(MODELS, made, strict=True)):
        odd[7 * at : 7 * at + len(ODD)] = np.array(ODD, np.float32).astype(BF16)
        write(tmp_path / f"{name}.safetensors", {"plain": plain.reshape(64, -1), "odd": odd})
    return merge(tmp_path, to, method)


def merge(tmp_path: Path, to: str, method: Mapping[str, Any]) -> bytes:
    """The file that a merge makes of the models of these names."""
    inputs = [f"{name}::{tmp_path / name}.safetensors" for name in MODELS]
    base = {} if method["method"] == "linear" else {"base": "base"}
    step = {**method, **base, "models": ["a", "b"], "to": "out"}
    path = tmp_path / to
    output = {"path": str(path), "alias": "out"}
    bs.run(bs.load({"inputs": inputs, "transforms": [{"merge": step}], "output": output}))
    return path.read_bytes()


def compile_small_merges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Compile merges of any size; the shapes of the results of those that are."""
    called: list[tuple[int, ...]] = []
    monkeypatch.setattr(compiling, "IN_ALL", SIZE)
    monkeypatch.setattr(compiling, "EACH", SIZE)
    monkeypatch.setattr(compiling, "LEAST", SIZE)
    call = evaluate.call_ordinary

    def count(e: Expr, tensors: Sequence[np.ndarray], values: Sequence[np.ndarray], length: int) -> np.ndarray | None:
        found = call(e, tensors, values, length)
        if found is not None:
            called.append(e.aval.shape)
        return found

    monkeypatch.setattr(evaluate, "call_ordinary", count)
    return called


@pytest.mark.parametrize("method", [TIES, TASK_ARITHMETIC, LINEAR], ids=lambda method: method["method"])
def test_a_large_merge_compiles_what_is_ordinary_and_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Mapping[str, Any]
) -> None:
    by_numpy = run(tmp_path, "numpy.safetensors", method)
    called = compile_small_merges(monkeypatch)
    assert run(tmp_path, "compiled.safetensors", method) == by_numpy
    assert called == [(64, SIZE // 64)]


def test_where_jax_is_not_there_yet_numpy_makes_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = compile_small_merges(monkeypatch)
    by_compiled_code = run(tmp_path, "compiled.safetensors", TIES)
    assert len(called) == 1
    monkeypatch.setattr(evaluate, "may_compile", lambda: False)
    assert run(tmp_path, "numpy.safetensors", TIES) == by_compiled_code
    assert len(called) == 1


def test_a_sum_that_is_divided_by_a_number_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = compile_small_merges(monkeypatch)
    run(tmp_path, "out.safetensors", {**TASK_ARITHMETIC, "parameters": {"weight": 0.5, "normalize": True}})
    assert called == []


def test_a_small_merge_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "LEAST", 1)
    monkeypatch.setattr(evaluate, "call_ordinary", lambda *given: pytest.fail("compiled"))
    run(tmp_path, "out.safetensors", TIES)


def test_one_length_is_compiled_for_all_parts_and_others_have_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "PART", SIZE)
    shapes = {"long": (5, SIZE // 2), "rest": (3, SIZE // 2), "third": (SIZE // 3,), "eighth": (SIZE // 8,)}
    for at, name in enumerate(MODELS):
        whole = tensors(at, 0, BF16)[0]
        write(tmp_path / f"{name}.safetensors", {key: np.resize(whole, shape) for key, shape in shapes.items()})
    by_numpy = merge(tmp_path, "numpy.safetensors", TASK_ARITHMETIC)
    called, asked = compile_small_merges(monkeypatch), list[tuple[int, int]]()
    monkeypatch.setattr(compiling, "LEAST", SIZE // 4)
    monkeypatch.setattr(compiling, "EACH", 2 * SIZE)
    call = evaluate.call_ordinary

    def count(e: Expr, xs: Sequence[np.ndarray], values: Sequence[np.ndarray], length: int) -> np.ndarray | None:
        asked.append((xs[0].size, length))
        return call(e, xs, values, length)

    monkeypatch.setattr(evaluate, "call_ordinary", count)
    assert merge(tmp_path, "compiled.safetensors", TASK_ARITHMETIC) == by_numpy
    assert sorted(asked) == [*[(SIZE // 2, SIZE)] * 2, *[(SIZE, SIZE)] * 3]
    assert len(called) == 5  # the short ones are left to numpy


def test_a_second_length_is_compiled_where_there_are_many_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "IN_ALL", 1000)
    monkeypatch.setattr(compiling, "EACH", 100)
    monkeypatch.setattr(compiling, "LEAST", 10)
    monkeypatch.setattr(merged, "PART", 40)
    graph, static = Graph(), tuple({"values": 0, "weights": (1.0, 1.0), "dtype": BFLOAT16, "exact": True}.items())

    def one(name: str, *shape: int) -> Expr:
        sources = [graph.placeholder(model, name, Aval(shape, BFLOAT16)) for model in ("a", "b")]
        return graph.call(weighted_sum, tuple(sources), dict(static))

    calls = [one("long", 2000), *(one(f"half{at}", 20) for at in range(6)), one("rare", 30), one("tiny", 5)]
    lengths = compiling.lengths_to_compile(calls)
    assert list(lengths.values()) == [[20, 40]]
    assert [compiling.length_for(calls[0], size, lengths) for size in (40, 30, 21, 20, 12, 9)] == [
        40, 40, 40, 20, 20, None,
    ]  # fmt: skip
    assert compiling.lengths_to_compile(calls[1:]) == {}


@pytest.mark.parametrize("beside", [0.0, -0.0, 1.0, 1e-39, 2.0**60])
@pytest.mark.parametrize("kinds", [(BF16, BF16), (BF16, np.dtype(np.float32))], ids=["alike", "mixed"])
def test_every_bfloat16_is_marked_that_is_not_ordinary(kinds: tuple[np.dtype, np.dtype], beside: float):
    every = np.arange(1 << 16, dtype=np.uint16).view(BF16)
    operands = [every.astype(kinds[0]), np.full(1 << 16, beside, kinds[1])]
    alone = are_ordinary(operands[1][:1])
    odd = [not (alone and are_ordinary(operands[0][at : at + 1])) for at in range(1 << 16)]
    for dtype in DTYPES:
        made = jax.jit(lambda xs, dtype=dtype: marked(xs[0].astype(np.float32), xs, dtype))(operands)
        bits = np.asarray(made).view(f"u{dtype.itemsize}")
        assert (bits == np.iinfo(bits.dtype).max).tolist() == odd
        assert bool(is_marked(np.asarray(made))) == any(odd)
