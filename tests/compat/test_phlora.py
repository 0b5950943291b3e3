"""Spec 4: `phlora` and `phlora_`. `row.py` tells how a row reads.

The signs of singular vectors are free, so factors are compared by their product.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import normal
from tests.compat.row import Row, accepted, check, refused, run

F32 = np.float32
W, V = normal((5, 4)), normal((3, 6), seed=1)
Z = (normal((4, 5), seed=2) + 1j * normal((4, 5), seed=3)).astype(np.complex64)
M = {"a.w": W, "b.w": V, "bias": normal((4,))}


def best(x: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of that rank, by numpy in 64 bits."""
    wide = np.complex128 if x.dtype.kind == "c" else np.float64
    u, s, v = np.linalg.svd(x.astype(wide), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).astype(x.dtype)


ROWS = (
    accepted("phlora_", "every match becomes its best approximation, in its own shape",
             r"phlora_: { target: '.\.w', rank: 2 }", M, {"a.w": best(W, 2), "b.w": best(V, 2)}, within=1e-5),
    accepted("phlora_", "a rank that is too large is cut", r"phlora_: { target: 'a\.w', rank: 99 }", M, {"a.w": W},
             within=1e-5),
    accepted("phlora_", "float64 stays float64", "phlora_: { target: w, rank: 1 }", {"w": W.astype(np.float64)},
             {"w": best(W.astype(np.float64), 1)}, within=1e-12),
    accepted("phlora_", "complex matrices, too", "phlora_: { target: z, rank: 2 }", {"z": Z}, {"z": best(Z, 2)},
             within=1e-5),
    accepted("phlora_", "the pattern may be a list of tokens", "phlora_: { target: [a, $x], rank: 1 }", M,
             {"a.w": best(W, 1)}, within=1e-5),
    refused("phlora_", "the target is a matrix", "phlora_: { target: bias, rank: 1 }", M, "not-a-matrix", "bias"),
    refused("phlora_", "the target takes no slice", r"phlora_: { target: 'a\.w::[:2]', rank: 1 }", M,
            "slice-not-allowed", "a slice is not allowed here"),
    refused("phlora_", "integers are not factorized", "phlora_: { target: i, rank: 1 }",
            {"i": np.eye(3, dtype=np.int32)},
            "dtype-unsupported", "i32"),
    refused("phlora_", "`rank` is required", "phlora_: { target: '.*w' }", M, "key-missing", "missing key 'rank'"),
    refused("phlora", "the rank is positive",
            "phlora: { target: '(.*)w', target_a: '\\1A', target_b: '\\1B', rank: 0 }",
            M, "value-type", "expected a positive integer"),
    refused("phlora", "the rank is whole", "phlora: { target: '(.*)w', target_a: '\\1A', target_b: '\\1B', rank: 2.5 }",
            M, "value-type", "expected a positive integer"),
    refused("phlora", "the target is a matrix",
            "phlora: { target: '(bias)', target_a: '\\1A', target_b: '\\1B', rank: 1 }",
            M, "not-a-matrix", "bias"),
    refused("phlora", "something must match", "phlora: { target: none, target_a: A, target_b: B, rank: 1 }", M,
            "no-match", "none"),
    refused("phlora", "factors must be new", r"phlora: { target: 'a\.w', target_a: bias, target_b: B, rank: 1 }", M,
            "dest-exists", "'bias' exists"),
    refused("phlora", "the two factors have two names",
            r"phlora: { target: 'a\.w', target_a: N, target_b: N, rank: 1 }",
            M, "names-collide", "'N'"),
    *(refused("phlora", f"`{key}` takes no slice",
              f"phlora: {{ {', '.join(f'{k}: {v}' for k, v in keys.items())}, rank: 1 }}",
              M, "slice-not-allowed", "a slice is not allowed here")
      for key in ("target", "target_a", "target_b")
      for keys in [{"target": "bias", "target_a": "A", "target_b": "B"} | {key: "'A::[0]'"}]),
    refused("phlora", "two sources cannot have one factor",
            r"phlora: { target: '(.)\.w', target_a: N, target_b: '\1B', rank: 1 }",
            M, "names-collide", "'N'"),
    refused("phlora", "flags are true or false",
            r"phlora: { target: 'a\.w', target_a: A, target_b: B, rank: 1, delete_original: 1 }",
            M, "value-type", "expected true or false"),
    refused("phlora", "all three references are of one kind",
            r"phlora: { target: [a, w], target_a: A, target_b: B, rank: 1 }",
            M, "kinds-differ", "list"),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_phlora_row(row: Row, here: Path):
    check(row)


def factors(more: str = "", rank: str = "2") -> dict[str, np.ndarray]:
    step = rf"phlora: {{ target: '(.)\.w', target_a: '\1.A', target_b: '\1.B', rank: {rank}{more} }}"
    return run(step, M)[0]


def test_factors_take_the_place_of_the_matrix(here: Path):
    out = factors()
    assert sorted(out) == ["a.A", "a.B", "b.A", "b.B", "bias"]
    assert {n: x.shape for n, x in out.items() if n != "bias"} == {
        "a.A": (2, 4), "a.B": (5, 2), "b.A": (2, 6), "b.B": (3, 2),
    }  # fmt: skip


def test_the_product_of_the_factors_is_the_best_approximation(here: Path):
    out = factors()
    np.testing.assert_allclose(out["a.B"] @ out["a.A"], best(W, 2), rtol=0, atol=1e-5)
    np.testing.assert_allclose(out["b.B"] @ out["b.A"], best(V, 2), rtol=0, atol=1e-5)


def test_the_factors_share_the_singular_values_evenly(here: Path):
    out = factors()
    s = np.linalg.svd(W.astype(np.float64), compute_uv=False)[:2]
    np.testing.assert_allclose(out["a.A"] @ out["a.A"].T, np.diag(s), atol=1e-5)
    np.testing.assert_allclose(out["a.B"].T @ out["a.B"], np.diag(s), atol=1e-5)


@pytest.mark.parametrize("rank", ["'2'", "2.0"])
def test_the_rank_may_be_text_or_a_float_that_is_whole(here: Path, rank: str):
    assert factors(rank=rank)["a.A"].shape == (2, 4)


def test_a_rank_that_is_too_large_is_cut_to_the_smaller_side(here: Path):
    out = factors(rank="99")
    assert (out["a.A"].shape, out["b.A"].shape) == ((4, 4), (3, 6))


def test_the_matrix_stays_if_told_so(here: Path):
    out = factors(", delete_original: false")
    assert (out["a.w"] == W).all()


def test_factors_may_replace_what_is_there_if_told_so(here: Path):
    out, _ = run(r"phlora: { target: 'a\.w', target_a: bias, target_b: B, rank: 1, require_missing_dest: false }", M)
    assert out["bias"].shape == (1, 4)


def test_both_factors_may_have_one_name_in_two_aliases(here: Path):
    step = "phlora: { target: 'base::w', target_a: 'a::n', target_b: 'b::n', rank: 1 }"
    out, _ = run(step, {"base": {"w": W, "v": V}, "a": {"x": V}, "b": {"x": V}})
    assert (out["a::n"].shape, out["b::n"].shape) == ((1, 4), (5, 1))


def test_factors_go_to_the_alias_of_the_matrix_unless_they_name_another(here: Path):
    step = "phlora: { target: 'base::w', target_a: 'side::A', target_b: B, rank: 1 }"
    out, _ = run(step, {"base": {"w": W}, "side": {"x": V}})
    assert sorted(out) == ["base::B", "side::A", "side::x"]
