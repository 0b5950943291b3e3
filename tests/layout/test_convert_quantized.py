"""`convert` of quantized checkpoints: floats are made of codes by the scales beside them, before a layout sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.layout.bind import bind
from brainsurgery_jax.layout.library import load_layout
from tests.checkpoints import normal, read
from tests.layout.test_convert import LLAMA, convert, llama, made, model, same

FP8 = {"quant_method": "fp8", "weight_block_size": [4, 4]}
PROJECTION = "_proj.weight"


def quantized(blocks: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A Llama whose projections are codes with scales of blocks (or one each), and what numpy makes of it."""
    stored: dict[str, np.ndarray] = {}
    floats: dict[str, np.ndarray] = {}
    for name, x in llama().items():
        x = x.astype(ml_dtypes.bfloat16)
        if not name.endswith(PROJECTION):
            stored[name] = floats[name] = x
            continue
        codes = (x.astype(np.float32) * 100).astype(ml_dtypes.float8_e4m3fn)
        grid = [-(-n // 4) for n in x.shape] if blocks else [1, 1]
        scales = np.abs(normal(tuple(grid), seed=len(name))) + 0.01
        factors = scales.repeat(4, 0).repeat(4, 1)[: x.shape[0], : x.shape[1]] if blocks else scales
        stored[name], floats[name] = codes, (codes.astype(np.float32) * factors).astype(ml_dtypes.bfloat16)
        stored[name + ("_scale_inv" if blocks else "_scale")] = scales if blocks else scales.reshape(())
        if not blocks:
            stored[name.replace(".weight", ".input_scale")] = np.ones((), np.float32)
    return stored, floats


def tree(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in bs.open(str(path)).items()}


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("layout", ["tunix", "maxtext"])
def test_a_tree_is_that_of_the_floats(blocks: bool, layout: str, tmp_path: Path) -> None:
    stored, floats = quantized(blocks)
    source = model(tmp_path / "hf", stored, {**LLAMA, "dtype": "bfloat16", "quantization_config": FP8})
    plain = model(tmp_path / "plain", floats, {**LLAMA, "dtype": "bfloat16"})
    wishes: dict[str, Any] = {"layout": layout, "verify": True, "durable": False}
    said = bs.convert(source, str(tmp_path / "tree"), dequantize="bf16", **wishes).said[-1]
    assert "computes from the source, dequantized to bf16, computed again" in said
    bs.convert(plain, str(tmp_path / "wanted"), **wishes)
    same(tree(tmp_path / "tree"), tree(tmp_path / "wanted"))
    same(convert(str(tmp_path / "tree"), tmp_path / "back.safetensors"), floats if layout == "tunix" else
         convert(str(tmp_path / "wanted"), tmp_path / "same.safetensors"))  # fmt: skip


GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 5, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "num_local_experts": 3,
}  # fmt: skip


def test_experts_of_four_bits_become_those_of_maxtext(tmp_path: Path) -> None:
    pairs = bind(load_layout("maxtext-gptoss"), GPT_OSS).pairs
    shapes = {name: shape for pair in pairs for name, shape in zip(pair.hf, pair.hf_shapes, strict=True)}
    floats = {name: x.astype(ml_dtypes.bfloat16) for name, x in made(shapes).items()}
    stored, random = dict(floats), np.random.default_rng(3)
    for name in (n for n in floats if n.endswith(("gate_up_proj", "down_proj"))):
        experts, inputs, outputs = stored.pop(name).shape
        packed = random.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=np.uint8)
        exponents = random.integers(120, 130, packed.shape[:3], dtype=np.uint8)
        codes = np.stack([packed & 15, packed >> 4], -1).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        rows = codes.reshape(*exponents.shape, 32) * np.exp2(exponents.astype(np.float32) - 127)[..., None]
        floats[name] = rows.reshape(experts, outputs, inputs).transpose(0, 2, 1).astype(ml_dtypes.bfloat16)
        stored |= {name + "_blocks": packed, name + "_scales": exponents}
    wishes: dict[str, Any] = {"layout": "maxtext", "verify": True, "durable": False}
    quantization = {"quantization_config": {"quant_method": "mxfp4"}}
    source = model(tmp_path / "hf", stored, GPT_OSS | quantization)
    bs.convert(source, str(tmp_path / "tree"), dequantize="bf16", **wishes)
    bs.convert(model(tmp_path / "plain", floats, GPT_OSS), str(tmp_path / "wanted"), **wishes)
    same(tree(tmp_path / "tree"), tree(tmp_path / "wanted"))


def test_a_copy_with_floats_no_longer_says_that_it_is_quantized(tmp_path: Path) -> None:
    stored, floats = quantized(blocks=True)
    config = {**LLAMA, "torch_dtype": "bfloat16", "quantization_config": FP8}
    source = model(tmp_path / "hf", stored, config)
    report = bs.convert(
        source, str(tmp_path / "out"), dequantize="float32", to="safetensors", verify=True, durable=False
    )
    assert "the bytes of all 20 tensors of the source, dequantized to float32" in report.said[-1]
    assert json.loads((tmp_path / "out/config.json").read_text()) == {**LLAMA, "torch_dtype": "float32"}
    found = read(tmp_path / "out/model.safetensors")
    assert found.keys() == floats.keys()
    assert {n for n, x in found.items() if x.dtype == np.float32} == {n for n in floats if n.endswith(PROJECTION)}


def test_a_config_elsewhere_is_written_without_its_quantization(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", quantized(blocks=False)[0], None)
    (tmp_path / "c.json").write_text(json.dumps({**LLAMA, "quantization_config": FP8}))
    wishes: dict[str, Any] = {"config": str(tmp_path / "c.json"), "layout": "tunix", "durable": False}
    bs.convert(source, str(tmp_path / "tree"), dequantize="bf16", **wishes)
    bs.convert(str(tmp_path / "tree"), str(tmp_path / "back"), durable=False)
    assert json.loads((tmp_path / "back/config.json").read_text()) == LLAMA


@pytest.mark.parametrize("way", ["convert", "plan"])
def test_a_tree_of_floats_goes_back_without_the_quantization_of_a_config(way: str, tmp_path: Path) -> None:
    plain = model(tmp_path / "hf", llama(), LLAMA)
    bs.convert(plain, str(tmp_path / "tree"), layout="tunix", durable=False)
    (tmp_path / "tree/config.json").unlink()
    (tmp_path / "c.json").write_text(json.dumps({**LLAMA, "quantization_config": FP8}))
    if way == "convert":
        bs.convert(str(tmp_path / "tree"), str(tmp_path / "out"), config=str(tmp_path / "c.json"), durable=False)
    else:
        step = {"layout": {"name": "tunix", "inverse": True, "config": str(tmp_path / "c.json")}}
        output = {"path": str(tmp_path / "out"), "format": "safetensors"}
        bs.load({"inputs": [str(tmp_path / "tree")], "transforms": [step], "output": output}).run(durable=False)
    assert json.loads((tmp_path / "out/config.json").read_text()) == LLAMA


def test_floats_may_be_cast_further(tmp_path: Path) -> None:
    stored, floats = quantized(blocks=True)
    source = model(tmp_path / "hf", stored, {**LLAMA, "quantization_config": FP8})
    wanted = {name: x.astype(np.float16) for name, x in floats.items()}
    same(convert(source, tmp_path / "out.safetensors", dequantize="bf16", dtype="float16", verify=True), wanted)


def test_a_step_of_a_plan_says_what_comes_before_it(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", quantized(blocks=True)[0], {**LLAMA, "quantization_config": FP8})
    layout = {"layout": {"name": "tunix", "config": LLAMA}}
    plan = {"inputs": [f"m::{source}"], "transforms": [layout], "output": str(tmp_path / "out")}
    with pytest.raises(PlanError, match=r"14 of them are scales of quantized weights") as caught:
        bs.load(plan).run(durable=False)
    assert "`dequantize: {target: 'm::.*', to: bfloat16}` before this step" in caught.value.diagnostics[0].hint
    first = {"dequantize": {"target": "m::.*", "to": "bfloat16"}}
    assert bs.load({**plan, "transforms": [first, layout]}).run(durable=False).published


@pytest.mark.parametrize(
    ("wishes", "match"),
    [
        ({"layout": "tunix"}, r"hold codes, with scales beside them, and tunix-llama has floats"),
        ({"dtype": "bfloat16", "to": "npz"}, r"q_proj.weight' and 13 more hold codes.*a cast would ignore the scales"),
        ({"dequantize": "float8_e5m2"}, "'float8_e5m2' does not hold the values of quantized weights"),
        ({"dequantize": "int8"}, "'int8' does not hold the values of quantized weights"),
        ({"dequantize": "bf61"}, "unknown dtype 'bf61'"),
    ],
)
def test_codes_are_refused_where_floats_are_needed(wishes: dict[str, Any], match: str, tmp_path: Path) -> None:
    source = model(tmp_path / "hf", quantized(blocks=True)[0], LLAMA)
    with pytest.raises(PlanError, match=match):
        bs.convert(source, str(tmp_path / "out"), durable=False, **wishes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wishes", [{}, {"layout": "flax"}])
def test_codes_are_copied_with_their_scales(wishes: dict[str, Any], tmp_path: Path) -> None:
    stored, _ = quantized(blocks=True)
    source = model(tmp_path / "hf", stored, LLAMA)
    found = convert(source, tmp_path / "out.safetensors", to="safetensors", **wishes)
    same({name.removeprefix("params."): x for name, x in found.items()}, stored)


OF_CODES = ("hf_quant_config.json", "quantization_config.json", "quantize_config.json", "quant_config.json")


def beside(folder: Path) -> Path:
    """A folder with side files that describe quantized weights, and one that does not."""
    for name in (*OF_CODES, "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def side_files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} & {*OF_CODES, "tokenizer.json"}


def test_what_describes_codes_travels_with_codes_alone(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", quantized(blocks=True)[0], {**LLAMA, "quantization_config": FP8})
    beside(tmp_path / "hf")
    bs.convert(source, str(tmp_path / "same"), to="safetensors", durable=False)
    assert side_files(tmp_path / "same") == {*OF_CODES, "tokenizer.json"}
    bs.convert(source, str(tmp_path / "floats"), to="safetensors", dequantize="bf16", durable=False)
    assert side_files(tmp_path / "floats") == {"tokenizer.json"}
    bs.convert(source, str(tmp_path / "tree"), layout="tunix", dequantize="bf16", durable=False)
    assert side_files(tmp_path / "tree") == {"tokenizer.json"}
    bs.convert(str(beside(tmp_path / "tree")), str(tmp_path / "back"), durable=False)
    assert side_files(tmp_path / "back") == {"tokenizer.json"}


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([{"dequantize": {"target": ".*", "to": "bfloat16"}}], False),
        ([{"dequantize": {"target": r".*\.0\..*", "to": "bfloat16"}}], True),  # the other layers stay codes
        ([{"dequantize": {"target": ".*", "to": "bfloat16"}},
          {"quantize": {"target": r".*_proj\.weight", "to": "int8", "per": "channel"}}], False),
        ([{"move": {"from": "(.*)", "to": r"x.\1"}}], True),
    ],
)  # fmt: skip
def test_steps_decide_whether_it_travels(steps: list[dict[str, Any]], kept: bool, tmp_path: Path) -> None:
    source = model(tmp_path / "hf", quantized(blocks=True)[0], {**LLAMA, "quantization_config": FP8})
    beside(tmp_path / "hf")
    output = {"path": str(tmp_path / "out"), "format": "safetensors"}
    plan = bs.load({"inputs": [source], "transforms": steps, "output": output})
    plan.run(durable=False)
    assert side_files(tmp_path / "out") == {"tokenizer.json", *(OF_CODES if kept else ())}


def test_a_tree_saved_with_the_config_of_codes_gets_nothing_that_describes_them(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", quantized(blocks=True)[0], {**LLAMA, "quantization_config": FP8})
    beside(tmp_path / "hf")
    bs.convert(source, str(tmp_path / "tree"), layout="tunix", dequantize="bf16", durable=False)
    params = bs.open(str(tmp_path / "tree")).to_linen()
    config = str(tmp_path / "hf/config.json")
    bs.save(str(tmp_path / "out"), params, layout="tunix-llama", config=config, format="safetensors", durable=False)
    assert side_files(tmp_path / "out") == {"tokenizer.json"}
    assert json.loads((tmp_path / "out/config.json").read_text()) == LLAMA


def test_a_cast_does_not_part_integer_codes_from_their_scales(tmp_path: Path) -> None:
    stored = {
        "a.weight": np.arange(6, dtype=np.int8).reshape(2, 3), "a.weight_scale": np.ones((2, 1), np.float32),
        "norm.weight": np.ones(3, np.float32),
    }  # fmt: skip
    mxfp4 = {"w_blocks": np.zeros((2, 1, 16), np.uint8), "w_scales": np.full((2, 1), 127, np.uint8)}
    for at, tensors in enumerate((stored, mxfp4 | {"norm.weight": np.ones(3, np.float32)})):
        source = model(tmp_path / f"hf{at}", tensors, {"model_type": "x"})
        with pytest.raises(PlanError, match="a cast would leave the codes as they are") as caught:
            bs.convert(source, str(tmp_path / "out"), dtype="bfloat16", to="safetensors", durable=False)
        assert "dequantize='bfloat16'" in caught.value.diagnostics[0].hint
        found = convert(source, tmp_path / f"{at}.safetensors", dtype="bfloat16", dequantize="bfloat16")
        assert {x.dtype.name for x in found.values()} == {"bfloat16"}


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """A Llama that is quantized but for the projections of one layer, which are float32."""
    stored, floats = quantized(blocks=True)
    left = {n: x.astype(np.float32) for n, x in floats.items() if ".layers.1." in n and n.endswith(PROJECTION)}
    tensors = {n: x for n, x in stored.items() if n.removesuffix("_scale_inv") not in left} | left
    return model(tmp_path / "mixed", tensors, {**LLAMA, "dtype": "bfloat16", "quantization_config": FP8})


def test_floats_of_two_widths_are_cast_by_an_option(mixed: str, tmp_path: Path) -> None:
    wishes: dict[str, Any] = {"layout": "maxtext", "durable": False, "dequantize": "bf16"}
    with pytest.raises(PlanError) as refused:
        bs.convert(mixed, str(tmp_path / "tree"), **wishes)
    (bad,) = refused.value.diagnostics
    assert bad.code == "dtypes-differ"
    assert bad.hint == "Nothing is promoted. Cast all weights to one dtype: `dtype='float32'`."
    bs.convert(mixed, str(tmp_path / "tree"), **wishes, dtype="float32")
    assert {x.dtype.name for x in tree(tmp_path / "tree").values()} == {"float32"}


def test_codes_that_a_format_cannot_hold_become_floats_by_an_option(mixed: str, tmp_path: Path) -> None:
    to = str(tmp_path / "x.h5")
    with pytest.raises(PlanError) as refused:
        bs.convert(mixed, to, durable=False)
    (bad,) = refused.value.diagnostics
    assert bad.code == "dtype-unsavable"
    assert bad.hint == "Write safetensors, or floats of 16 bits: `dequantize='bfloat16'`."
    bs.convert(mixed, to, durable=False, dequantize="bfloat16")
    plan = {"inputs": [f"m::{mixed}"], "transforms": [], "output": str(tmp_path / "y.h5")}
    with pytest.raises(PlanError) as refused:
        bs.load(plan).run(durable=False)
    (bad,) = refused.value.diagnostics
    assert (
        bad.hint == "Write safetensors, or make floats of codes first: `dequantize: {target: 'm::.*', to: bfloat16}`."
    )
    step = {"dequantize": {"target": "m::.*", "to": "bfloat16"}}
    bs.load({**plan, "transforms": [step]}).run(durable=False)
    same(tree(tmp_path / "x.h5"), tree(tmp_path / "y.h5"))


def test_floats_of_eight_bits_that_are_no_codes_are_cast_for_a_format(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", {"w": np.ones((2, 2), ml_dtypes.float8_e4m3fn)}, LLAMA)
    with pytest.raises(PlanError, match="Write safetensors, or floats of 16 bits: `dtype='bfloat16'`"):
        bs.convert(source, str(tmp_path / "x.h5"), durable=False)
    bs.convert(source, str(tmp_path / "x.h5"), durable=False, dtype="bfloat16")
    assert tree(tmp_path / "x.h5")["w"].tolist() == [[1, 1], [1, 1]]


def test_what_is_not_quantized_is_not_dequantized(tmp_path: Path) -> None:
    source = model(tmp_path / "hf", llama(), LLAMA)
    with pytest.raises(PlanError, match="nothing in it is quantized") as refused:
        bs.convert(source, str(tmp_path / "tree"), layout="maxtext", dequantize="bf16", durable=False)
    (bad,) = refused.value.diagnostics
    assert bad.hint == "Leave out `dequantize`; `dtype='bf16'` casts floats."
    bs.convert(source, str(tmp_path / "tree"), layout="maxtext", dtype="bf16", durable=False)
    assert {x.dtype.name for x in tree(tmp_path / "tree").values()} == {"bfloat16"}
