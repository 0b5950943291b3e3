"""Git Re-Basin: the units of a permuted model are put back, and what a model computes stays the same."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import normal, problems, run_plan

Tensors = dict[str, np.ndarray]
RNG = np.random.default_rng(11)


def block(units: int = 7, width: int = 5, seed: int = 0) -> Tensors:
    return {
        "h.0.up.w": normal((units, width), seed=seed), "h.0.up.b": normal((units,), seed=seed + 1),
        "h.0.down.w": normal((width, units), seed=seed + 2), "norm": normal((width,), seed=seed + 3),
    }  # fmt: skip


def permuted(t: Tensors, order: Any) -> Tensors:
    return {**t, "h.0.up.w": t["h.0.up.w"][order], "h.0.up.b": t["h.0.up.b"][order],
            "h.0.down.w": t["h.0.down.w"][:, order]}  # fmt: skip


STEP = {"rebasin": {"target": r"b::h\.(\d+)\.up\.w", "like": "a", "others": {r"h.\1.up.b": 0, r"h.\1.down.w": 1}}}


def outputs(t: Tensors, x: np.ndarray) -> np.ndarray:
    return np.tanh(x @ t["h.0.up.w"].T + t["h.0.up.b"]) @ t["h.0.down.w"].T


def test_units_are_put_back_in_their_order(tmp_path: Path) -> None:
    a = block()
    b = permuted(a, RNG.permutation(7))
    found = run_plan(tmp_path, {"b": b, "a": a}, [STEP])
    assert {n: x.tolist() for n, x in found.items()} == {n: x.tolist() for n, x in a.items()}


def test_the_order_is_the_best_of_all(tmp_path: Path) -> None:
    a, b = block(5), block(5, seed=20)

    def gain(order: Any) -> float:
        other = permuted(b, list(order))
        return sum(float(np.vdot(a[n].astype(np.float64), other[n])) for n in a)

    best = max(permutations(range(5)), key=gain)
    found = run_plan(tmp_path, {"b": b, "a": a}, [STEP])
    assert {n: x.tolist() for n, x in found.items()} == {n: x.tolist() for n, x in permuted(b, list(best)).items()}
    x = normal((3, 5), seed=9)
    np.testing.assert_allclose(outputs(found, x), outputs(b, x), atol=1e-5)


def test_layers_that_share_tensors_are_matched_by_steps_that_repeat(tmp_path: Path) -> None:
    a = {"0.w": normal((6, 4)), "1.w": normal((5, 6), seed=1), "2.w": normal((3, 5), seed=2)}
    p, q = RNG.permutation(6), RNG.permutation(5)
    b = {"0.w": a["0.w"][p], "1.w": a["1.w"][q][:, p], "2.w": a["2.w"][:, q]}
    steps = [{"rebasin": {"target": f"b::{n}.w", "like": "a", "others": {f"{n + 1}.w": 1}}} for n in (0, 1)]
    found = run_plan(tmp_path, {"b": b, "a": a}, steps * 2)
    assert {n: x.tolist() for n, x in found.items()} == {n: x.tolist() for n, x in a.items()}


def test_units_of_other_number_are_refused(tmp_path: Path) -> None:
    a = block()
    (bad,) = problems(tmp_path, {"b": a, "a": a}, [{"rebasin": {"target": r"b::h\.0\.up\.w", "like": "a",
                                                              "others": {"h.0.down.w": 0}}}])  # fmt: skip
    assert "'h.0.down.w' has 5 units along axis 0, and 'h.0.up.w' has 7" in bad.message


def test_a_tensor_is_reordered_once_along_an_axis(tmp_path: Path) -> None:
    a = {"0.w": normal((4, 4)), "1.w": normal((4, 4), seed=1), "s.w": normal((4, 4), seed=2)}
    for target, others, match in (
        (r"b::\d\.w", {"s.w": 1}, "the units of '0.w' and of '1.w' are both along axis 1 of 's.w'"),
        (r"b::0\.w", {"0.w": 1}, "'0.w' comes twice among the tensors with the units of '0.w'"),
    ):
        (bad,) = problems(tmp_path, {"b": a, "a": a}, [{"rebasin": {"target": target, "like": "a", "others": others}}])
        assert match in bad.message


def test_a_tensor_may_be_in_two_sets_along_two_axes(tmp_path: Path) -> None:
    a = {"0.w": normal((6, 4)), "1.w": normal((5, 6), seed=1), "2.w": normal((3, 5), seed=2)}
    p, q = RNG.permutation(6), RNG.permutation(5)
    b = {"0.w": a["0.w"][p], "1.w": a["1.w"][q][:, p], "2.w": a["2.w"][:, q]}
    step = {"rebasin": {"target": r"b::(?P<i>[01])\.w", "like": "a", "others": {"${i + 1}.w": 1}}}
    found = run_plan(tmp_path, {"b": b, "a": a}, [step] * 2)
    assert {n: x.tolist() for n, x in found.items()} == {n: x.tolist() for n, x in a.items()}


# --- What is left out -------------------------------------------------------------------------------------------------

GATED = {
    "h.0.mlp.gate_proj.weight": normal((6, 4)), "h.0.mlp.up_proj.weight": normal((6, 4), seed=1),
    "h.0.mlp.up_proj.bias": normal((6,), seed=2), "h.0.mlp.down_proj.weight": normal((4, 6), seed=3),
}  # fmt: skip


def gated(*others: str, target: str = "up_proj", **axes: int) -> list[Any]:
    named = {rf"h.\1.mlp.{n}": axes.get(n.partition("_")[0], 0) for n in others}
    return [{"rebasin": {"target": rf"b::h\.(\d)\.mlp\.{target}\.weight", "like": "a", "others": named}}]


def notes(folder: Path, tensors: Tensors, steps: list[Any]) -> list[str]:
    return [d.message for d in problems(folder, {"b": tensors, "a": tensors}, steps)]


def test_a_tensor_with_the_same_units_that_is_left_out_is_noted(tmp_path: Path) -> None:
    every = ["gate_proj.weight", "up_proj.bias", "down_proj.weight"]
    assert notes(tmp_path, GATED, gated(*every, down=1)) == []
    for left in every:
        (said,) = notes(tmp_path, GATED, gated(*(n for n in every if n != left), down=1))
        assert said == (
            f"rebasin.others: 'h.0.mlp.{left}' seems to have the units of 'h.0.mlp.up_proj.weight', and keeps their "
            "order: the model computes otherwise"
        )


def test_tensors_of_the_same_size_that_have_other_units_are_not_noted(tmp_path: Path) -> None:
    square = {f"h.0.attn.{n}_proj.weight": normal((4, 4), seed=at) for at, n in enumerate("qkvo")}
    step = {"target": r"b::h\.0\.attn\.v_proj\.weight", "like": "a", "others": {"h.0.attn.o_proj.weight": 1}}
    assert notes(tmp_path, square, [{"rebasin": step}]) == []
    plain = {f"layers.{n}.weight": normal((4, 4), seed=n) for n in range(3)}
    step = {"target": r"b::layers\.0\.weight", "like": "a", "others": {"layers.1.weight": 1}}
    assert notes(tmp_path, plain, [{"rebasin": step}]) == []


def test_a_wrong_name_of_the_others_is_told_there(tmp_path: Path) -> None:
    (bad,) = problems(tmp_path, {"b": GATED, "a": GATED}, gated("gate_prj.weight"))
    assert (bad.code, bad.message.split(":")[0]) == ("tensor-missing", "rebasin.others")
