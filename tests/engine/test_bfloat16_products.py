"""Gram matrices by products of bfloat16: taken where the processor has them, certified whatever their kernel rounds.

No processor of a test needs to have them: XLA computes the same products everywhere, only slower.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.numerics import bfloat16, factor
from tests.checkpoints import normal, plan_of, read, run_plan, same
from tests.engine.test_low_rank import matrix, phlora, told
from tests.engine.test_memory import plans_of
from tests.measured import measured

BF16 = ml_dtypes.bfloat16
KEY = 1, 2
Product = Callable[[np.ndarray, np.ndarray], np.ndarray]

FAST = "processor\t: 0\nflags\t\t: fpu avx2 amx_bf16 avx512_bf16 amx_tile amx_int8\nbugs\t\t:\n\n"
WITHOUT_TILES = FAST.replace("amx_tile", "")
WITHOUT_BFLOAT16 = FAST.replace("amx_bf16", "")
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n\n"


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Take the products for matrices of any size, as on a processor that has them; the shapes of those taken."""
    shapes: list[tuple[int, int]] = []
    gram = bfloat16.gram

    def count(x: np.ndarray) -> np.ndarray:
        shapes.append(x.shape)
        return gram(x)

    monkeypatch.setattr(bfloat16, "is_fast", lambda: True)
    monkeypatch.setattr(bfloat16, "LEAST", 0)
    monkeypatch.setattr(bfloat16, "gram", count)
    return shapes


def exact(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide.T @ wide


# --- Where they are taken ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "there"),
    [(FAST, True), (2 * FAST, True), (WITHOUT_TILES, False), (WITHOUT_BFLOAT16, False), (ARM, False), ("", False)],
    ids=["one processor", "two processors", "no tiles", "no bfloat16", "another architecture", "nothing"],
)
def test_the_flags_of_a_processor_tell_of_its_products(text: str, there: bool):
    assert bfloat16.lists_products(text) is there


def test_every_processor_must_have_the_products():
    assert not bfloat16.lists_products(FAST + WITHOUT_TILES)


@pytest.mark.parametrize(
    ("shape", "dtype", "there"),
    [
        ((8192, 2048), BF16, True),
        ((4096, 2048), BF16, True),
        ((4095, 2048), BF16, False),
        ((8192, 2048), np.float16, False),
        ((8192, 2048), np.float32, False),
    ],
)
def test_they_are_taken_for_large_matrices_of_bfloat16_alone(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], dtype: np.dtype, there: bool
):
    monkeypatch.setattr(bfloat16, "is_fast", lambda: True)
    assert bfloat16.pays(np.broadcast_to(np.zeros((), dtype), shape)) is there


def test_a_processor_without_them_computes_on_numpy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bfloat16, "is_fast", lambda: False)
    assert not bfloat16.pays(np.broadcast_to(np.zeros((), BF16), (8192, 2048)))


def test_low_rank_of_bfloat16_loads_no_jax_where_the_processor_has_no_products(tmp_path: Path):
    plan = plan_of(tmp_path, {"w": matrix(2000, 320, 1.0).astype(BF16)}, phlora(rank=8))
    code = f"""
import sys, brainsurgery_jax as bs
from brainsurgery_jax.numerics import bfloat16
bfloat16.LEAST, bfloat16.lists_products = 0, lambda text: False
bs.load({plan!r}).run()
print("jax" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "False"


def test_a_run_that_leaves_jax_no_cpu_computes_on_numpy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bfloat16, "lists_products", lambda text: True)
    monkeypatch.setattr(bfloat16, "_cpu", lambda: None)
    assert not bfloat16.is_fast.__wrapped__()


# --- What they compute ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3000, 300), (1024, 64), (1100, 1), (40, 40)])
@pytest.mark.parametrize("wide", [False, True])
def test_the_gram_matrix_is_that_of_double_precision_within_its_bound(shape: tuple[int, int], wide: bool):
    x = normal(shape[::-1] if wide else shape).astype(BF16)
    tall = x.T if wide else x
    c = bfloat16.gram(tall)
    assert np.array_equal(c, c.T)
    assert np.linalg.norm(c - exact(tall), 2) <= 1e-6 * np.trace(exact(tall))


def test_many_slabs_are_added_in_double_precision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bfloat16, "FEW", 2)
    x = normal((3 * bfloat16.SLAB, 70)).astype(BF16)
    c = bfloat16.gram(x)
    assert c.dtype == np.float64
    assert np.linalg.norm(c - exact(x), 2) <= 1e-6 * np.trace(exact(x))


@pytest.mark.skipif(
    not any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16")),
    reason="XLA widens bfloat16 where the processor has no products of it",
)
def test_xla_does_not_widen_the_operands():
    operand = np.zeros((128, 1024), BF16)
    text = bfloat16._compiled().lower(operand, operand).compile().as_text()  # pyright: ignore[reportFunctionMemberAccess]
    assert "f32[128,1024]" not in text


# --- What is certified ------------------------------------------------------------------------------------------------


def in_sequence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a @ b^T` with one float32 sum for each entry, to which products are added one by one; below 2^-126 all is zero.

    No other order has more sums in a row.
    """
    wide, other = (flush(each.astype(np.float32)).T for each in (a, b))
    total = np.zeros((a.shape[0], b.shape[0]), np.float32)
    for row, column in zip(wide, other, strict=True):
        total = flush(total + flush(row[:, None] * column))
    return total


def flush(x: np.ndarray) -> np.ndarray:
    return np.where(abs(x) < 2.0**-126, np.float32(0), x)


def heavy(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_cauchy(shape)


def one_large_row(shape: tuple[int, int]) -> np.ndarray:
    """Rows after the first whose products are half a unit in the last place of the sum: all of them are lost."""
    x = np.full(shape, 2.0**-12)
    x[0] = 1
    return x


ROWS, COLUMNS = 16384, 24
MATRICES = {
    "normal": normal((ROWS, COLUMNS)),
    "of one sign": abs(normal((ROWS, COLUMNS))),
    "equal entries": np.full((ROWS, COLUMNS), 0.7),
    "heavy tails": heavy((ROWS, COLUMNS)),
    "graded rows": normal((ROWS, COLUMNS)) * 0.999 ** np.arange(ROWS)[:, None],
    "graded columns": normal((ROWS, COLUMNS)) * 0.5 ** np.arange(COLUMNS),
    "one large row": one_large_row((ROWS, COLUMNS)),
    "a few directions": normal((ROWS, 3)) @ normal((3, COLUMNS), seed=1),
    "small": normal((ROWS, COLUMNS)) * 1e-7,
    "large": normal((ROWS, COLUMNS)) * 1e11,
}


@pytest.mark.parametrize("slab", [bfloat16.SLAB, ROWS], ids=["slabs", "all in one sum"])
@pytest.mark.parametrize("name", MATRICES)
def test_the_bound_covers_the_error_of_the_longest_sums(monkeypatch: pytest.MonkeyPatch, name: str, slab: int):
    monkeypatch.setattr(bfloat16, "SLAB", slab)
    monkeypatch.setattr(bfloat16, "multiply", in_sequence)
    x = MATRICES[name].astype(BF16)
    c = bfloat16.gram(x)
    error = np.linalg.norm(c - exact(x), 2)
    allowed = factor.GRAM_ROUNDING * np.trace(exact(x))
    assert error <= max(allowed, factor.limit_error(x.astype(np.float32), c, KEY))


@pytest.mark.parametrize("name", ["equal entries", "one large row"])
def test_sums_of_all_rows_err_by_more_than_is_allowed_unseen(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(bfloat16, "SLAB", ROWS)
    monkeypatch.setattr(bfloat16, "multiply", in_sequence)
    x = MATRICES[name].astype(BF16)
    error = np.linalg.norm(bfloat16.gram(x) - exact(x), 2)
    assert error > factor.GRAM_ROUNDING * np.trace(exact(x))


@pytest.mark.parametrize("shape", [(2000, 320), (320, 2000), (1101, 333)])
@pytest.mark.parametrize("power", [0.5, 1])
def test_factors_are_certified(tmp_path: Path, forced: list, shape: tuple[int, int], power: float):
    ((event, excess),) = told(tmp_path, {"w": matrix(*shape, power).astype(BF16)}, rank=16)
    assert event.method == "quick-gram"
    assert forced == [(max(shape), min(shape))]
    assert event.facts["excess"] <= 1e-4
    assert excess <= 1e-2  # the factors are rounded to bfloat16 in the end


def test_the_result_is_as_near_to_the_optimum_as_that_of_numpy(forced: list):
    x = matrix(2000, 320, 1.0).astype(BF16)
    wide = x.astype(np.float32)
    errors = [np.linalg.norm(wide - t.xv @ t.v.T) for t in (factor.quick_gram(y, 16, 1e-4, KEY) for y in (x, wide))]
    assert len(forced) == 1
    assert abs(errors[0] / errors[1] - 1) <= 1e-6


RUN = """
import json, os, sys
plan, count = json.loads(sys.argv[1])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
import brainsurgery_jax as bs
from brainsurgery_jax.numerics import bfloat16
bfloat16.LEAST, bfloat16.is_fast = 0, lambda: True
bs.load(plan).run(durable=False, overwrite=True)
print("jax" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a process fewer processors")
def test_bits_repeat_from_run_to_run_on_one_processor_or_two(tmp_path: Path):
    tensors = {f"w.{i}": matrix(1500, 320, 1.0, seed=i).astype(BF16) for i in range(3)}
    plan = plan_of(tmp_path, tensors, phlora(rank=8))
    outputs = []
    for count in (1, 2, 2):
        line = [sys.executable, "-c", RUN, json.dumps([plan, count])]
        done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=Path.cwd())
        assert done.stdout.strip() == "True"
        outputs.append(read(plan["output"]["path"]))
    first, *others = outputs
    assert all(same(first[name], other[name]) for other in others for name in first)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory apart")
@pytest.mark.parametrize("shape", [(12000, 600), (600, 12000), (4096, 2048)], ids=["tall", "wide", "large"])
def test_they_hold_no_more_than_projected(tmp_path: Path, shape: tuple[int, int]):
    tensors = {f"noise.{i}": normal(shape, seed=i).astype(BF16) for i in range(2)}
    plan, tiny = plans_of(tmp_path, tensors, [phlora(rank=16)])
    found = measured(plan, tiny, fast_bfloat16=True)
    assert found.anonymous <= found.in_all, found


def drop_the_last_rows(product: Product) -> Product:
    return lambda a, b: product(a[:, :-64], b[:, :-64])


def round_sums(product: Product) -> Product:
    return lambda a, b: product(a, b).astype(BF16).astype(np.float32)


@pytest.mark.parametrize("broken", [drop_the_last_rows, round_sums])
def test_a_kernel_that_rounds_too_much_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: list, broken: Callable[[Product], Product]
):
    tensors = {"w": matrix(2000, 320, 0.5).astype(BF16)}
    monkeypatch.setattr(bfloat16, "multiply", broken(bfloat16.multiply))
    tried = run_plan(tmp_path, tensors, phlora(rank=16))
    assert len(forced) == 1
    monkeypatch.setattr(bfloat16, "is_fast", lambda: False)
    plain = run_plan(tmp_path, tensors, phlora(rank=16))
    assert all(same(tried[name], plain[name]) for name in plain)


@pytest.mark.parametrize("scale", [1e-30, 1e20])
def test_values_whose_squares_leave_float32_are_left_to_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: list, scale: float
):
    tensors = {"w": (matrix(2000, 320, 1.0) * np.float32(scale)).astype(BF16)}
    tried = run_plan(tmp_path, tensors, phlora(rank=8))
    assert len(forced) == 1
    monkeypatch.setattr(bfloat16, "is_fast", lambda: False)
    plain = run_plan(tmp_path, tensors, phlora(rank=8))
    assert all(same(tried[name], plain[name]) for name in plain)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(tmp_path: Path, forced: list, value: float):
    x = matrix(2000, 320, 1.0).astype(BF16)
    x[3, 4] = value
    with pytest.raises(bs.PlanError, match="NaN or infinity"):
        run_plan(tmp_path, {"w": x}, phlora(rank=8))
