"""Codes and scales that are renamed, cut, ordered or joined: what comes out is the floats rearranged alike, or it is
refused. The oracle is NumPy on the floats."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors import safe_open

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.checkpoints import normal, problems, run_plan, write
from tests.quantized import FORMATS

FP8 = ml_dtypes.float8_e4m3fn
Array = np.ndarray


def codes_of(shape: tuple[int, ...]) -> Array:
    """Codes, the largest among those of every scale, so that to quantize the floats gives them back."""
    made = np.arange(np.prod(shape)).reshape(shape) % 13 + 1
    made[..., ::128] = 448
    return made.astype(FP8)


def scales_of(shape: tuple[int, ...], start: int = 1) -> Array:
    return np.arange(start, start + int(np.prod(shape)), dtype=np.float32).reshape(shape)


TENSORS = {
    "row.weight": codes_of((4, 6)), "row.weight_scale": scales_of((4, 1)),
    "row2.weight": codes_of((4, 6)), "row2.weight_scale": scales_of((4, 1), 5),
    "one.weight": codes_of((4, 6)), "one.weight_scale": scales_of((1,)),
    "one2.weight": codes_of((4, 6)), "one2.weight_scale": scales_of((1,), 2),
    "block.weight": codes_of((384, 256)), "block.weight_scale_inv": scales_of((3, 2)),
    "square.weight": codes_of((256, 256)), "square.weight_scale_inv": scales_of((2, 2)),
    "stack.weight": codes_of((3, 4, 6)), "stack.weight_scale": scales_of((3, 4, 1)),
}  # fmt: skip


def ending(name: str) -> str:
    return "_scale_inv" if f"{name}.weight_scale_inv" in TENSORS else "_scale"


def spread(scales: Array, shape: tuple[int, ...]) -> Array:
    """Scales, one for each element of a tensor: for all, for each row, or for blocks of 128."""
    if scales.size == 1:
        return np.broadcast_to(scales.reshape(()), shape)
    if scales.shape[:-1] == shape[:-1]:
        return np.broadcast_to(scales, shape)
    return np.repeat(np.repeat(scales, 128, 0), 128, 1)[: shape[0], : shape[1]]


def floats(name: str) -> Array:
    codes = TENSORS[f"{name}.weight"]
    return codes.astype(np.float32) * spread(TENSORS[f"{name}.weight{ending(name)}"], codes.shape)


def copy(name: str, cut: str = "", cut_scales: str = "") -> list[Any]:
    tail = ending(name)
    return [
        {"copy": {"from": rf"{name}\.weight{cut}", "to": "new.weight"}},
        {"copy": {"from": rf"{name}\.weight{tail}{cut_scales}", "to": f"new.weight{tail}"}},
    ]


def both(op: str, name: str, keys: dict[str, Any], keys_of_scales: dict[str, Any] | None) -> list[Any]:
    tail = ending(name)
    of_scales = keys if keys_of_scales is None else keys_of_scales
    parts = [("", keys), (tail, of_scales)]
    return [{op: {"from": rf"{name}\.weight{part}", "to": f"new.weight{part}", **k}} for part, k in parts]


def join(names: list[str], op: str, dims: tuple[int, int]) -> list[Any]:
    made = zip(("", ending(names[0])), dims, strict=True)
    return [{op: {"from": [rf"{n}\.weight{part}" for n in names], "to": f"new.weight{part}", "dim": dim}}
            for part, dim in made]  # fmt: skip


Rearrange = Callable[[], Array]

RIGHT: dict[str, tuple[list[Any], Rearrange]] = {
    "a copy": (copy("block"), lambda: floats("block")),
    "whole blocks": (copy("block", "::[128:]", "::[1:]"), lambda: floats("block")[128:]),
    "columns of blocks": (copy("block", "::[:, 128:]", "::[:, 1:]"), lambda: floats("block")[:, 128:]),
    "rows": (copy("row", "::[1:3]", "::[1:3]"), lambda: floats("row")[1:3]),
    "columns that share all scales": (copy("row", "::[:, 2:]"), lambda: floats("row")[:, 2:]),
    "a part of the only block": (copy("one", "::[1:3, 2:]"), lambda: floats("one")[1:3, 2:]),
    "rows in another order": (
        both("take", "row", {"dim": 0, "indices": [3, 1, 0, 2]}, None), lambda: floats("row")[[3, 1, 0, 2]]
    ),
    "both transposed": (both("transpose", "square", {}, None), lambda: floats("square").T),
    "rows joined": (join(["row", "row2"], "concat", (0, 0)), lambda: np.concatenate([floats("row"), floats("row2")])),
    "matrices stacked": (join(["row", "row2"], "stack", (0, 0)), lambda: np.stack([floats("row"), floats("row2")])),
    "matrices with one scale each stacked": (
        join(["one", "one2"], "stack", (0, 0)), lambda: np.stack([floats("one"), floats("one2")])
    ),
    "one of a stack": (copy("stack", "::[1]", "::[1]"), lambda: floats("stack")[1]),
}  # fmt: skip

WRONG = {
    "rows beside other scales": copy("row", "::[:2]", "::[2:]"),
    "a cut within a block": copy("block", "::[64:192]", "::[:1]"),
    "fewer rows, all scales": copy("block", "::[:192]", "::[1:]"),
    "columns of other blocks": copy("block", "::[:, 128:]", "::[:, :1]"),
    "codes in another order": both(
        "take", "row", {"dim": 0, "indices": [3, 1, 0, 2]}, {"dim": 0, "indices": [0, 1, 2, 3]}
    ),
    "codes transposed": [{"transpose_": {"target": r"square\.weight"}}],
    "scales transposed": [{"transpose_": {"target": r"square\.weight_scale_inv"}}],
    "joined beside the scale of one": [join(["one", "one2"], "concat", (0, 0))[0], copy("one")[1]],
    "joined in another order": [
        join(["row", "row2"], "concat", (0, 0))[0], join(["row2", "row"], "concat", (0, 0))[1]
    ],
    "stacked in another order": [
        join(["one", "one2"], "stack", (0, 0))[0], join(["one2", "one"], "stack", (0, 0))[1]
    ],
    "another of a stack": copy("stack", "::[1]", "::[2]"),
    "others' codes": [{"assign": {"from": r"row2\.weight", "to": "row.weight"}}],
    "others' scales": [{"assign": {"from": r"row2\.weight_scale", "to": "row.weight_scale"}}],
    "one row of others": [{"assign": {"from": r"row2\.weight::[1]", "to": "row.weight::[1]"}}],
    "codes that change places": [
        {"move": {"from": r"row\.weight", "to": "between"}}, {"move": {"from": r"row2\.weight", "to": "row.weight"}},
        {"move": {"from": "between", "to": "row2.weight"}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("which", RIGHT)
def test_codes_and_scales_that_are_rearranged_alike_are_the_floats_rearranged(which: str, tmp_path: Path) -> None:
    steps, wanted = RIGHT[which]
    assert [d.message for d in problems(tmp_path, TENSORS, steps) if "scale" in d.code] == []
    back = {"dequantize": {"target": r"new\.weight", "to": "float32"}}
    found = run_plan(tmp_path, TENSORS, [*steps, back])["new.weight"]
    assert found.tolist() == wanted().tolist()


@pytest.mark.parametrize("stays", [True, False], ids=["copied", "moved"])
@pytest.mark.parametrize(("names", "dim"), [(["row", "row2"], 0), (["block", "block"], 0), (["square", "square"], 1)])
def test_scales_are_joined_after_codes_as_the_note_says(
    names: list[str], dim: int, stays: bool, tmp_path: Path
) -> None:
    tail, first = ending(names[0]), names[0]
    tensors = {f"{n}.weight{part}": TENSORS[f"{own}.weight{part}"] for n, own in zip("ab", names, strict=True)
               for part in ("", tail)}  # fmt: skip
    steps: list[Any] = [{"concat": {"from": [r"a\.weight", r"b\.weight"], "to": "new.weight", "dim": dim}}]
    steps += [] if stays else [{"delete": {"target": r"[ab]\.weight"}}]
    (said,) = [d for d in problems(tmp_path, tensors, steps) if d.code == "scale-left"]
    assert said.hint.startswith("Join them as well, as last steps: `concat:")
    assert ("delete" in said.hint) is not stays
    mended = [*steps, *map(yaml.safe_load, re.findall("`(.*?)`", said.hint))]
    assert [d for d in problems(tmp_path, tensors, mended) if "scale" in d.code] == []
    found = run_plan(tmp_path, tensors, [*mended, {"dequantize": {"target": "new.*", "to": "float32"}}])
    assert found["new.weight"].tolist() == np.concatenate([floats(first), floats(names[1])], dim).tolist()
    assert {n for n in found if n != "new.weight"} == (set(tensors) if stays else set())


@pytest.mark.parametrize("op", ["concat", "stack"])
def test_codes_whose_scales_cannot_be_joined_alike_are_dequantized_before(op: str, tmp_path: Path) -> None:
    steps = [{op: {"from": [r"one\.weight", r"one2\.weight"], "to": "new.weight"}}]
    (said,) = [d for d in problems(tmp_path, TENSORS, steps) if d.code == "scale-left"]
    assert said.hint == "Dequantize before codes are joined: `dequantize: {target: 'model::.*', to: bfloat16}`."
    found = run_plan(tmp_path, TENSORS, [yaml.safe_load(said.hint.split("`")[1]), *steps])
    assert found["new.weight"].tolist() == getattr(np, {"concat": "concatenate"}.get(op, op))(
        [floats("one"), floats("one2")]
    ).astype(ml_dtypes.bfloat16).tolist()  # fmt: skip


def test_scales_of_codes_that_stay_are_copied(tmp_path: Path) -> None:
    steps = [{"copy": {"from": r"row\.weight", "to": "new.weight"}}]
    (said,) = [d for d in problems(tmp_path, TENSORS, steps) if d.code == "scale-left"]
    assert said.hint.startswith("Copy them as well, as a last step: `copy:")
    mended = [
        *steps,
        yaml.safe_load(said.hint.split("`")[1]),
        {"dequantize": {"target": "row.*|new.*", "to": "float32"}},
    ]
    found = run_plan(tmp_path, TENSORS, mended)
    assert found["row.weight"].tolist() == found["new.weight"].tolist() == floats("row").tolist()


@pytest.mark.parametrize("which", WRONG)
def test_codes_that_would_be_read_with_scales_that_are_not_theirs_are_refused(which: str, tmp_path: Path) -> None:
    (bad,) = [d for d in problems(tmp_path, TENSORS, WRONG[which]) if "scale" in d.code]
    assert (bad.code, bad.severity) == ("scale-mismatch", "error")
    assert "as a first step: `dequantize: {target: 'model::.*', to: bfloat16}`." in bad.hint
    with pytest.raises(PlanError, match="scale-mismatch"):
        run_plan(tmp_path, TENSORS, WRONG[which])


@pytest.mark.parametrize("which", WRONG)
def test_codes_beside_scales_that_are_not_theirs_are_not_dequantized(which: str, tmp_path: Path) -> None:
    back = {"dequantize": {"target": ".*", "to": "float32"}}
    (bad,) = problems(tmp_path, TENSORS, [*WRONG[which], back])
    assert (bad.code, bad.severity) == ("scale-mismatch", "error")
    assert bad.message.startswith("dequantize.target: '")
    with pytest.raises(PlanError, match="scale-mismatch"):
        run_plan(tmp_path, TENSORS, [*WRONG[which], back])


@pytest.mark.parametrize("which", WRONG)
def test_codes_that_the_plan_makes_are_not_dequantized_with_other_scales(which: str, tmp_path: Path) -> None:
    back = {"dequantize": {"target": ".*", "to": "float32"}}
    (bad,) = problems(tmp_path, MATRICES, [*QUANTIZE, *WRONG[which], back])
    assert (bad.code, bad.severity) == ("scale-mismatch", "error")


def test_codes_of_a_pytree_are_not_dequantized_with_other_scales() -> None:
    tree = {name: TENSORS[name] for name in TENSORS if name.startswith("row")}
    steps = [*WRONG["codes that change places"], {"dequantize": {"target": ".*", "to": "float32"}}]
    with pytest.raises(PlanError, match=r"is 'row2.weight', whose scales are in 'row2.weight_scale', but 'row\.w"):
        bs.load({"transforms": steps}).apply(tree)


def test_the_first_element_with_another_scale_is_named(tmp_path: Path) -> None:
    (bad,) = problems(tmp_path, TENSORS, copy("block", "::[64:192]", "::[:1]"))
    assert bad.message == (
        "output: 'new.weight', codes, has at [127, 0] what is at [191, 0] of 'block.weight', whose scale is at [1, 0] "
        "of 'block.weight_scale_inv', but 'new.weight_scale_inv' has for it that at [0, 0]"
    )


def test_codes_of_one_checkpoint_do_not_stand_beside_scales_of_another(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.safetensors", {"w": codes_of((4, 6)), "w_scale": scales_of((4, 1))})
    steps: list[Any] = [{"assign": {"from": "b::w", "to": "a::w"}}]
    plan = {"inputs": [f"{n}::{tmp_path}/{n}.safetensors" for n in "ab"], "transforms": steps,
            "output": {"path": str(tmp_path / "out.safetensors"), "alias": "a"}}  # fmt: skip
    with pytest.raises(PlanError, match="is 'w' of one checkpoint, but 'w_scale' beside it is 'w_scale' of another"):
        bs.load(plan).run(durable=False)
    steps.append({"assign": {"from": "b::w_scale", "to": "a::w_scale"}})
    bs.load(plan).run(durable=False)


# --- Codes that the plan makes ----------------------------------------------------------------------------------------

MATRICES = {name: floats(name.removesuffix(".weight")) for name in TENSORS if name.endswith(".weight")}
QUANTIZE: list[Any] = [
    {"quantize": {"target": rf"({names})\.weight", "to": "float8_e4m3fn", "per": per}}
    for names, per in (("row2?|stack", "channel"), ("one2?", "tensor"), ("block|square", "block"))
]
REMEDY = "Let `quantize` come after all steps that rename, cut or order its results, or treat scales alike."


@pytest.mark.parametrize("which", RIGHT)
def test_codes_that_the_plan_makes_are_followed_like_those_of_inputs(which: str, tmp_path: Path) -> None:
    steps, wanted = RIGHT[which]
    assert [d.message for d in problems(tmp_path, MATRICES, [*QUANTIZE, *steps]) if "scale" in d.code] == []
    back = {"dequantize": {"target": r"new\.weight", "to": "float32"}}
    found = run_plan(tmp_path, MATRICES, [*QUANTIZE, *steps, back])["new.weight"]
    assert found.tolist() == wanted().tolist()


@pytest.mark.parametrize("which", WRONG)
def test_codes_that_the_plan_makes_are_not_written_beside_other_scales(which: str, tmp_path: Path) -> None:
    (bad,) = [d for d in problems(tmp_path, MATRICES, [*QUANTIZE, *WRONG[which]]) if "scale" in d.code]
    assert (bad.code, bad.severity, bad.hint) == ("scale-mismatch", "error", REMEDY)
    with pytest.raises(PlanError, match="scale-mismatch"):
        run_plan(tmp_path, MATRICES, [*QUANTIZE, *WRONG[which]])


def test_codes_that_the_plan_makes_and_moves_alone_are_noted(tmp_path: Path) -> None:
    (said,) = problems(tmp_path, MATRICES, [*QUANTIZE, {"move": {"from": r"row\.weight", "to": "x.weight"}}])
    assert (said.code, said.severity, said.hint) == ("scale-left", "note", REMEDY)
    assert said.message == (
        "output: 'x.weight', codes, is written without its scales, which stood in 'row.weight_scale'"
    )


def test_codes_that_the_plan_makes_are_not_computed_on_once_they_left_their_scales(tmp_path: Path) -> None:
    steps = [{"move": {"from": r"row\.weight", "to": "x"}}, {"cast_": {"target": "x", "to": "bfloat16"}}]
    (bad,) = problems(tmp_path, MATRICES, [*QUANTIZE, *steps])
    assert (bad.code, bad.hint) == ("scale-ignored", "Compute before the step `quantize`.")


@pytest.mark.parametrize("rows", [64, 50])
def test_blocks_of_codes_that_the_plan_makes_are_as_long_as_it_says(rows: int, tmp_path: Path) -> None:
    made = {"quantize": {"target": "x", "to": "float8_e4m3fn", "block": [64, 64]}}
    steps = [made, {"copy": {"from": f"x::[{rows}:]", "to": "y"}},
             {"copy": {"from": "x_scale_inv::[1:]", "to": "y_scale_inv"}}]  # fmt: skip
    found = [d.code for d in problems(tmp_path, {"x": normal((100, 8))}, steps)]
    assert found == ([] if rows == 64 else ["scale-mismatch"])


PACK = {"mxfp4": ("_blocks", "_scales"), "gptq": ("qweight", "scales", "qzeros", "g_idx"),
        "awq": ("qweight", "scales", "qzeros")}  # fmt: skip


@pytest.mark.parametrize("to", PACK)
@pytest.mark.parametrize("apart", [False, True])
def test_every_part_of_words_that_the_plan_makes_must_follow(to: str, apart: bool, tmp_path: Path) -> None:
    group = {} if to == "mxfp4" else {"group": 8}
    stem = "weight" if to == "mxfp4" else ""
    steps: list[Any] = [{"quantize": {"target": ".*", "to": to, **group}}]
    codes, *parts = PACK[to]
    for part in (codes, *([] if apart else parts)):
        steps += [{"move": {"from": rf"a\.{stem}{part}", "to": f"between{part}"}},
                  {"move": {"from": rf"b\.{stem}{part}", "to": f"a.{stem}{part}"}},
                  {"move": {"from": f"between{part}", "to": f"b.{stem}{part}"}}]  # fmt: skip
    tensors = {"a.weight": normal((32, 32)), "b.weight": normal((32, 32)) + 1}
    found = [d.code for d in problems(tmp_path, tensors, steps)]
    assert found == (["scale-mismatch"] if apart else [])


# --- Blocks of the config ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "right"), [(64, True), (50, False)])
def test_blocks_are_as_long_as_the_config_says(rows: int, right: bool, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write(
        tmp_path / "model/model.safetensors", {"x.weight": codes_of((100, 8)), "x.weight_scale_inv": scales_of((2, 1))}
    )
    config = '{"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}'
    (tmp_path / "model/config.json").write_text(config)
    steps = [{"copy": {"from": rf"x\.weight::[{rows}:]", "to": "y.weight"}},
             {"copy": {"from": r"x\.weight_scale_inv::[1:]", "to": "y.weight_scale_inv"}}]  # fmt: skip
    plan = {"inputs": [str(tmp_path / "model")], "transforms": steps, "output": {"path": str(tmp_path / "out")}}
    if right:
        bs.load(plan).check()
    else:
        with pytest.raises(PlanError, match="scale-mismatch"):
            bs.load(plan).check()


# --- Packed codes -----------------------------------------------------------------------------------------------------


def words(name: str, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {f"{name}.qweight": rng.integers(0, 9, (4, 8), dtype=np.int32),
            f"{name}.qzeros": rng.integers(0, 9, (2, 1), dtype=np.int32),
            f"{name}.scales": normal((2, 8)).astype(np.float16),
            f"{name}.g_idx": rng.integers(0, 2, 32, dtype=np.int32)}  # fmt: skip


PACKED = {**words("a", 0), **words("b", 1)}


@pytest.mark.parametrize("part", ["scales", "qzeros", "g_idx"])
def test_every_part_of_packed_codes_must_come_along(part: str, tmp_path: Path) -> None:
    (said,) = problems(tmp_path, PACKED, [{"delete": {"target": rf"a\.{part}"}}])
    assert (said.code, said.severity) == ("scale-left", "note") and f"stood in 'a.{part}'" in said.message


@pytest.mark.parametrize("part", ["qweight", "scales", "qzeros", "g_idx"])
def test_every_part_of_packed_codes_must_be_their_own(part: str, tmp_path: Path) -> None:
    (bad,) = problems(tmp_path, PACKED, [{"assign": {"from": rf"b\.{part}", "to": f"a.{part}"}}])
    assert (bad.code, bad.severity) == ("scale-mismatch", "error")


@pytest.mark.parametrize("part", ["scales", "qzeros", "g_idx"])
def test_packed_codes_with_parts_of_others_are_not_dequantized(part: str, tmp_path: Path) -> None:
    steps = [{"assign": {"from": rf"b\.{part}", "to": f"a.{part}"}},
             {"dequantize": {"target": ".*", "to": "float32"}}]  # fmt: skip
    (bad,) = problems(tmp_path, PACKED, steps)
    assert (bad.code, bad.severity) == ("scale-mismatch", "error")


def test_packed_codes_that_left_the_order_of_their_inputs_are_dequantized_with_a_note(tmp_path: Path) -> None:
    away: list[Any] = [{"move": {"from": r"a\.(qweight|qzeros|scales)", "to": r"c.\1"}}]
    back: list[Any] = [{"dequantize": {"target": "c.*", "to": "float32"}}]
    (said,) = problems(tmp_path, PACKED, [*away, *back])
    assert (said.code, said.severity) == ("scale-left", "note")
    assert said.message == "dequantize.target: 'c.qweight', codes, is read without what stood in 'a.g_idx'"
    assert said.hint.startswith("Move it as well, before this step, or leave out the step that deletes it.")
    moved = [*away, {"move": {"from": r"a\.g_idx", "to": "c.g_idx"}}, *back]
    assert problems(tmp_path, PACKED, moved) == ()
    gone: list[Any] = [{"delete": {"target": r"a\.g_idx"}}, {"dequantize": {"target": "a.*", "to": "float32"}}]
    (said,) = problems(tmp_path, PACKED, gone)
    assert (said.code, said.severity) == ("scale-left", "note")
    assert problems(tmp_path, PACKED, gone[1:]) == ()


def test_packed_codes_that_are_renamed_or_stacked_with_all_parts_are_right(tmp_path: Path) -> None:
    assert problems(tmp_path, PACKED, [{"move": {"from": r"a\.(.+)", "to": r"c.\1"}}]) == ()
    stack = [{"stack": {"from": [rf"{n}\.{part}" for n in "ab"], "to": f"all.{part}", "dim": 0}}
             for part in ("qweight", "qzeros", "scales", "g_idx")]  # fmt: skip
    assert problems(tmp_path, PACKED, stack) == ()
    swapped = [*stack[:2], {"stack": {"from": [r"b\.scales", r"a\.scales"], "to": "all.scales", "dim": 0}}, stack[3]]
    assert [d.code for d in problems(tmp_path, PACKED, swapped)] == ["scale-mismatch"]


def test_packed_codes_that_are_cut_alone_are_noted(tmp_path: Path) -> None:
    cut = [{"copy": {"from": r"a\.qweight::[:, :4]", "to": "c.qweight"}},
           {"copy": {"from": r"a\.(qzeros|scales|g_idx)", "to": r"c.\1"}}]  # fmt: skip
    (said,) = problems(tmp_path, PACKED, cut)
    assert (said.code, said.severity) == ("scale-left", "note") and "do not fit" in said.message


# --- Computing on codes that have moved -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "away",
    [
        {"move": {"from": r"row\.weight", "to": "x"}}, {"copy": {"from": r"row\.weight::[:2]", "to": "x"}},
        {"stack": {"from": [r"row\.weight", r"row2\.weight"], "to": "x"}},
        {"transpose": {"from": r"row\.weight", "to": "x"}},
    ],
    ids=lambda s: next(iter(s)),
)  # fmt: skip
def test_codes_that_left_their_scales_are_not_computed_on(away: Any, tmp_path: Path) -> None:
    (bad,) = problems(tmp_path, TENSORS, [away, {"cast_": {"target": "x", "to": "bfloat16"}}])
    assert bad.code == "scale-ignored"
    assert bad.message == (
        "cast_: 'x' holds codes of 'row.weight', whose scales were left in 'row.weight_scale': this step ignores them"
    )


def test_codes_that_left_their_scales_are_computed_on_with_them(tmp_path: Path) -> None:
    steps = [
        {"move": {"from": r"row\.weight", "to": "x"}}, {"move": {"from": r"row\.weight_scale", "to": "s"}},
        {"compute": {"from": {"x": "x", "s": "s"}, "to": "y", "expr": "float32(x) * s", "dtype": "float32"}},
    ]  # fmt: skip
    assert run_plan(tmp_path, TENSORS, steps)["y"].tolist() == floats("row").tolist()


def test_codes_whose_scales_were_deleted_are_numbers_under_any_name(tmp_path: Path) -> None:
    steps = [
        {"delete": {"target": r"row\.weight_scale"}}, {"move": {"from": r"row\.weight", "to": "x"}},
        {"cast_": {"target": "x", "to": "float32"}},
    ]  # fmt: skip
    found = run_plan(tmp_path, TENSORS, steps)["x"]
    assert found.tolist() == TENSORS["row.weight"].astype(np.float32).tolist()


def test_codes_of_a_pytree_are_not_computed_on_after_they_were_renamed() -> None:
    tree = {"w": TENSORS["row.weight"], "w_scale": TENSORS["row.weight_scale"]}
    steps = [{"move": {"from": "w", "to": "x"}}, {"cast_": {"target": "x", "to": "float32"}}]
    with pytest.raises(PlanError, match="'x' holds codes of 'w', whose scales were left in 'w_scale'"):
        bs.load({"transforms": steps}).apply(tree)


# --- Configs ----------------------------------------------------------------------------------------------------------

CODED_CONFIG = {"model_type": "llama", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def model(folder: Path, tensors: dict[str, Array], config: dict[str, Any]) -> str:
    folder.mkdir()
    write(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def said_of(plan: dict[str, Any]) -> list[tuple[str, str]]:
    return [(note.code, note.hint) for note in bs.check(bs.load(plan)) if note.code in ("scale-left", "config-key")]


def test_a_scale_is_not_moved_after_codes_once_the_config_says_floats(tmp_path: Path) -> None:
    """What was left is dequantized first; moved after its codes it would be codes in a model of floats."""
    names = [n for n in TENSORS if n.startswith("row")]
    path = model(tmp_path / "m", {n: TENSORS[n] for n in names}, CODED_CONFIG)
    away = {"move": {"from": r"row\.weight", "to": "x.weight"}}
    back = {"dequantize": {"target": ".*", "to": "bfloat16"}}
    plan = {
        "inputs": [f"m::{path}"],
        "transforms": [away, back],
        "output": {"path": str(tmp_path / "out"), "alias": "m"},
    }
    ((code, hint),) = said_of(plan)
    assert code == "scale-left"
    step = yaml.safe_load(re.findall("`(.*)`", hint)[0])
    assert step == {"dequantize": {"target": "m::.*", "to": "bfloat16"}} and "Let `" in hint
    mended = plan | {"transforms": [step, away]}
    assert said_of(mended) == []
    bs.load(mended).run(durable=False)
    with safe_open(tmp_path / "out/model.safetensors", "np") as found:
        assert found.get_tensor("x.weight").astype(np.float32).tolist() == floats("row").tolist()
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"model_type": "llama"}


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 128}
LAYER = {f"model.layers.0.self_attn.{p}_proj.weight{tail}": x for p in "qkv"
         for tail, x in (("", codes_of((128, 128))), ("_scale_inv", scales_of((1, 1))))}  # fmt: skip


def test_a_config_that_says_nothing_of_codes_is_noted(tmp_path: Path) -> None:
    settings = CODED_CONFIG["quantization_config"]
    path = model(tmp_path / "m", LAYER, LLAMA | {"quantization_config": settings})
    away = {"config": {"remove": ["quantization_config"]}}
    plan = {"inputs": [path], "transforms": [away], "output": str(tmp_path / "out")}
    (said,) = [note for note in bs.check(bs.load(plan)) if "quantization_config" in note.message]
    assert said.message.endswith(
        "config.json has no quantization_config, but 'model.layers.0.self_attn.q_proj.weight' is quantized, as that of "
        "its checkpoint says"
    )
    patch = yaml.safe_load(re.findall("`(.*)`", said.hint)[0])["config"]
    assert patch["quantization_config"] == settings
    mended = plan | {"output": {"path": str(tmp_path / "out"), "config": patch}}
    assert not [note for note in bs.check(bs.load(mended)) if "quantization_config" in note.message]
    bs.load(mended).run(durable=False)
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization_config"] == settings


def test_a_config_that_never_said_anything_of_codes_is_not_noted(tmp_path: Path) -> None:
    path = model(tmp_path / "m", LAYER, LLAMA)
    plan = {"inputs": [path], "transforms": [{"config": {"patch": {"x": 1}}}], "output": str(tmp_path / "out")}
    assert not [note for note in bs.check(bs.load(plan)) if "quantization_config" in note.message]


# --- Computing on scales ----------------------------------------------------------------------------------------------

PARTS = [(which, part) for which, quantized in FORMATS.items() for part in quantized.parts]


@pytest.mark.parametrize(("which", "part"), PARTS)
def test_what_belongs_to_codes_is_not_computed_on_without_them(which: str, part: str, tmp_path: Path) -> None:
    step = {"compute": {"from": {"s": re.escape(part)}, "to": "new", "expr": "float32(s) + 1", "dtype": "float32"}}
    (bad,) = problems(tmp_path, FORMATS[which].tensors, [step])
    codes = next(iter(FORMATS[which].tensors))
    assert (bad.code, bad.severity) == ("scale-ignored", "error")
    assert f"'{part}'" in bad.message and f"codes are in '{codes}': this step ignores them" in bad.message
    floats = yaml.safe_load(re.findall("`(.*)`", bad.hint)[0])
    made = run_plan(tmp_path, FORMATS[which].tensors, [floats])
    assert made[FORMATS[which].name].astype(np.float32).tolist() == FORMATS[which].floats.tolist()


SCALE = r"row\.weight_scale"


@pytest.mark.parametrize(
    "alone",
    [
        {"scale_": {"target": SCALE, "by": 2}},
        {"add_": {"from": r"row2\.weight_scale", "to": "row.weight_scale"}},
        {"lerp_": {"from": r"row2\.weight_scale", "to": "row.weight_scale", "t": 0.5}},
        {"clamp_": {"target": SCALE, "max": 1}},
        {"cast_": {"target": SCALE, "to": "float16"}},
        {"cast": {"from": SCALE, "to": "s", "dtype": "bfloat16"}},
        {"compute": {"from": {"s": f"{SCALE}::[:2]"}, "to": "s", "expr": "s * s"}},
        {"reduce": {"from": SCALE, "to": "s", "mode": "mean"}},
        {"quantize": {"target": SCALE, "to": "int8"}},
        {"wanda_": {"target": SCALE, "norms": "one.weight_scale", "ratio": 0.5}},
        {"phlora_": {"target": SCALE, "rank": 1}},
    ],
    ids=lambda s: next(iter(s)),
)  # fmt: skip
def test_scales_are_not_computed_on_without_their_codes(alone: Any, tmp_path: Path) -> None:
    bad = next(d for d in problems(tmp_path, TENSORS, [alone]) if d.severity == "error")
    assert bad.code == "scale-ignored"
    assert re.search(r"'row2?\.weight_scale' holds scales, f32\[4,1\], whose codes are in 'row2?\.weight'", bad.message)


@pytest.mark.parametrize(
    "right",
    [
        {"cast_": {"target": SCALE, "to": "float64"}},
        {"reshape": {"from": SCALE, "to": "s", "shape": [4]}},
        {"copy": {"from": f"{SCALE}::[1:]", "to": "s"}},
        {"assert": {"finite": SCALE}},
        {"compute": {"from": {"x": r"row\.weight", "s": "row.weight_scale"}, "to": "y", "expr": "float32(x) / s"}},
    ],
    ids=lambda s: next(iter(s)),
)  # fmt: skip
def test_scales_are_moved_widened_and_looked_at_freely(right: Any, tmp_path: Path) -> None:
    assert [d.code for d in problems(tmp_path, TENSORS, [right]) if d.severity == "error"] == []


def test_scales_under_a_name_of_their_own_are_numbers(tmp_path: Path) -> None:
    steps = [{"copy": {"from": SCALE, "to": "s"}}, {"scale_": {"target": "s", "by": 2}}]
    assert run_plan(tmp_path, TENSORS, steps)["s"].tolist() == (2 * TENSORS["row.weight_scale"]).tolist()


def test_scales_that_several_codes_share_go_with_any_of_them(tmp_path: Path) -> None:
    steps = [
        {"fill_": {"target": r"row2?\.weight_scale", "mode": "constant", "value": 2}},
        {"compute": {"from": {"x": r"row\.weight", "t": "row.weight_scale", "s": "row2.weight_scale"}, "to": "y",
                     "expr": "float32(x) * s * t", "dtype": "float32"}},
    ]  # fmt: skip
    made = run_plan(tmp_path, TENSORS, steps)["y"]
    assert made.tolist() == (4 * TENSORS["row.weight"].astype(np.float32)).tolist()
