"""`bs.diff`: what two checkpoints have in common, held against numpy; and what is read for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import brainsurgery_jax as bs
from brainsurgery_jax.comparison import in_order
from brainsurgery_jax.numerics.figures import PIECE
from tests.checkpoints import COMPUTABLE, SAVABLE, Tensors, normal, np_dtype, set_block, write, write_raw

BF16 = ml_dtypes.bfloat16
ROOT = Path(__file__).parents[2]


def compared(here: Path, left: Tensors, right: Tensors, **wishes: Any) -> bs.Difference:
    """The difference of two freshly written checkpoints."""
    return bs.diff(write(here / "left.safetensors", left), write(here / "right.safetensors", right), **wishes)


def figures_of(here: Path, left: np.ndarray, right: np.ndarray, **wishes: Any) -> Any:
    """The figures of two tensors that differ."""
    (one,) = compared(here, {"w": left}, {"w": right}, **wishes).differing
    return one.figures


# --- What is the same -------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_the_same_as_its_copy(here: Path):
    tensors = {"w": normal((3, 4)), "empty": np.zeros((0, 2), np.float32), "one": np.ones(())}
    found = compared(here, tensors, tensors)
    assert (found.same, found.equal, found.close, found.differing) == (True, 3, 0, ())


def test_nan_equals_nan_at_the_same_place_whatever_its_bits(here: Path):
    quiet, other = (np.array([bits, 0x3F800000], np.uint32).view(np.float32) for bits in (0x7FC00000, 0xFFC00001))
    assert compared(here, {"w": quiet}, {"w": other}).same


def test_zeros_of_both_signs_are_equal(here: Path):
    assert compared(here, {"w": np.zeros(3)}, {"w": -np.zeros(3)}).same


def test_infinity_equals_itself_within_any_tolerance(here: Path):
    left = np.array([np.inf, -np.inf, 1.0])
    assert compared(here, {"w": left}, {"w": left + 0.01}, eps=0.1).close == 1


def test_infinity_is_never_close_to_anything_else(here: Path):
    assert not compared(here, {"w": np.array([np.inf])}, {"w": np.array([1.0])}, rtol=1.0).same


def test_tolerances_add_up_and_the_relative_one_is_of_the_left_value(here: Path):
    left, right = np.array([10.0]), np.array([11.5])
    assert compared(here, {"w": left}, {"w": right}, eps=0.5, rtol=0.1).same
    assert not compared(here, {"w": left}, {"w": right}, rtol=0.14).same
    assert compared(here, {"w": right}, {"w": left}, rtol=0.14).same


def test_the_format_of_a_checkpoint_does_not_matter(here: Path):
    tensors = {"h.0.w": normal((3, 4)), "b": np.arange(3)}
    np.savez(here / "right.npz", **tensors)
    assert bs.diff(write(here / "left.safetensors", tensors), here / "right.npz").same


def test_an_open_checkpoint_is_compared_and_left_open(here: Path):
    path = write(here / "a.safetensors", {"w": np.ones(3), "b": np.zeros(1)})
    opened = bs.open(str(path))
    assert bs.diff(opened.select("w"), opened).only_right.keys() == {"b"}
    assert opened["w"].sum() == 3


def test_a_part_is_compared_under_the_names_that_it_has_there(here: Path):
    ours, theirs = normal((2, 3)), normal((2, 3), seed=1)
    path = str(write(here / "two.safetensors", {"a.w": ours, "b.w": theirs, "c.w": ours, "w": theirs}))
    whole = bs.open(path)
    assert bs.diff(whole.below("a"), whole.below("c")).same
    (one,) = bs.diff(whole.below("a"), whole.below("b")).differing
    assert one.name == "w"
    assert one.figures is not None and one.figures.largest == np.abs(ours - theirs).max()


def test_packed_dtypes_are_compared_by_their_bytes(here: Path):
    header = {"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    paths = [write_raw(here / f"{n}.safetensors", header, data) for n, data in enumerate([b"ab", b"ab", b"ac"])]
    assert bs.diff(paths[0], paths[1]).same
    (one,) = bs.diff(paths[0], paths[2]).differing
    assert (one.name, one.figures) == ("w", None)


def test_packed_tensors_of_a_part_are_compared_by_their_bytes(here: Path):
    entries = {f"{n}.w": {"dtype": "F4", "shape": [4], "data_offsets": [2 * n, 2 * n + 2]} for n in range(3)}
    whole = bs.open(str(write_raw(here / "x.safetensors", entries, b"ababac")))
    assert bs.diff(whole.below("0"), whole.below("1")).same
    assert not bs.diff(whole.below("0"), whole.below("2")).same


# --- What differs -----------------------------------------------------------------------------------------------------


def test_names_that_only_one_has_are_told_in_order_of_their_numbers(here: Path):
    found = compared(here, {f"h.{n}.w": np.ones(1) for n in (10, 2)}, {"x": np.ones(2)})
    assert (list(found.only_left), list(found.only_right)) == (["h.2.w", "h.10.w"], ["x"])


def test_names_of_digits_and_words_have_an_order():
    assert in_order(["b", "1", "a.b", "a.1", "a", "1a", ""]) == ["", "1", "1a", "a", "a.1", "a.b", "b"]


def test_another_shape_is_a_difference_without_figures(here: Path):
    (one,) = compared(here, {"w": np.ones((2, 3))}, {"w": np.ones((3, 2))}).differing
    assert (str(one.left), str(one.right), one.figures) == ("f64[2,3]", "f64[3,2]", None)


def test_another_dtype_is_a_difference_with_figures(here: Path):
    left = np.array([1.0, 1.001, 2.0], np.float32)
    (one,) = compared(here, {"w": left}, {"w": left.astype(BF16)}).differing
    assert one.figures is not None
    assert (one.figures.differing, one.index) == (1, (1,))


def test_values_alone_count_where_dtypes_are_ignored(here: Path):
    left = np.array([1.0, 1.001, 2.0], np.float32)
    assert compared(here, {"w": left}, {"w": left.astype(BF16)}, ignore_dtype=True, eps=1e-2).close == 1
    assert compared(here, {"w": np.arange(3)}, {"w": np.arange(3).astype(np.int8)}, ignore_dtype=True).equal == 1


def test_large_integers_differ_although_doubles_would_not(here: Path):
    left = np.array([2**60, 2**60], np.int64)
    found = figures_of(here, left, left + np.array([0, 1]))
    assert (found.differing, found.at, found.values) == (1, 1, (2**60, 2**60 + 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16, np.complex64, np.int32, np.uint8])
def test_figures_are_those_of_numpy(here: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch):
    set_block(monkeypatch, 1 << 16)
    monkeypatch.setattr("brainsurgery_jax.numerics.figures.PIECE", 1 << 14)
    shape = (3, 50_000)  # several blocks, each of several pieces
    left = (normal(shape, seed=1) * 50 + 100).astype(dtype)
    right = np.where(normal(shape, seed=2) > 1, (normal(shape, seed=3) * 50 + 100).astype(dtype), left)
    (one,) = compared(here, {"w": left}, {"w": right}).differing
    wide = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
    a, b = left.astype(wide), right.astype(wide)
    gap = np.abs(a - b)
    found = one.figures
    assert found is not None and found.relative is not None and found.cosine is not None
    assert (found.size, found.differing) == (a.size, np.count_nonzero(a != b))
    assert (found.largest, one.index) == (gap.max(), np.unravel_index(gap.argmax(), shape))
    assert found.values == (left[one.index].item(), right[one.index].item())
    assert found.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-9)
    cosine = np.vdot(a, b).real / np.linalg.norm(a) / np.linalg.norm(b)
    assert found.cosine == pytest.approx(cosine, rel=1e-9)


def test_with_a_tolerance_only_what_is_beyond_it_is_counted(here: Path):
    found = figures_of(here, np.zeros(4), np.array([0.1, 0.5, 0.0, 0.7]), eps=0.2)
    assert (found.differing, found.largest, found.at) == (2, 0.7, 3)


def test_of_equally_large_differences_the_first_is_told(here: Path):
    right = np.zeros(3 * PIECE, np.float32)
    right[[PIECE + 5, 2 * PIECE]] = 1
    assert figures_of(here, np.zeros_like(right), right).at == PIECE + 5


def test_nan_against_a_number_is_the_largest_difference_and_norms_leave_it_out(here: Path):
    found = figures_of(here, np.array([np.nan, 1.0, 3.0, np.nan]), np.array([np.nan, 2.0, 3.0, 0.0]))
    assert (found.differing, found.largest, found.at, found.nans) == (2, np.inf, 3, (2, 1))
    assert found.relative == pytest.approx(1 / np.sqrt(10))


def test_there_is_no_ratio_to_a_tensor_of_zeros(here: Path):
    found = figures_of(here, np.zeros(2), np.ones(2))
    assert (found.relative, found.cosine) == (None, None)


@pytest.mark.parametrize("dtype", SAVABLE, ids=str)
def test_every_dtype_is_compared(here: Path, dtype: Any):
    left = np.ones(9, np.float32).astype(np_dtype(dtype))
    right = left.copy()
    right[4] = 0 if dtype.name != "float8_e8m0fnu" else 2
    assert figures_of(here, left, right).at == 4
    assert compared(here, {"w": left}, {"w": left}).same


def test_every_dtype_that_can_be_computed_with_is_among_them():
    assert {d.name for d in COMPUTABLE} - {d.name for d in SAVABLE} == {"complex128"}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_changed_element_is_found_wherever_it_is(here: Path, data: st.DataObject):
    names, shape = st.text("ab.01", min_size=1), st.lists(st.integers(1, 5), max_size=3)
    shapes = data.draw(st.dictionaries(names, shape, min_size=1))
    dtype = data.draw(st.sampled_from([np.float32, BF16, np.int16, np.bool_]))
    left = {name: np.asarray(normal(shape) * 9).astype(dtype) for name, shape in shapes.items()}
    right = {name: np.array(array) for name, array in left.items()}
    name = data.draw(st.sampled_from(sorted(left)))
    index = tuple(data.draw(st.integers(0, n - 1)) for n in shapes[name])
    right[name][index] = not left[name][index] if dtype is np.bool_ else left[name][index] + dtype(16)
    assert compared(here, left, left).same
    (one,) = compared(here, left, right).differing
    assert (one.name, one.index) == (name, index)


# --- What is chosen, and what is refused ------------------------------------------------------------------------------


def test_only_the_names_of_the_target_are_compared(here: Path):
    left, right = {"a.w": np.ones(1), "b.w": np.ones(1)}, {"a.w": np.ones(1), "b.w": np.zeros(1), "c": np.ones(1)}
    assert compared(here, left, right, target=r"a\..*").same


def test_a_target_that_matches_nothing_is_refused(here: Path):
    with pytest.raises(ValueError, match=r"no tensor of .* matches 'weigth'\. Did you mean 'weight'\?"):
        compared(here, {"weight": np.ones(1)}, {"weight": np.ones(1)}, target="weigth")


@pytest.mark.parametrize("wishes", [{"eps": -1.0}, {"rtol": float("nan")}, {"eps": float("inf")}])
def test_a_tolerance_that_is_none_is_refused(here: Path, wishes: dict[str, float]):
    with pytest.raises(ValueError, match="finite and not negative"):
        compared(here, {"w": np.ones(1)}, {"w": np.ones(1)}, **wishes)


# --- What is read -----------------------------------------------------------------------------------------------------


def bytes_read(here: Path, left: Tensors, right: Tensors, **wishes: Any) -> tuple[int, int]:
    pair = [bs.open(str(write(here / f"{n}.safetensors", side))) for n, side in enumerate((left, right))]
    bs.diff(pair[0], pair[1], **wishes)
    return pair[0].source.bytes_read, pair[1].source.bytes_read


@pytest.mark.parametrize("wishes", [{}, {"eps": 0.5}, {"figures": False}])
def test_equal_tensors_are_read_once(here: Path, wishes: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    set_block(monkeypatch, 1 << 10)
    tensors = {"w": normal((100, 100)), "b": normal((7,))}
    total = sum(t.nbytes for t in tensors.values())
    assert bytes_read(here, tensors, tensors, **wishes) == (total, total)


def test_without_figures_a_tensor_is_read_to_its_first_difference(here: Path, monkeypatch: pytest.MonkeyPatch):
    set_block(monkeypatch, 1 << 10)
    left = {"w": normal((1000, 1000))}
    read, _ = bytes_read(here, left, {"w": left["w"] + 1}, figures=False)
    assert read < left["w"].nbytes / 4  # jobs that have begun end


def test_figures_read_a_tensor_that_differs_once_more(here: Path, monkeypatch: pytest.MonkeyPatch):
    set_block(monkeypatch, 1 << 10)
    left = {"w": normal((1000, 1000)), "same": normal((1000,))}
    read, _ = bytes_read(here, left, left | {"w": left["w"] + 1})
    assert left["w"].nbytes <= read - left["same"].nbytes < left["w"].nbytes * 1.25


def test_nothing_but_headers_is_read_where_they_tell(here: Path):
    assert bytes_read(here, {"w": np.ones(3)}, {"w": np.ones(4), "v": np.ones(1)}) == (0, 0)


PEAK = """
import sys
from pathlib import Path
import numpy as np
import brainsurgery_jax as bs

def status():
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if words[-1] == "kB"}

assert bs.diff("a.npz", "b.npz").equal == 0
Path("/proc/self/clear_refs").write_text("5")  # the highest count starts again from what is held now
before = status()
assert not bs.diff("left.safetensors", "right.safetensors").same
after = status()
assert not [name for name in sys.modules if name.split(".")[0] in ("jax", "torch", "orbax")]
print(after["VmHWM"] - after["RssFile"] - before["RssAnon"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux counts pages")
def test_a_large_tensor_is_never_held_as_a_whole_and_jax_not_loaded(here: Path):
    for name, first in (("left", 0), ("right", 1)):
        tensor = np.ones(48 << 20, np.float32)
        tensor[: 24 << 20] = first
        write(here / f"{name}.safetensors", {"w": tensor})
    for name in ("a", "b"):
        np.savez(here / f"{name}.npz", w=np.full(9, ord(name)))
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=here, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    blocks_of_threads = (2 * 4 + 24) * (1 << 20) * len(os.sched_getaffinity(0))
    assert int(done.stdout) < min(2 * blocks_of_threads, 128 << 20)


# --- Integers that no double holds ------------------------------------------------------------------------------------

LONG = [2**53 + 1, -(2**53) - 1, 2**55 + 3, 2**63 - 1, -(2**63), 2**62 + 1, 0, 7]


@pytest.mark.parametrize(("step", "eps"), [(1, 0.5), (3, 2.0), (5, 4.0)])
def test_long_integers_are_as_far_apart_as_they_are(here: Path, step: int, eps: float):
    right = np.array([2**55 + step, 5])
    found = figures_of(here, np.array([2**55, 5]), right, eps=eps)
    assert (found.differing, found.largest, found.at) == (1, step, 0)
    assert compared(here, {"w": np.array([2**55, 5])}, {"w": right}, eps=step).close == 1


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_a_cast_to_float_that_lost_digits_is_told(here: Path, dtype: type):
    left = np.array([x for x in [*LONG, 2**64 - 1] if np.iinfo(dtype).min <= x <= np.iinfo(dtype).max], dtype)
    found = figures_of(here, left, left.astype(np.float64), ignore_dtype=True)
    gaps = [abs(int(x) - int(float(x))) for x in left.tolist()]
    assert (found.differing, found.largest) == (np.count_nonzero(gaps), max(gaps))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(pairs=st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2), min_size=1, max_size=5), near=st.booleans())
def test_differences_of_long_integers_are_those_of_python(here: Path, pairs: list[tuple[int, int]], near: bool):
    pairs = [(x, max(-(2**63), x - y % 9) if near else y) for x, y in pairs]
    left, right = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    most = max(abs(x - y) for x, y in pairs)
    if not most:
        assert compared(here, {"w": left}, {"w": right}).same
    else:
        assert figures_of(here, left, right).largest == pytest.approx(most, rel=1e-15)


def test_a_tree_is_refused_with_what_to_do():
    with pytest.raises(TypeError, match=r"got a dict\. Save a tree first: bs\.save"):
        bs.diff({"w": np.ones(1)}, {"w": np.ones(1)})  # pyright: ignore[reportArgumentType]
