"""`quantize` and `dequantize` on checkpoints: what is found by its names, what becomes of names and configs, and what
is refused or noted of codes without their scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.codes import fitting_blocks
from brainsurgery_jax.dtypes import BY_NAME
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.numerics import quantities as q
from tests.checkpoints import normal, problems, run_plan, write

RNG = np.random.default_rng(7)
FP8, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16
F32, F16 = BY_NAME["float32"], BY_NAME["float16"]
Tensors = dict[str, np.ndarray]


def fp8(shape: tuple[int, ...] = (256, 128)) -> np.ndarray:
    return (normal(shape) * 50).astype(FP8)


def step(**keys: Any) -> dict[str, Any]:
    return {"dequantize": {"target": ".*", "to": "float32"} | keys}


def scaled(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Codes times scales that broadcast."""
    return codes.astype(np.float32) * scales.astype(np.float32)


# --- Formats ----------------------------------------------------------------------------------------------------------

SCALES = {
    "one": ((), lambda s: s), "one in a list": ((1,), lambda s: s[0]), "each row": ((256,), lambda s: s[:, None]),
    "each row, two axes": ((256, 1), lambda s: s), "each column": ((1, 128), lambda s: s),
    "blocks": ((2, 1), lambda s: np.repeat(s, 128, 0)),
    "smaller blocks": ((8, 4), lambda s: np.repeat(np.repeat(s, 32, 0), 32, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", ["w_scale", "w_scale_inv"])
@pytest.mark.parametrize("which", SCALES)
def test_scales_are_read_by_their_shape(which: str, name: str, tmp_path: Path) -> None:
    shape, spread = SCALES[which]
    scales = np.abs(normal((256, 128)))[: (shape or (1,))[0], : (shape[1:] or (1,))[0]].reshape(shape)
    codes = fp8()
    found = run_plan(tmp_path, {"w": codes, name: scales, "norm": np.ones(3, np.float32)}, [step()])
    assert set(found) == {"w", "norm"}
    assert found["w"].tolist() == scaled(codes, spread(scales)).tolist()


@pytest.mark.parametrize("size", [60, 64])
def test_blocks_of_which_a_power_of_two_fits_as_well_have_to_be_named(size: int, tmp_path: Path) -> None:
    """Five scales for 300 rows: blocks of 60 divide them evenly, and five blocks of 64 cover them."""
    codes, scales = fp8((300, 1)), np.abs(normal((5, 1)))
    tensors = {"w": codes, "w_scale_inv": scales}
    (found,) = problems(tmp_path, tensors, [step()])
    assert found.code == "codes-unknown" and "may have blocks of 60 x 1 or of 64 x 1" in found.message
    made = run_plan(tmp_path, tensors, [step(block=[size, 1])])
    assert made["w"].tolist() == scaled(codes, np.repeat(scales, size, 0)[:300]).tolist()


def test_rows_that_fill_no_block_have_the_last_scale(tmp_path: Path) -> None:
    codes, scales = fp8((300, 200)), np.abs(normal((3, 2)))
    found = run_plan(tmp_path, {"w": codes, "w_scale_inv": scales}, [step()])["w"]
    spread = np.repeat(np.repeat(scales, 128, 0), 128, 1)[:300, :200]
    assert found.tolist() == scaled(codes, spread).tolist()


def test_block_sizes_may_be_given(tmp_path: Path) -> None:
    codes, scales = fp8((10, 6)), np.abs(normal((4, 2)))
    tensors = {"w": codes, "w_scale_inv": scales}
    (bad,) = problems(tmp_path, tensors, [step()])
    assert bad.code == "codes-unknown"
    assert bad.hint.endswith("a scale: `block: [3, 3]`. Sizes up to [3, 5] fit as well.")
    found = run_plan(tmp_path, tensors, [step(block=[3, 4])])["w"]
    assert found.tolist() == scaled(codes, np.repeat(np.repeat(scales, 3, 0), 4, 1)[:10, :6]).tolist()


@pytest.mark.parametrize("shape", [(10, 6), (128, 48), (7, 1), (1, 300)])
@pytest.mark.parametrize("counts", [(4, 2), (2, 1), (7, 1), (3, 5), (1, 3), (1, 1), (5, 300)])
def test_blocks_that_fit_are_those_that_cover_a_matrix(shape: tuple[int, int], counts: tuple[int, int]) -> None:
    sizes = [
        [b for b in range(1, n + 1) if len(range(0, n, b)) == count] for n, count in zip(shape, counts, strict=True)
    ]
    wanted = None if [] in sizes else ((sizes[0][0], sizes[1][0]), (sizes[0][-1], sizes[1][-1]))
    assert fitting_blocks(shape, counts) == wanted


JOINED = {"w": fp8((128, 48)), "w_scale": np.array([2, 3], np.float32)}
BY_ROWS = JOINED["w"].astype(np.float32) * np.repeat([2, 3], 64)[:, None]


@pytest.mark.parametrize("block", [None, [128, 128]])
def test_scales_that_no_block_fits_are_said_to_be_such(block: Any, tmp_path: Path) -> None:
    (bad,) = problems(tmp_path, JOINED, [step(block=block) if block else step()])
    assert bad.hint.startswith("No `block` fits") and "Repeat them to one for each row" in bad.hint
    steps = [{"repeat_": {"target": "w_scale", "times": 64, "mode": "each"}}, step()]
    assert run_plan(tmp_path, JOINED, steps)["w"].tolist() == BY_ROWS.tolist()
    parts = {
        "p": JOINED["w"][:64],
        "p_scale": np.asarray([2], np.float32),
        "q": JOINED["w"][64:],
        "q_scale": np.asarray([3], np.float32),
    }
    (tmp_path / "parts").mkdir()
    joined = run_plan(tmp_path / "parts", parts, [step(), {"concat": {"from": ["p", "q"], "to": "w"}}])
    assert joined["w"].tolist() == BY_ROWS.tolist()


def test_a_block_that_is_not_that_of_the_scales_is_answered_by_one_that_is(tmp_path: Path) -> None:
    tensors = JOINED | {"w_scale": JOINED["w_scale"][:, None]}
    (bad,) = problems(tmp_path, tensors, [step(block=[128, 128])])
    assert "cannot be cut into blocks of 128 x 128 with scales f32[2,1]" in bad.message
    assert "`block: [64, 48]`. Sizes up to [127, 48] fit as well." in bad.hint
    assert run_plan(tmp_path, tensors, [step(block=[64, 48])])["w"].tolist() == BY_ROWS.tolist()
    one = JOINED | {"w_scale": np.asarray([2], np.float32)}
    (tmp_path / "one").mkdir()
    (bad,) = problems(tmp_path / "one", one, [step(block=[128, 128])])
    assert bad.hint == "Leave out `block`: the shape of these scales says what shares one."
    assert run_plan(tmp_path / "one", one, [step()])["w"].tolist() == scaled(one["w"], one["w_scale"]).tolist()


STACKS = {"w": fp8((2, 8, 6)), "w_scale": np.asarray([[2], [3]], np.float32)}


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
def test_a_stack_of_matrices_with_a_scale_each_is_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    found = run_plan(tmp_path, STACKS | {"w_scale": STACKS["w_scale"].reshape(shape)}, [step()])
    assert found["w"].tolist() == scaled(STACKS["w"], STACKS["w_scale"][..., None]).tolist()


@pytest.mark.parametrize("to", ["int8", "float8_e4m3fn"])
def test_what_is_quantized_with_one_scale_is_stacked_and_comes_back(to: str, tmp_path: Path) -> None:
    floats = {"x.0": normal((8, 8)), "x.1": normal((8, 8)) * 50}
    steps: list[Any] = [{"quantize": {"target": "x.*", "to": to, "per": "tensor"}},
             {"stack": {"from": r"x\.(?P<i>\d)", "to": "y", "over": "i"}},
             {"stack": {"from": r"x\.(?P<i>\d)_scale", "to": "y_scale", "over": "i"}}]  # fmt: skip
    found = run_plan(tmp_path, floats, [*steps, step(target="y"), step(target="x.*")])
    assert found["y"].tolist() == np.stack([found["x.0"], found["x.1"]]).tolist()


def test_a_stack_of_experts_has_a_scale_for_each(tmp_path: Path) -> None:
    codes, scales = fp8((3, 8, 6)), np.abs(normal((3,)))
    found = run_plan(tmp_path, {"e.gate_up_proj": codes, "e.gate_up_proj_scale": scales}, [step()])
    assert found["e.gate_up_proj"].tolist() == scaled(codes, scales[:, None, None]).tolist()


def test_gpt_oss_becomes_what_its_class_holds(tmp_path: Path) -> None:
    blocks = RNG.integers(0, 256, (3, 6, 2, 16), dtype=np.uint8)
    exponents = RNG.integers(120, 130, (3, 6, 2), dtype=np.uint8)
    tensors = {"x.gate_up_proj_blocks": blocks, "x.gate_up_proj_scales": exponents}
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(3, 6, 2, 32).view(ml_dtypes.float4_e2m1fn)
    wanted = codes.astype(np.float32) * np.exp2(exponents.astype(np.float32) - 127)[..., None]
    wanted = wanted.reshape(3, 6, 64)
    found = run_plan(tmp_path, tensors, [step()])
    assert {n: x.tolist() for n, x in found.items()} == {"x.gate_up_proj": wanted.transpose(0, 2, 1).tolist()}
    (tmp_path / "rows").mkdir()
    found = run_plan(tmp_path / "rows", tensors, [step(transposed=False)])
    assert found["x.gate_up_proj"].tolist() == wanted.tolist()


def words(codes: np.ndarray, order: list[int], axis: int) -> np.ndarray:
    """Codes of four bits, eight to a word along an axis, in Python's own arithmetic."""
    rows = np.moveaxis(codes, axis, -1)
    packed = [[sum(int(row[at + o]) << 4 * n for n, o in enumerate(order)) for at in range(0, len(row), 8)]
              for row in rows]  # fmt: skip
    return np.moveaxis(np.array(packed, np.uint32).view(np.int32), -1, axis).copy()


PLAIN, AWQ = [0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq_takes_its_zeros_as_the_config_says(version: str, tmp_path: Path) -> None:
    codes, zeros = RNG.integers(0, 16, (32, 16)), RNG.integers(1, 16, (2, 16))
    scales, owners = np.abs(normal((2, 16))).astype(np.float16), RNG.integers(0, 2, 32).astype(np.int32)
    stored = zeros - 1 if version == "gptq" else zeros
    tensors = {"l.qweight": words(codes, PLAIN, 0), "l.qzeros": words(stored, PLAIN, 1), "l.scales": scales,
               "l.g_idx": owners}  # fmt: skip
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": version}}
    found = in_a_folder(tmp_path, tensors, config, [step(to="float16")])
    wanted = ((codes - zeros[owners]) * scales[owners].astype(np.float32)).astype(np.float16)
    assert {n: np.asarray(x).tolist() for n, x in found.items()} == {"l.weight": wanted.T.tolist()}
    assert json.loads((tmp_path / "out/config.json").read_text()) == {}


def test_awq_is_told_by_its_shapes(tmp_path: Path) -> None:
    codes, zeros = RNG.integers(0, 16, (32, 16)), RNG.integers(0, 16, (2, 16))
    scales = np.abs(normal((2, 16))).astype(np.float16)
    tensors = {"l.qweight": words(codes, AWQ, 1), "l.qzeros": words(zeros, AWQ, 1), "l.scales": scales}
    found = run_plan(tmp_path, tensors, [step(to="float16")])
    owners = np.arange(32) // 16
    wanted = ((codes - zeros[owners]) * scales[owners].astype(np.float32)).astype(np.float16)
    assert {n: x.tolist() for n, x in found.items()} == {"l.weight": wanted.T.tolist()}


def awq_config(version: str | None) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "awq", "bits": 4} | ({"version": version} if version else {})}


@pytest.mark.parametrize("version", [None, "GEMM", "exllama"])
def test_awq_of_version_gemm_is_read(version: str | None, tmp_path: Path) -> None:
    tensors = {"l.qweight": np.zeros((32, 2), np.int32), "l.qzeros": words(np.full((2, 16), 3), AWQ, 1),
               "l.scales": np.ones((2, 16), np.float16)}  # fmt: skip
    found = in_a_folder(tmp_path, tensors, awq_config(version), [step()])
    assert found["l.weight"].tolist() == np.full((16, 32), -3).tolist()


@pytest.mark.parametrize("version", ["gemv", "gemv_fast", "llm-awq", "gemm"])
def test_awq_of_other_versions_is_refused_though_its_shapes_are_those_of_gptq(version: str, tmp_path: Path) -> None:
    """32 outputs of 256 inputs: words [out, in / 8], and scales [out, 32], filled up to whole words of zeros."""
    tensors = {"l.qweight": np.ones((32, 32), np.int32), "l.qzeros": np.ones((32, 4), np.int32),
               "l.scales": np.ones((32, 32), np.float16),
               "w": fp8((4, 6)), "w_scale": np.ones(1, np.float32)}  # fmt: skip
    with pytest.raises(PlanError, match="AWQ") as refused:
        in_a_folder(tmp_path, tensors, awq_config(version), [step()])
    (bad,) = refused.value.diagnostics
    assert bad.code == "codes-unknown" and f"'{version}'" in bad.message
    assert bad.hint.endswith("narrow the pattern, so that it leaves such tensors out.")
    (tmp_path / "narrow").mkdir()
    found = in_a_folder(tmp_path / "narrow", tensors, awq_config(version), [step(target="w")])
    assert found["w"].tolist() == tensors["w"].astype(np.float32).tolist()


@pytest.mark.parametrize("groups", [1, 4])
def test_zeros_of_int8_are_subtracted(groups: int, tmp_path: Path) -> None:
    codes = RNG.integers(-128, 128, (6, 16)).astype(np.int8)
    scales, zeros = np.abs(normal((6, groups))), RNG.integers(-128, 128, (6, groups)).astype(np.int8)
    tensors = {"l.weight": codes, "l.weight_scale": scales, "l.weight_zero_point": zeros}
    found = run_plan(tmp_path, tensors, [step()])
    owners = np.arange(16) // (16 // groups)
    wanted = (codes.astype(np.float32) - zeros[:, owners]) * scales[:, owners]
    assert {n: x.tolist() for n, x in found.items()} == {"l.weight": wanted.tolist()}


@pytest.mark.parametrize("said", [True, False], ids=["said", "unsaid"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(("rows", "columns", "groups"), [(16, 64, 2), (12, 30, 1), (8, 48, 48)])
def test_what_compressed_tensors_packs_is_read(
    bits: int, zeros: bool, rows: int, columns: int, groups: int, said: bool, tmp_path: Path
) -> None:
    half, count = 1 << (bits - 1), 32 // bits
    codes = RNG.integers(-half, half, (rows, columns))
    scales = (np.abs(normal((rows, groups))) + 0.01).astype(np.float16)
    points = RNG.integers(-half, half, (rows, groups)) if zeros else np.zeros((rows, groups), int)
    tensors = {"l.weight_packed": rows_of_words(codes + half, count), "l.weight_scale": scales,
               "l.weight_shape": np.array([rows, columns])}  # fmt: skip
    if zeros:
        tensors["l.weight_zero_point"] = rows_of_words((points + half).T, count).T.copy()
    weights = {"num_bits": bits, "type": "int", "symmetric": not zeros}
    config = {"quantization_config": {"format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}}}}
    found = in_a_folder(tmp_path, tensors, config if said else {}, [step(to="float32")])
    owners = np.arange(columns) // (columns // groups)
    wanted = (codes - points[:, owners]).astype(np.float32) * scales.astype(np.float32)[:, owners]
    assert {n: np.asarray(x).tolist() for n, x in found.items()} == {"l.weight": wanted.tolist()}
    assert json.loads((tmp_path / "out/config.json").read_text()) == {}


NAMED, CLASSES = (["re:a.*"], ["re:b$"]), (["Linear"], ["Linear"])


@pytest.mark.parametrize("targets", [NAMED, CLASSES, (["Linear"], ["b"])], ids=["patterns", "classes", "a name"])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("columns", [64, 60])
def test_each_group_of_a_config_has_bits_of_its_own(
    targets: tuple[list[str], list[str]], swapped: bool, columns: int, tmp_path: Path
) -> None:
    tensors, wanted, groups = {}, {}, []
    for name, bits, target in zip("ab", (4, 8), targets, strict=True):
        codes = RNG.integers(-(1 << (bits - 1)), 1 << (bits - 1), (16, columns))
        scales = (np.abs(normal((16, 1))) + 0.01).astype(np.float16)
        tensors |= {f"{name}.weight_packed": rows_of_words(codes + (1 << (bits - 1)), 32 // bits),
                    f"{name}.weight_scale": scales, f"{name}.weight_shape": np.array([16, columns])}  # fmt: skip
        wanted[f"{name}.weight"] = (codes.astype(np.float32) * scales.astype(np.float32)).tolist()
        groups.append({"targets": target, "weights": {"num_bits": bits, "type": "int"}})
    named = {f"group_{at}": group for at, group in enumerate(groups[::-1] if swapped else groups)}
    config = {"quantization_config": {"format": "pack-quantized", "config_groups": named}}
    found = in_a_folder(tmp_path, tensors, config, [step(to="float32")])
    assert {n: np.asarray(x).tolist() for n, x in found.items()} == wanted


def test_targets_tell_the_bits_of_rows_of_which_one_word_is_enough(tmp_path: Path) -> None:
    """Three columns fit into one word, of four bits and of eight."""
    codes = np.array([[-8, 1, 7], [3, -2, 0]])
    tensors = {f"{n}.{key}": value for n, bits in (("a", 4), ("b", 8)) for key, value in {
        "weight_packed": rows_of_words(codes + (1 << (bits - 1)), 32 // bits),
        "weight_scale": np.ones((2, 1), np.float16), "weight_shape": np.array([2, 3])}.items()}  # fmt: skip
    groups = {str(bits): {"targets": [target], "weights": {"num_bits": bits}} for target, bits in
              (("re:b", 8), ("re:a", 4))}  # fmt: skip
    config = {"quantization_config": {"format": "pack-quantized", "config_groups": groups}}
    (tmp_path / "classes").mkdir()
    classes = json.loads(json.dumps(config).replace("re:a", "Linear").replace("re:b", "Linear"))
    with pytest.raises(PlanError, match="may be of 4 or 8 bits") as refused:
        in_a_folder(tmp_path / "classes", tensors, classes, [step(to="float32")])
    assert {d.hint for d in refused.value.diagnostics} == {
        "Name the module in the `targets` of its group, in config.json."
    }
    found = in_a_folder(tmp_path, tensors, config, [step(to="float32")])
    assert found["a.weight"].tolist() == found["b.weight"].tolist() == codes.tolist()


def rows_of_words(codes: np.ndarray, count: int) -> np.ndarray:
    """Rows of codes in words, from the lowest bits on, the last of which are filled up."""
    full = np.pad(codes, ((0, 0), (0, -codes.shape[1] % count))).reshape(codes.shape[0], -1, count)
    return np.array([[sum(int(c) << 32 // count * at for at, c in enumerate(word)) for word in row] for row in full],
                    np.uint32).view(np.int32)  # fmt: skip


def test_bitsandbytes_int8_is_read(tmp_path: Path) -> None:
    codes, maxima = RNG.integers(-127, 128, (6, 10)).astype(np.int8), np.abs(normal((6,)))
    tensors = {"l.weight": codes, "l.SCB": maxima, "l.weight_format": np.zeros((), np.uint8)}
    found = run_plan(tmp_path, tensors, [step()])
    assert set(found) == {"l.weight"}
    assert np.allclose(found["l.weight"], codes * (maxima[:, None] / 127), rtol=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_nf4_has_the_shape_that_its_state_says(nested: bool, tmp_path: Path) -> None:
    table, size = np.linspace(-1, 1, 16).astype(np.float32), 24 * 64
    packed = RNG.integers(0, 256, (size // 2, 1), dtype=np.uint8)
    maxima = np.abs(normal((size // 64,)))
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [24, 64]}
    own: Tensors = {".absmax": maxima}
    if nested:
        inner, codes, outer = normal((256,)), RNG.integers(0, 256, maxima.size, dtype=np.uint8), np.abs(normal((2,)))
        own = {".absmax": codes, ".nested_quant_map": inner, ".nested_absmax": outer}
        state |= {"nested_blocksize": 16, "nested_offset": 0.25}
        maxima = inner[codes] * np.repeat(outer, 16)[: maxima.size] + np.float32(0.25)
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors = {"l.weight": packed, "l.weight.quant_map": table, "l.weight.quant_state.bitsandbytes__nf4": text}
    found = run_plan(tmp_path, tensors | {f"l.weight{ending}": x for ending, x in own.items()}, [step()])
    order = np.stack([packed >> 4, packed & 15], -1).reshape(-1, 64)
    assert set(found) == {"l.weight"}
    assert np.allclose(found["l.weight"], (table[order] * maxima[:, None]).reshape(24, 64), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3), (5, 7), (33, 1), (1, 129), (9, 32)], ids=str)
def test_nf4_of_an_odd_number_of_elements_ends_within_a_byte(shape: tuple[int, int], tmp_path: Path) -> None:
    table, size = np.linspace(-1, 1, 16).astype(np.float32), shape[0] * shape[1]
    packed = RNG.integers(0, 256, (-(-size // 2), 1), dtype=np.uint8)
    maxima = np.abs(normal((-(-size // 64),)))
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(shape)}
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors = {"w": packed, "w.absmax": maxima, "w.quant_map": table, "w.quant_state.bitsandbytes__nf4": text}
    found = run_plan(tmp_path, tensors, [step()])
    codes = np.stack([packed >> 4, packed & 15], -1).reshape(-1)[:size]
    assert np.allclose(found["w"], (table[codes] * np.repeat(maxima, 64)[:size]).reshape(shape), rtol=1e-6)


def test_a_state_that_is_no_state_stops_the_run(tmp_path: Path) -> None:
    tensors = {"w": np.zeros((32, 1), np.uint8), "w.absmax": np.ones(1, np.float32),
               "w.quant_map": np.zeros(16, np.float32),
               "w.quant_state.bitsandbytes__nf4": np.frombuffer(b"nonsense", np.uint8)}  # fmt: skip
    with pytest.raises(PlanError, match="does not hold the JSON of bitsandbytes"):
        run_plan(tmp_path, tensors, [step()])


# --- There and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"to": "float8_e4m3fn", "block": [128, 128]}, {"to": "float8_e4m3fn", "per": "block"},
        {"to": "float8_e5m2", "per": "tensor"}, {"to": "float8_e4m3fn", "per": "channel"}, {"to": "int8"},
        {"to": "int8", "per": "tensor"}, {"to": "int8", "per": "block"}, {"to": "float8_e4m3fn", "block": [7, 5]},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_quantized_comes_back_within_half_a_step(keys: dict[str, Any], tmp_path: Path) -> None:
    x = normal((300, 130))
    plan = [{"quantize": {"target": "w", **keys}}]
    made = run_plan(tmp_path, {"w": x}, plan)
    in_blocks = ("block" in keys or keys.get("per") == "block") and keys["to"] != "int8"
    ending = "_scale_inv" if in_blocks else "_scale"
    assert set(made) == {"w", f"w{ending}"}
    (tmp_path / "back").mkdir()
    block = {"block": keys["block"]} if "block" in keys else {}
    back = run_plan(tmp_path / "back", made, [step(**block)])
    steps = {"int8": 1 / 254, "float8_e4m3fn": 1 / 16, "float8_e5m2": 1 / 8}[keys["to"]]
    scale = np.abs(x).max() if keys["to"] == "int8" else np.abs(x) + 1e-2
    assert set(back) == {"w"} and (np.abs(back["w"] - x) <= steps * scale).all()


def test_experts_quantized_to_mxfp4_come_back(tmp_path: Path) -> None:
    x = normal((2, 64, 6)).astype(BF16)
    made = run_plan(tmp_path, {"p": x}, [{"quantize": {"target": "p", "to": "mxfp4"}}])
    assert {n: a.shape for n, a in made.items()} == {"p_blocks": (2, 6, 2, 16), "p_scales": (2, 6, 2)}
    (tmp_path / "back").mkdir()
    back = run_plan(tmp_path / "back", made, [step(to="bfloat16")])["p"]
    rows = x.astype(np.float32).transpose(0, 2, 1)
    wanted = q.dequantize_mxfp4(made["p_blocks"], made["p_scales"], dtype=F32)
    assert back.astype(np.float32).tolist() == np.asarray(wanted).transpose(0, 2, 1).tolist()
    assert (np.abs(wanted - rows) <= np.abs(rows).max() / 4).all()


def packed_by_hand(x: np.ndarray, group: int, order: list[int], axis: int, less: int) -> Tensors:
    """A matrix [out, in] in words of four bits, group by group and output by output."""
    outputs, inputs = x.shape
    scales = np.ones((inputs // group, outputs), np.float16)
    zeros, codes = np.zeros(scales.shape, int), np.zeros((inputs, outputs), int)
    for g in range(inputs // group):
        for out in range(outputs):
            own = x[out, g * group : (g + 1) * group].astype(np.float32)
            low, high = min(own.min(), np.float32(0)), max(own.max(), np.float32(0))
            if high > low:
                scales[g, out] = (high - low) / np.float32(15)
            scale = np.float32(scales[g, out])
            zeros[g, out] = np.clip(np.rint(-low / scale), 0, 15)
            codes[g * group : (g + 1) * group, out] = np.clip(np.rint(own / scale) + zeros[g, out], 0, 15)
    return {"qweight": words(codes, order, axis), "qzeros": words((zeros - less) % 16, order, 1), "scales": scales}


@pytest.mark.parametrize("to", ["gptq", "awq"])
@pytest.mark.parametrize("size", [1e-6, 1e-7, 1e-9])
def test_weights_too_small_for_the_scales_of_their_dtype_are_refused(size: float, to: str, tmp_path: Path) -> None:
    x = normal((8, 16))
    x *= size / np.abs(x).max()
    with pytest.raises(PlanError, match="a number too large or too small for its scale"):
        run_plan(tmp_path, {"l.weight": x}, [{"quantize": {"target": ".*", "to": to, "group": 8}}])


@pytest.mark.parametrize("to", ["gptq", "awq"])
def test_a_dead_group_beside_others_is_packed(to: str, tmp_path: Path) -> None:
    x = normal((8, 16))
    x[3, :8] *= 1e-7
    back = [{"quantize": {"target": ".*", "to": to, "group": 8}}, {"dequantize": {"target": ".*", "to": "float32"}}]
    found = run_plan(tmp_path, {"l.weight": x}, back)["l.weight"]
    assert np.abs(found[3, :8] - x[3, :8]).max() < 1e-6
    assert np.abs(found - x).max() < 0.2


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("to", ["gptq", "awq"])
def test_small_weights_are_packed_where_their_scales_hold_them(to: str, dtype: Any, tmp_path: Path) -> None:
    x = (normal((8, 16)) * (1e-4 if dtype == np.float32 else 1e-20)).astype(dtype)
    x[2] = 0
    back = [{"quantize": {"target": ".*", "to": to, "group": 8}}, {"dequantize": {"target": ".*", "to": "float32"}}]
    found = run_plan(tmp_path, {"l.weight": x}, back)["l.weight"]
    wide = x.astype(np.float32).reshape(8, 2, 8)
    steps = (np.maximum(wide.max(2), 0) - np.minimum(wide.min(2), 0)) / 15
    gap = np.abs(found.reshape(8, 2, 8) - wide)
    assert (gap <= 1.1 * steps[:, :, None]).all()


@pytest.mark.parametrize("to", ["gptq", "awq"])
@pytest.mark.parametrize("group", [16, 32])
def test_a_matrix_is_packed_into_words_of_four_bits(to: str, group: int, tmp_path: Path) -> None:
    x = normal((24, 64))
    x[3, :32], x[4] = np.abs(x[3, :32]), 0  # a group without negative numbers, and nothing but zeros
    made = run_plan(tmp_path, {"l.weight": x}, [{"quantize": {"target": ".*", "to": to, "group": group}}])
    wanted = packed_by_hand(x, group, *((PLAIN, 0, 1) if to == "gptq" else (AWQ, 1, 0)))
    if to == "gptq":
        assert made.pop("l.g_idx").tolist() == [i // group for i in range(64)]
    assert {n: a.tolist() for n, a in made.items()} == {f"l.{n}": a.tolist() for n, a in wanted.items()}
    (tmp_path / "back").mkdir()
    back = run_plan(tmp_path / "back", made, [step()])["l.weight"]
    steps = np.repeat(made["l.scales"].astype(np.float32), group, 0).T
    assert (np.abs(back - x) <= 0.51 * steps + 1e-6).all()


def test_large_matrices_are_packed_part_by_part_to_the_same_words(tmp_path: Path) -> None:
    x = normal((64, 65536)).astype(np.float16)
    made = run_plan(tmp_path, {"l.weight": x}, [{"quantize": {"target": ".*", "to": "awq"}}])
    assert made["l.qweight"].shape == (65536, 8) and made["l.qzeros"].shape == (512, 8)
    (tmp_path / "few").mkdir()
    few = run_plan(tmp_path / "few", {"l.weight": x[:8]}, [{"quantize": {"target": ".*", "to": "awq"}}])
    assert all(np.array_equal(made[n][:, : few[n].shape[1]], few[n]) for n in few)


# --- Configs ----------------------------------------------------------------------------------------------------------


def in_a_folder(folder: Path, tensors: Tensors, config: Any, steps: list[Any]) -> Any:
    """What a plan makes of a model with a config."""
    (folder / "model").mkdir()
    write(folder / "model/model.safetensors", tensors)
    (folder / "model/config.json").write_text(json.dumps(config))
    plan = {"inputs": [str(folder / "model")], "transforms": steps, "output": {"path": str(folder / "out")}}
    bs.load(plan).run(durable=False)
    return bs.open(str(folder / "out"))


TWO = {"a.weight": fp8((4, 6)), "a.weight_scale": np.ones((), np.float32), "b.weight": fp8((4, 6)),
       "b.weight_scale": np.ones((), np.float32)}  # fmt: skip
OLD = {"dtype": "bfloat16", "quantization_config": {"quant_method": "fp8", "modules_to_not_convert": ["head"]}}


def test_a_config_says_no_longer_that_floats_are_codes(tmp_path: Path) -> None:
    in_a_folder(tmp_path, TWO, OLD, [step(to="bfloat16")])
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"dtype": "bfloat16"}


def test_a_config_names_what_alone_is_floats(tmp_path: Path) -> None:
    in_a_folder(tmp_path, TWO, OLD, [step(target="a.*", to="bfloat16")])
    found = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert found == {"quant_method": "fp8", "modules_to_not_convert": ["head", "a"]}


def test_a_config_says_how_weights_are_quantized(tmp_path: Path) -> None:
    tensors = {"a.weight": normal((4, 6)), "norm.weight": normal((6,)), "head.weight": normal((4, 6))}
    quantized = {"quantize": {"target": "a.weight", "to": "float8_e4m3fn", "block": [2, 2]}}
    in_a_folder(tmp_path, tensors, {"dtype": "float32"}, [quantized])
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization_config"] == {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [2, 2],
        "modules_to_not_convert": ["head"],
    }  # fmt: skip


@pytest.mark.parametrize(("to", "own"), [("gptq", {"sym": False, "desc_act": False}), ("awq", {"version": "gemm"})])
def test_a_config_says_how_words_are_packed(to: str, own: dict[str, Any], tmp_path: Path) -> None:
    tensors = {"a.weight": normal((8, 64)), "head.weight": normal((4, 6))}
    in_a_folder(tmp_path, tensors, {}, [{"quantize": {"target": "a.*", "to": to, "group": 32}}])
    found = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert own.items() <= found.items() and found["modules_to_not_convert"] == ["head"]
    assert (found["quant_method"], found["bits"], found["group_size"]) == (to, 4, 32)


def test_a_second_step_that_quantizes_alike_adds_to_the_first(tmp_path: Path) -> None:
    tensors = {f"{n}.weight": normal((4, 6)) for n in "abc"}
    in_a_folder(tmp_path, tensors, {}, [{"quantize": {"target": f"{n}.*", "to": "int8"}} for n in "ab"])
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["ignore"] == ["c"]


def test_a_second_step_that_quantizes_otherwise_is_refused(tmp_path: Path) -> None:
    tensors = {f"{n}.weight": normal((4, 6)) for n in "ab"}
    other = {"quantize": {"target": "b.*", "to": "float8_e4m3fn", "block": [2, 2]}}
    first = {"quantize": {"target": "a.*", "to": "int8"}}
    for folder in ("as written", "mended"):
        (tmp_path / folder).mkdir()
    with pytest.raises(PlanError, match=r"'a\.weight' is quantized already, otherwise.*\n.*`dequantize`"):
        in_a_folder(tmp_path / "as written", tensors, {}, [first, other])
    in_a_folder(tmp_path / "mended", tensors, {}, [first, step(target="a.*"), other])
    config = json.loads((tmp_path / "mended/out/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "fp8"


def test_scales_of_activations_stay(tmp_path: Path) -> None:
    found = run_plan(tmp_path, {**TWO, "a.input_scale": np.ones((), np.float32)}, [step()])
    assert set(found) == {"a.weight", "b.weight", "a.input_scale"}


# --- Codes without their scales ---------------------------------------------------------------------------------------

SCALED: Tensors = {"w": fp8((4, 6)), "w_scale": np.abs(normal((4, 1))), "v": fp8((4, 6))}


@pytest.mark.parametrize(
    "alone",
    [
        {"cast_": {"target": "w", "to": "float32"}},
        {"cast": {"from": "w", "to": "u", "dtype": "bfloat16"}},
        {"scale_": {"target": "w", "by": 2}},
        {"add_": {"from": "w", "to": "v"}},
        {"add_": {"from": "v", "to": "w"}},
        {"compute": {"from": {"w": "w"}, "expr": "w * 2"}},
        {"compute": {"from": {"w": "w::[:2]"}, "to": "u", "expr": "float32(w) + 1", "dtype": "float32"}},
        {"reduce": {"from": "w", "to": "u", "mode": "mean"}},
    ],
    ids=lambda s: next(iter(s)),
)
def test_codes_are_not_computed_on_without_their_scales(alone: Any, tmp_path: Path) -> None:
    (bad,) = problems(tmp_path, SCALED, [alone])
    assert (bad.code, bad.severity) == ("scale-ignored", "error")
    assert "'w' holds codes, f8_e4m3fn[4,6], whose scales are in 'w_scale'" in bad.message
    assert bad.hint == "Make floats of it before: `dequantize: {target: w, to: bfloat16}`."


@pytest.mark.parametrize(
    "right",
    [
        {"compute": {"from": {"w": "w", "s": "w_scale"}, "to": "u", "expr": "float32(w) * s", "dtype": "float32"}},
        {"cast_": {"target": "v", "to": "float32"}},
        {"cast_": {"target": "w", "to": "float8_e4m3fn"}},
        {"reshape": {"from": "w", "to": "u", "shape": [6, 4]}},
        {"transpose": {"from": "w", "to": "u"}},
        {"assign": {"from": "v", "to": "w"}},
        {"assert": {"finite": "w"}},
        {"stack": {"from": ["w", "v"], "to": "u"}},
    ],
    ids=lambda s: next(iter(s)),
)
def test_codes_are_moved_and_looked_at_freely(right: Any, tmp_path: Path) -> None:
    assert [d.code for d in problems(tmp_path, SCALED, [right]) if d.severity == "error"] == []


@pytest.mark.parametrize(
    "writes",
    [
        {"fill_": {"target": "w::[3]", "mode": "constant", "value": 5}},
        {"fill_": {"target": "w", "mode": "tensor", "values": [1, 2, 3, 0, 0, 0]}},
        {"fill_": {"target": "w", "mode": "rand"}},
        {"fill_": {"target": "w::[1:]", "mode": "rand"}},
        {"pad_": {"target": "w", "shape": [4, 8], "value": 3}},
        {"pad": {"from": "w", "to": "u", "shape": [4, 8], "value": 3}},
        {"compute": {"from": {"x": "f"}, "to": "w", "expr": "x * 2"}},
        {"compute": {"from": {"x": "f::[:1]"}, "to": "w::[:1]", "expr": "x * 2"}},
    ],
    ids=lambda s: f"{next(iter(s))} {next(iter(s.values()))}"[:60],
)
def test_values_that_are_no_codes_are_not_written_among_codes(writes: Any, tmp_path: Path) -> None:
    (bad,) = problems(tmp_path, SCALED | {"f": normal((4, 6))}, [writes])
    assert (bad.code, bad.severity) == ("scale-ignored", "error")
    assert bad.message.endswith("'w' holds codes whose scales are in 'w_scale', and this step writes values that are "
                                "no codes")  # fmt: skip
    assert bad.hint == "Make floats of it before: `dequantize: {target: w, to: bfloat16}`."


ZERO_POINT = {"w": np.ones((4, 6), np.int8), "w_scale": np.ones((4, 1), np.float32),
              "w_zero_point": np.ones((4, 1), np.int8)}  # fmt: skip


def test_zeros_may_be_written_among_codes_since_every_scale_leaves_them(tmp_path: Path) -> None:
    steps = [{"fill_": {"target": "w::[3]", "mode": "constant", "value": 0}},
             {"pad_": {"target": "w", "shape": [4, 8]}}, step(target="w")]  # fmt: skip
    wanted = np.pad(scaled(SCALED["w"], SCALED["w_scale"]), ((0, 0), (0, 2)))
    wanted[3] = 0
    assert run_plan(tmp_path, SCALED, steps)["w"].tolist() == wanted.tolist()
    (bad,) = problems(tmp_path, ZERO_POINT, steps[:1])
    assert bad.code == "scale-ignored"


def test_codes_that_are_padded_by_rows_no_longer_fit_their_scales(tmp_path: Path) -> None:
    (said,) = notes(tmp_path, {"pad_": {"target": "w", "shape": [7, 6]}})
    assert "is f8_e4m3fn[7,6], which the scales in 'w_scale', f32[4,1], do not fit" in said


def test_a_result_that_is_no_codes_does_not_take_their_place(tmp_path: Path) -> None:
    product = {"from": {"w": "w", "s": "w_scale"}, "expr": "w * s"}
    (bad,) = problems(tmp_path, SCALED, [{"compute": product}])
    assert bad.code == "scale-ignored"
    assert "The floats are `dequantize: {target: w, to: float32}`, in place of this step." in bad.hint
    elsewhere = {"compute": product | {"to": "u", "dtype": "float32"}}
    wide = [{"compute": product | {"dtype": "float32"}}, {"delete": {"target": "w_scale"}}]
    for name, steps in (("u", [elsewhere]), ("w", wide), ("w", [step(target="w")])):
        found = run_plan(tmp_path, SCALED, steps)[name]
        np.testing.assert_array_equal(found, scaled(SCALED["w"], SCALED["w_scale"]))


def test_codes_that_a_step_makes_with_their_scales_take_the_place_of_others(tmp_path: Path) -> None:
    floats = {"x": normal((4, 6))}
    steps = [{"quantize": {"target": "x", "to": "int8"}}, step(), {"delete": {"target": "v"}},
             {"quantize": {"target": "x", "to": "int8"}}]  # fmt: skip
    assert [d.code for d in problems(tmp_path, SCALED | floats, steps) if d.severity == "error"] == []


def test_packed_words_are_not_scaled(tmp_path: Path) -> None:
    tensors = {"l.qweight": np.ones((4, 8), np.int32), "l.qzeros": np.ones((1, 1), np.int32),
               "l.scales": np.ones((1, 8), np.float16)}  # fmt: skip
    (bad,) = problems(tmp_path, tensors, [{"scale_": {"target": "l.qweight", "by": 2}}])
    assert bad.code == "scale-ignored"


def test_codes_whose_scale_was_deleted_on_purpose_are_numbers(tmp_path: Path) -> None:
    steps = [{"delete": {"target": "w_scale"}}, {"cast_": {"target": "w", "to": "float32"}}]
    assert run_plan(tmp_path, SCALED, steps)["w"].tolist() == SCALED["w"].astype(np.float32).tolist()


def notes(folder: Path, *steps: Any) -> list[str]:
    return [d.message for d in problems(folder, SCALED, list(steps)) if d.code == "scale-left"]


def test_codes_that_leave_their_scales_are_noted(tmp_path: Path) -> None:
    (said,) = notes(tmp_path, {"move": {"from": "w", "to": "u"}})
    assert "'u', codes, is written without its scales, which stood in 'w_scale'" in said


def test_codes_that_are_moved_with_their_scales_are_not(tmp_path: Path) -> None:
    assert notes(tmp_path, {"move": {"from": "w(.*)", "to": r"u\1"}}) == []
    steps = ({"move": {"from": "w", "to": "u"}}, {"move": {"from": "w_scale", "to": "u_scale"}})
    (tmp_path / "two").mkdir()
    assert notes(tmp_path / "two", *steps) == []


def test_a_slice_of_codes_needs_that_slice_of_its_scales(tmp_path: Path) -> None:
    cut = {"copy": {"from": "w::[:2]", "to": "u"}}
    (said,) = notes(tmp_path, cut, {"copy": {"from": "w_scale", "to": "u_scale"}})
    assert "the scales in 'u_scale', f32[4,1], do not fit" in said
    (tmp_path / "cut").mkdir()
    assert notes(tmp_path / "cut", cut, {"copy": {"from": "w_scale::[:2]", "to": "u_scale"}}) == []
