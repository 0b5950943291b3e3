"""The plans of `plans/` against imperative torch scripts: the same names, dtypes, shapes and bits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, GPT2Model, Qwen3ForCausalLM, Qwen3MoeForCausalLM

import brainsurgery_jax as bs
from brainsurgery_jax.errors import PlanError
from tests.plans import models

# PEFT asks transformers for what newer versions of that call otherwise.

PLANS = Path(__file__).resolve().parents[2] / "plans"
Tensors = dict[str, torch.Tensor]
Settings = dict[str, Any]


class Example(NamedTuple):
    """A plan that writes a checkpoint: what it runs on, where it writes, and whether every bit is determined."""

    name: str
    settings: Callable[[Path], Settings]
    out: str
    exact: bool = True


def _ablation(folder: Path) -> Settings:
    width = models.WIDTH // models.HEADS
    sizes = {"layers": models.LAYERS, "heads": models.HEADS}
    return {"model": models.gpt2(folder), **sizes, "layer": 1, "first": width, "last": 2 * width}


def _rescaling(folder: Path) -> Settings:
    return {"model": models.gpt2(folder)}


def _delta(folder: Path) -> Settings:
    base, tuned = models.llama_pair(folder)
    return {"base": base, "tuned": tuned, "rank": 4}


def _upcycling(folder: Path) -> Settings:
    return {"model": models.dense(folder)}


def _experts(folder: Path) -> Settings:
    run("moe_upcycle", _upcycling(folder) | {"out": folder / "start"})
    return {"start": folder / "start", "moe": models.trained(folder / "start", folder / "moe"), "rank": 3}


def _pruning(folder: Path) -> Settings:
    models.narrow_gpt2().transformer.save_pretrained(folder / "narrow")
    return {"model": folder / "narrow", "width": 2}


def _dropping(folder: Path) -> Settings:
    models.narrow_gpt2().save_pretrained(folder / "narrow")
    return {"model": folder / "narrow"}


def _folding(folder: Path) -> Settings:
    return {"base": models.adapted(folder, torch.bfloat16), "adapter": folder / "adapter"}


def _removing(folder: Path) -> Settings:
    return {"model": models.llama_pair(folder)[0], "direction": models.direction(folder)}


DELTA = Example("phlora_delta", _delta, "adapter", exact=False)
LOW_RANK = Example("moe_lowrank", _experts, "out", exact=False)
EXAMPLES = (
    Example("surgery_validated", _ablation, "out.safetensors"),
    Example("bulk_regex", _rescaling, "out.safetensors"),
    Example("prefix_rewrite", lambda folder: {"model": models.gpt2(folder)}, "out.safetensors"),
    DELTA,
    Example("moe_upcycle", _upcycling, "out"),
    LOW_RANK,
    Example("head_pruning", _pruning, "out"),
    Example("drop_layers", _dropping, "out"),
    Example("lora_fold", _folding, "out", exact=False),
    Example("abliteration", _removing, "out", exact=False),
)
every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)


def run(name: str, settings: Settings) -> bs.Report:
    return bs.load(PLANS / f"{name}.yaml", **{k: _plain(v) for k, v in settings.items()}).run(durable=False)


def run_script(name: str, settings: Settings) -> None:
    flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    importlib.import_module(f"tests.plans.scripts.{name}").main(flags)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def tensors(path: Path) -> Tensors:
    names = ("adapter_model.safetensors", "model.safetensors")
    files = [path / name for name in names if (path / name).exists()] if path.is_dir() else [path]
    return load_file(files[0])


def both(example: Example, folder: Path) -> tuple[Tensors, Tensors]:
    """What the plan writes, and what the script writes."""
    settings = example.settings(folder)
    run(example.name, settings | {"out": folder / f"plan-{example.out}"})
    run_script(example.name, settings | {"out": folder / f"script-{example.out}"})
    return tensors(folder / f"plan-{example.out}"), tensors(folder / f"script-{example.out}")


# --- Every example ----------------------------------------------------------------------------------------------------


@every_example
def test_a_plan_writes_the_names_shapes_and_dtypes_of_the_script(example: Example, tmp_path: Path) -> None:
    ours, theirs = both(example, tmp_path)
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.exact], ids=lambda e: e.name)
def test_a_plan_without_factorizations_writes_the_bits_of_the_script(example: Example, tmp_path: Path) -> None:
    ours, theirs = both(example, tmp_path)
    assert [n for n in theirs if not torch.equal(_bits(ours[n]), _bits(theirs[n]))] == []


TRUE_OF = {"head_pruning": {"structure-prune", "config-differs"}}
"""Notes about what a plan does, right as it is: the class of GPT-2 cannot load other widths of heads."""


@every_example
def test_a_plan_passes_check(example: Example, tmp_path: Path) -> None:
    settings = example.settings(tmp_path) | {"out": tmp_path / example.out}
    plan = bs.load(PLANS / f"{example.name}.yaml", **{k: _plain(v) for k, v in settings.items()})
    assert {note.code for note in bs.check(plan)} <= TRUE_OF.get(example.name, set())


@every_example
def test_two_runs_of_a_plan_write_the_same_bytes(example: Example, tmp_path: Path) -> None:
    settings = example.settings(tmp_path)
    for run_ in ("one", "two"):
        run(example.name, settings | {"out": tmp_path / f"{run_}-{example.out}"})
    assert _files(tmp_path / f"one-{example.out}") == _files(tmp_path / f"two-{example.out}")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def _files(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.iterdir())} if path.is_dir() else {"": path.read_bytes()}


# --- Products, equal up to rounding ---

PRODUCTS = [e for e in EXAMPLES if e.name in ("lora_fold", "abliteration")]


@pytest.mark.parametrize("example", PRODUCTS, ids=lambda e: e.name)
def test_what_is_multiplied_differs_from_the_script_by_at_most_one_rounding(example: Example, tmp_path: Path) -> None:
    ours, theirs = both(example, tmp_path)
    for name in theirs:
        torch.testing.assert_close(ours[name].float(), theirs[name].float(), rtol=2**-7, atol=1e-6, msg=name)
    assert sum(int((ours[n] != theirs[n]).sum()) for n in theirs) <= sum(t.numel() for t in theirs.values()) // 100


# --- Low rank, equal up to rounding -----------------------------------------------------------------------------------


def test_the_adapters_of_plan_and_script_have_the_same_products(tmp_path: Path) -> None:
    ours, theirs = (_products(t) for t in both(DELTA, tmp_path))
    base, tuned = tensors(tmp_path / "base"), tensors(tmp_path / "tuned")
    for name, product in theirs.items():
        s = torch.linalg.svdvals(tuned[f"{name}.weight"].double() - base[f"{name}.weight"].double())
        # The subspace of the first four singular vectors turns by rounding over the gap behind them.
        within = 16 * torch.finfo(torch.float32).eps * s[0] / (s[3] - s[4]) * s[0]
        assert (ours[name] - product).norm() <= within


def test_the_adapter_is_the_best_of_its_rank(tmp_path: Path) -> None:
    settings = _delta(tmp_path)
    run("phlora_delta", settings | {"out": tmp_path / "adapter"})
    products = _products(tensors(tmp_path / "adapter"))
    base, tuned = tensors(settings["base"]), tensors(settings["tuned"])
    for name, product in products.items():
        delta = tuned[f"{name}.weight"].double() - base[f"{name}.weight"].double()
        least = torch.linalg.svdvals(delta)[settings["rank"] :].norm()
        torch.testing.assert_close((delta - product.double()).norm(), least, rtol=1e-5, atol=0)


def _products(adapter: Tensors) -> Tensors:
    stems = [n.removesuffix(".lora_A.weight") for n in adapter if n.endswith(".lora_A.weight")]
    made = {s: adapter[f"{s}.lora_B.weight"] @ adapter[f"{s}.lora_A.weight"] for s in stems}
    return {s.removeprefix("base_model.model."): product for s, product in made.items()}


def test_the_low_rank_experts_of_plan_and_script_differ_by_at_most_one_rounding(tmp_path: Path) -> None:
    ours, theirs = both(LOW_RANK, tmp_path)
    # Where a float32 sum lies near the middle of two bfloat16 numbers, two SVDs may round it to either.
    for name in theirs:
        torch.testing.assert_close(ours[name].float(), theirs[name].float(), rtol=2**-7, atol=2e-5)


def test_few_low_rank_values_are_touched_by_that_rounding(tmp_path: Path) -> None:
    ours, theirs = both(LOW_RANK, tmp_path)
    differing = sum(int((ours[n] != theirs[n]).sum()) for n in theirs)
    assert differing <= sum(t.numel() for t in theirs.values()) // 100


def test_tensors_outside_the_experts_keep_their_bits(tmp_path: Path) -> None:
    settings = _experts(tmp_path)
    run("moe_lowrank", settings | {"out": tmp_path / "out"})
    before, after = tensors(settings["moe"]), tensors(tmp_path / "out")
    assert all(torch.equal(_bits(after[n]), _bits(t)) for n, t in before.items() if ".experts." not in n)


# --- What the models compute ------------------------------------------------------------------------------------------


def _gpt2_output(path: Path) -> torch.Tensor:
    model = GPT2Model(models.gpt2_config()).eval()
    model.load_state_dict(load_file(path))
    with torch.no_grad():
        return model(models.TOKENS).last_hidden_state


def test_rescaling_the_value_path_changes_no_bit_of_what_gpt2_computes(tmp_path: Path) -> None:
    settings = _rescaling(tmp_path)
    run("bulk_regex", settings | {"out": tmp_path / "out.safetensors"})
    assert torch.equal(_gpt2_output(tmp_path / "out.safetensors"), _gpt2_output(settings["model"]))


def test_switching_a_head_off_changes_what_gpt2_computes(tmp_path: Path) -> None:
    settings = _ablation(tmp_path)
    run("surgery_validated", settings | {"out": tmp_path / "out.safetensors"})
    assert not torch.allclose(_gpt2_output(tmp_path / "out.safetensors"), _gpt2_output(settings["model"]))


def test_the_rewritten_prefixes_are_those_that_the_language_model_loads(tmp_path: Path) -> None:
    path = models.gpt2(tmp_path)
    run("prefix_rewrite", {"model": path, "out": tmp_path / "out.safetensors"})
    model = GPT2LMHeadModel(models.gpt2_config()).eval()
    model.load_state_dict(load_file(tmp_path / "out.safetensors"))
    with torch.no_grad():
        assert torch.equal(model.transformer(models.TOKENS).last_hidden_state, _gpt2_output(path))


def test_the_upcycled_mixture_computes_what_the_dense_model_did(tmp_path: Path) -> None:
    settings = _upcycling(tmp_path)
    run("moe_upcycle", settings | {"out": tmp_path / "moe"})
    loaded: Any = Qwen3MoeForCausalLM.from_pretrained(tmp_path / "moe", dtype=torch.float32, output_loading_info=True)
    mixture, told = loaded
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = Qwen3ForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(mixture.eval()(models.TOKENS).logits, original(models.TOKENS).logits)


# --- What the asserts of the plans catch ------------------------------------------------------------------------------


def test_a_wrong_number_of_layers_stops_the_surgery_before_it_writes(tmp_path: Path) -> None:
    settings = _ablation(tmp_path) | {"layers": 12, "out": tmp_path / "out.safetensors"}
    with pytest.raises(PlanError, match=r"3 tensors match .* not 12"):
        run("surgery_validated", settings)
    assert not (tmp_path / "out.safetensors").exists()


def _with(path: Path, target: Path, extra: Tensors) -> Path:
    """A checkpoint with tensors besides its own."""
    target.mkdir()
    save_file({**tensors(path), **extra}, target / "model.safetensors", metadata={"format": "pt"})
    return target


LAYER = "model.layers.9.mlp.up_proj.weight"


def _deeper(folder: Path) -> Settings:
    settings = _delta(folder)
    return settings | {"tuned": _with(settings["tuned"], folder / "deeper", {LAYER: torch.ones(4, 4)})}


def _shallower(folder: Path) -> Settings:
    settings = _delta(folder)
    return settings | {"base": _with(settings["base"], folder / "deeper", {LAYER: torch.ones(4, 4)})}


def _more_experts(folder: Path) -> Settings:
    settings, name = _experts(folder), "model.layers.0.mlp.experts.9.up_proj.weight"
    return settings | {"moe": _with(settings["moe"], folder / "more", {name: torch.ones(4, 4)})}


def _biased(folder: Path) -> Settings:
    settings, name = _removing(folder), "model.layers.0.self_attn.o_proj.bias"
    return settings | {"model": _with(settings["model"], folder / "biased", {name: torch.ones(4)})}


def _two_directions(folder: Path) -> Settings:
    settings = _removing(folder)
    both = {"r": tensors(settings["direction"])["r"], "r2": torch.ones(4)}
    save_file(both, folder / "both.safetensors")
    return settings | {"direction": folder / "both.safetensors"}


def _headed(folder: Path) -> Settings:
    model = models.gpt2(folder)
    save_file({**tensors(model), "lm_head.weight": torch.ones(4)}, folder / "headed.safetensors")
    return {"model": folder / "headed.safetensors"}


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("phlora_delta", _deeper, r"'model\.layers\.9\.\S+' is in 'tuned' and not in 'base'"),
        ("phlora_delta", _shallower, r"'model\.layers\.9\.\S+' is in 'base' and not in 'tuned'"),
        ("moe_lowrank", _more_experts, r"1 tensor of 'moe' has no partner in 'start' \('\S+experts\.9\."),
        ("abliteration", _biased, r"'model\.layers\.0\.self_attn\.o_proj\.bias' exists, and should not"),
        ("abliteration", _two_directions, "2 tensors match 'direction::.*', not 1"),
        ("prefix_rewrite", _headed, r"'lm_head\.weight' exists, and should not"),
    ],
    ids=["a layer too many", "a layer too few", "an expert too many", "a bias", "two directions", "a head of its own"],
)
def test_what_a_plan_would_leave_out_stops_it(
    name: str, settings: Callable[[Path], Settings], why: str, tmp_path: Path
) -> None:
    out = "out" if name == "phlora_delta" else "out.safetensors"
    with pytest.raises(PlanError, match=why):
        run(name, settings(tmp_path) | {"out": tmp_path / out})
    assert not (tmp_path / out).exists()


def test_what_else_was_trained_is_kept_whole_in_the_adapter(tmp_path: Path) -> None:
    settings = _delta(tmp_path)
    run("phlora_delta", settings | {"out": tmp_path / "adapter"})
    found, tuned = tensors(tmp_path / "adapter"), tensors(settings["tuned"])
    assert torch.equal(found["base_model.model.model.norm.weight"], tuned["model.norm.weight"])


def _rewritten(folder: Path) -> tuple[Path, Path]:
    before, after = models.gpt2(folder), folder / "after.safetensors"
    run("prefix_rewrite", {"model": before, "out": after})
    return before, after


def test_the_command_of_the_header_sets_variables_by_overrides(tmp_path: Path) -> None:
    path, out = models.gpt2(tmp_path), tmp_path / "out.safetensors"
    bs.load(PLANS / "bulk_regex.yaml", f"vars.model={path}", f"vars.out={out}").run(durable=False)
    assert set(load_file(out)) == set(load_file(path))


def test_the_diff_of_a_faithful_rewrite_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = _rewritten(tmp_path)
    report = run("diff_check", {"before": before, "after": after})
    run_script("diff_check", {"before": before, "after": after})
    assert report.said[0].count("  - none") == capsys.readouterr().out.count("  - none") == 3
    assert report.published == ()


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t["transformer.h.1.ln_1.weight"].add_(1e-6),
        lambda t: t.update({"transformer.ln_f.bias": t["transformer.ln_f.bias"].double()}),
        lambda t: t.pop("transformer.h.2.mlp.c_fc.bias"),
        lambda t: t.update({"transformer.extra": torch.zeros(1)}),
    ],
    ids=["a value", "a dtype", "a missing tensor", "one too many"],
)
def test_the_diff_stops_where_the_script_stops(damage: Callable[[Tensors], Any], tmp_path: Path) -> None:
    before, after = _rewritten(tmp_path)
    damaged = load_file(after)
    damage(damaged)
    save_file(damaged, tmp_path / "damaged.safetensors")
    with pytest.raises(SystemExit, match="the checkpoints differ"):
        run_script("diff_check", {"before": before, "after": tmp_path / "damaged.safetensors"})
    with pytest.raises(PlanError, match=r"assert\.all: .*(differs|f64|extra|c_fc)"):
        run("diff_check", {"before": before, "after": tmp_path / "damaged.safetensors"})
