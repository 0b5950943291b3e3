r"""Where we do not do what the reference does, on purpose: one test for each decision of the design, with its reason.

Everything else in this folder holds for both. A departure is either a defect of the reference that we do not repeat
(spec section 8 lists them), or a rule that would let a wrong plan run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open

import brainsurgery_jax as bs
from brainsurgery_jax.plan.oly import parse_oly
from brainsurgery_jax.plan.source import plain
from brainsurgery_jax.select import pattern
from brainsurgery_jax.select.limit import TimeLimit
from tests.checkpoints import counting, normal, write
from tests.compat.row import NO_FILES, Files, Tensors, expect, lay_out, mistakes, read, run, store

F32 = np.float32
W, V = counting((4, 6)), -counting((4, 6))
ONE, LAYERS = {"w": W}, {"h.0.w": W, "h.1.w": V, "h.2.w": W + V}
MODEL = "inputs: [model.safetensors]\n"
OUT = "output: out.safetensors\n"


def codes(plan: str, tensors: Tensors = ONE, files: Files = NO_FILES) -> list[str]:
    """The codes of what `check` finds in a plan."""
    lay_out(tensors, files)
    store("plan.yaml", plan)
    return mistakes()


def in_model(steps: str) -> str:
    """A plan of one input that writes it back."""
    return f"{MODEL}transforms: {steps}\n{OUT}"


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "name"), [("(.*)", r"x.\1", "x.w"), (".*", r"x.\g<0>", "x.w"), ("a|ab|w", "Z", "Z")]
)
def test_departure_renaming_expands_the_full_match(here: Path, source: str, target: str, name: str):
    """A regex matches the whole name, so it is the whole name that a template replaces: `x.w`, never `x.wx.`."""
    out, _ = run(f"move: {{ from: '{source}', to: '{target}' }}", ONE)
    expect(out, {name: W})


def test_departure_moves_of_one_step_happen_at_once(here: Path):
    """Swaps and shifts need no order and no scratch name; the reference finds the destination taken."""
    out, _ = run(r"move: { from: 'h\.(?P<i>\d)\.w', to: 'h.${i+1}.w' }", LAYERS)
    expect(out, {"h.1.w": W, "h.2.w": V, "h.3.w": W + V})


def test_departure_a_template_may_start_with_a_variable_and_go_on(here: Path):
    """`${i}_old` is read like any other text with a variable; the reference takes it for a bad `$` token."""
    out, _ = run("move: { from: [h, $i, w], to: ['${i}_old', '\\${i}'] }", LAYERS)
    expect(out, {"0_old.0": W, "1_old.1": V, "2_old.2": W + V})


def test_departure_variables_need_no_backslash_in_a_plan_file(here: Path):
    """`${i}` is no interpolation of the file, so both spellings mean the capture."""
    out, _ = run("move: { from: [h, $i, w], to: ['x_${i}'] }", LAYERS)
    assert sorted(out) == ["x_0", "x_1", "x_2"]


def test_departure_structured_references_work_with_several_inputs(here: Path):
    """In the mapping form a list of tokens has an alias and a slice, which a bare list cannot have."""
    step = "copy: { from: { alias: a, name: [h, $i, w], slice: '[0]' }, to: { alias: b, name: [x, $i] } }"
    out, _ = run(step, {"a": {"h.0.w": W}, "b": {"v": V}})
    expect(out["b::x.0"], W[0])


def test_departure_slices_may_leave_out_the_stop(here: Path):
    """`[::2]` holds the separator `::` and is a slice all the same."""
    out, _ = run("copy: { from: 'w::[::2, 1::2]', to: n }", ONE)
    expect(out["n"], W[::2, 1::2])


def test_departure_a_regex_that_takes_for_ever_is_stopped(here: Path, monkeypatch: pytest.MonkeyPatch):
    """A time limit tells; the reference would not come back."""
    monkeypatch.setattr(pattern, "TIME_LIMIT", TimeLimit(0.1))
    assert codes(in_model("[delete: { target: '(a|aa)+c' }]"), {"a" * 60: W}) == ["regex-timeout"]


# --- Steps ------------------------------------------------------------------------------------------------------------


def test_departure_destinations_are_checked_before_any_part_is_stored(here: Path):
    """A clash on the second name of a split, or on the last tensor of a pattern, leaves nothing behind."""
    assert codes(in_model("[split: { from: w, to: [a, b], sizes: [2, 2] }]"), {"w": W, "b": V}) == ["dest-exists"]
    step = r"[phlora: { target: '(.)\.w', target_a: '\1.A', target_b: '\1.B', rank: 1 }]"
    assert codes(in_model(step), {"a.w": W, "b.w": V, "b.B": V}) == ["dest-exists"]


def test_departure_one_mistake_gives_one_message(here: Path):
    """What a failed step would have made is known to be unknown; the reference stops at the first mistake of all."""
    steps = "[copy: { from: none, to: a }, scale_: { target: a, by: 2 }, cast_: { target: w, to: float12 }]"
    assert codes(in_model(steps)) == ["no-match", "dtype-unknown"]


def test_departure_a_cast_to_the_same_dtype_is_a_tensor_of_its_own(here: Path):
    """No two names share storage, so an edit in place changes one of them alone."""
    out, _ = run("[cast: { from: w, to: n, dtype: float32 }, scale_: { target: n, by: 2 }]", ONE)
    expect(out, {"w": W, "n": W * 2})


def test_departure_overlapping_parts_of_one_tensor_may_be_assigned(here: Path):
    """Values are values: the source is what it was before the step."""
    out, _ = run("assign: { from: 'w::[:3]', to: 'w::[1:]' }", ONE)
    expect(out, {"w": np.concatenate([W[:1], W[:3]])})


def test_departure_permuted_tensors_and_factors_can_be_saved(here: Path):
    """There are no strides: any result can be written, whatever made it."""
    steps = "[permute: { from: w, to: t, order: [1, 0] }, fill: { from: t, to: f, mode: constant, value: 1 }]"
    out, _ = run(steps, ONE)
    expect(out, {"w": W, "t": W.T, "f": np.ones((6, 4), F32)})


def test_departure_a_factorization_is_of_what_the_matrix_is_now(here: Path):
    """No cache of singular vectors outlives a change of the tensor, nor a run."""
    steps = "[phlora_: { target: w, rank: 4 }, scale_: { target: w, by: 2 }, phlora_: { target: w, rank: 4 }]"
    out, _ = run(steps, {"w": normal((4, 6))})
    expect(out, {"w": normal((4, 6)) * 2}, within=1e-5)
    Path("out.safetensors").unlink()
    out, _ = run(steps, {"w": normal((4, 6), seed=5)})
    expect(out, {"w": normal((4, 6), seed=5) * 2}, within=1e-5)


def test_departure_a_factor_under_the_name_of_the_matrix_stays(here: Path):
    """The reference deletes the factor that it has just written."""
    step = "phlora: { target: w, target_a: w, target_b: b, rank: 1, require_missing_dest: false }"
    out, _ = run(step, ONE)
    assert {name: x.shape for name, x in out.items()} == {"w": (1, 6), "b": (4, 1)}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_departure_low_precision_matrices_are_factorized(here: Path, dtype: type):
    """In float32, and rounded back once; the reference has no kernel for them."""
    x = normal((5, 4)).astype(dtype)
    out, _ = run("phlora_: { target: x, rank: 2 }", {"x": x})
    u, s, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    assert out["x"].dtype == dtype
    expect(out["x"].astype(F32), ((u[:, :2] * s[:2]) @ v[:2]).astype(F32), within=0.02)


def test_departure_integers_are_scaled_where_the_result_is_exact(here: Path):
    """A whole result is what was asked for; one that is not is refused by its values."""
    out, _ = run("scale_: { target: i, by: 0.5 }", {"i": np.array([2, -4, 6], np.int16)})
    expect(out, {"i": np.array([1, -2, 3], np.int16)})
    Path("out.safetensors").unlink()
    with pytest.raises(bs.PlanError, match="not exact"):
        run("scale_: { target: i, by: 0.5 }", {"i": np.array([3], np.int16)})


def test_departure_integers_are_clamped_and_stay_integers(here: Path):
    """The reference makes float32 of them, or fails."""
    tensors = {"i": np.array([0, 5, 9], np.uint8)}
    out, _ = run("[clamp: { from: i, to: n, max: 6 }, clamp_: { target: i, min: 3 }]", tensors)
    expect(out, {"i": np.array([3, 5, 9], np.uint8), "n": np.array([0, 5, 6], np.uint8)})
    assert codes(f"{MODEL}transforms: [clamp_: {{ target: i, min: 0.5 }}]", tensors) == ["inexact"]


def test_departure_small_floats_cast_scale_and_print(here: Path):
    """They compute in float32 and round once; the reference only carries them."""
    write("model.safetensors", {"x": np.array([0.5, 1, 448], ml_dtypes.float8_e4m3fn)})
    steps = "[scale_: { target: x, by: 0.5 }, dump: { target: x, verbosity: stat }, cast_: { target: x, to: float32 }]"
    store("plan.yaml", in_model(steps))
    said = bs.load("plan.yaml").run(durable=False).said
    assert said == ("└── x  shape=[3] min=0.25 max=224 mean=74.9167 reads=2 writes=2",)
    expect(read("out.safetensors"), {"x": np.array([0.25, 0.5, 224], F32)})


def test_departure_numbers_that_an_integer_cannot_hold_stop_the_run(here: Path):
    """The reference leaves open what comes out of such a cast; here a plan says what it wants, or learns of it."""
    x = np.array([300, -300, np.nan, np.inf, 2.9], F32)
    with pytest.raises(bs.PlanError, match="a value does not fit the integer dtype, or is NaN"):
        run("cast_: { target: x, to: int8 }", {"x": x})
    out, _ = run("cast_: { target: x, to: int8, overflow: saturate }", {"x": x})
    expect(out, {"x": np.array([127, -128, 0, 127, 2], np.int8)})


# --- Random numbers ---------------------------------------------------------------------------------------------------


def test_departure_a_seed_over_a_pattern_differs_by_name(here: Path):
    """Equal shapes get different values; the reference seeds a fresh generator for every tensor alike."""
    out, _ = run("fill_: { target: '.*', mode: rand, seed: 3 }", LAYERS)
    assert not (out["h.0.w"] == out["h.1.w"]).any()


def test_departure_without_a_seed_runs_repeat(here: Path):
    """The plan's `seed:` serves, 0 if it has none; the reference draws from a generator that nobody seeded."""
    plan = f"{MODEL}transforms: [fill_: {{ target: w, mode: rand }}]\n{OUT}"
    drawn = []
    for text in (plan, plan, plan + "seed: 1\n"):
        lay_out(ONE, {"plan.yaml": text})
        bs.load("plan.yaml").run(durable=False, overwrite=True)
        drawn.append(read("out.safetensors")["w"])
    assert (drawn[0] == drawn[1]).all()
    assert not (drawn[0] == drawn[2]).any()


# --- Asserts and reports ----------------------------------------------------------------------------------------------


def test_departure_a_count_of_zero_can_hold(here: Path):
    """Nothing matches: that is a number, and no mistake."""
    assert codes(in_model("[assert: { count: { of: none, is: 0 } }]")) == []


@pytest.mark.parametrize(
    ("inner", "code"),
    [("exists: '('", "regex-syntax"), ("shape: { of: 'w::[9]', is: [1] }", "slice-range"),
     ("exists: 'x::w'", "alias-unknown")],
)  # fmt: skip
def test_departure_not_inverts_a_verdict_and_never_hides_a_mistake(here: Path, inner: str, code: str):
    """A broken regex or slice is a mistake in the plan; the reference takes it for "does not hold"."""
    assert codes(in_model(f"[assert: {{ not: {{ {inner} }} }}]")) == [code]


def test_departure_names_with_digits_anywhere_are_dumped(here: Path):
    """The reference fails on a leading number and on mixed siblings, and garbles a name that is also a prefix."""
    tensors = {"0.w": W, "h.0": W, "h.final": W, "h": V}
    _, said = run("dump: { target: '.*', format: tree }", tensors)
    assert said.splitlines() == [
        "├── h  shape=[4, 6]",
        "│   ├── final  shape=[4, 6]",
        "│   └── [0]  shape=[4, 6]",
        "└── [0]",
        "    └── w  shape=[4, 6]",
    ]


def test_departure_json_has_no_bare_nan(here: Path):
    """NaN and infinity are text, so that every reader takes the line."""
    x = {"x": np.array([np.nan, np.inf], F32)}
    _, said = run("dump: { target: x, verbosity: full, format: json }", x)
    assert json.loads(said, parse_constant=pytest.fail)["x"]["values"] == ["NaN", "Infinity"]


def test_departure_a_full_dump_spells_dtypes_as_plans_do(here: Path):
    """`float32`, with no `torch.` before it, and no device, since tensors lie in files."""
    _, said = run("dump: { target: w, verbosity: full, format: json }", ONE)
    assert json.loads(said)["w"].keys() == {"shape", "dtype", "values", "reads", "writes"}
    assert json.loads(said)["w"]["dtype"] == "float32"


def test_departure_a_full_dump_of_millions_of_values_is_refused(here: Path):
    """The reference prints them all."""
    write("model.safetensors", {"w": np.zeros(1 << 17, F32)})
    store("plan.yaml", f"{MODEL}transforms: [dump: {{ target: w, verbosity: full }}]")
    assert mistakes() == ["dump-size"]


# --- Aliases ----------------------------------------------------------------------------------------------------------


def test_departure_an_input_is_renamed_with_its_edits(here: Path):
    """The reference reads the new alias from disk again, and leaves the edits under the old one."""
    steps = "[scale_: { target: w, by: 2 }, prefixes: { mode: rename, from: model, to: edited }, prefixes]"
    store("model.safetensors", ONE)
    store("plan.yaml", in_model(steps))
    assert bs.load("plan.yaml").run(durable=False).said == ("Aliases:\n  edited::",)
    expect(read("out.safetensors"), {"w": W * 2})


def test_departure_an_input_is_removed_for_good(here: Path):
    """The reference forgets its path alone."""
    steps = "[scale_: { target: w, by: 2 }, prefixes: { mode: remove, alias: model }, prefixes]"
    lay_out(ONE, {"plan.yaml": f"{MODEL}transforms: {steps}"})
    assert bs.load("plan.yaml").run(durable=False).said[0].split() == ["Aliases:"]


# --- Files ------------------------------------------------------------------------------------------------------------


def test_departure_everything_is_checked_before_anything_runs(here: Path):
    """An input that no step uses, an output that cannot be written: found from headers, and all of it at once."""
    plan = "inputs: ['a::model.safetensors', 'b::none.safetensors']\ntransforms: [scale_: { target: 'a::w', by: 2 }]\n"
    assert codes(plan + "output: out.xyz") == ["io-input", "output-path"]


def test_departure_a_format_conversion_needs_no_step(here: Path):
    """The only alias is the one to save; the reference finds, at the end, that no step wrote to it."""
    lay_out(ONE, {"plan.yaml": f"{MODEL}output: out.npz"})
    bs.load("plan.yaml").run(durable=False)
    expect(read("out.npz"), ONE)


def test_departure_an_output_may_name_its_alias(here: Path):
    """Where the alias is not clear, a word settles it."""
    lay_out({"a": ONE, "b": {"v": V}})
    store("plan.yaml", "inputs: ['a::a.safetensors', 'b::b.safetensors']\noutput: { path: out.safetensors, alias: b }")
    bs.load("plan.yaml").run(durable=False)
    expect(read("out.safetensors"), {"v": V})


def test_departure_an_output_that_exists_is_refused_until_the_plan_says_overwrite(here: Path):
    """The one place where a plan of the reference needs a word more: nothing is lost by running a plan twice."""
    files = {"out.safetensors": {"old": V}}
    assert codes(in_model("[scale_: { target: w, by: 2 }]"), files=files) == ["io-output"]
    store("plan.yaml", f"{MODEL}output: {{ path: out.safetensors, overwrite: true }}")
    bs.load("plan.yaml").run(durable=False)
    expect(read("out.safetensors"), ONE)


def test_departure_a_folder_is_replaced_whole(here: Path):
    """No stale shard or index of an earlier output survives to be read in its place."""
    lay_out({"w": W, "v": V}, {"plan.yaml": f"{MODEL}output: {{ path: out, shard: 96B }}"})
    bs.load("plan.yaml").run(durable=False)
    store("plan.yaml", f"{MODEL}output: {{ path: out, shard: none, overwrite: true }}")
    bs.load("plan.yaml").run(durable=False)
    assert [p.name for p in Path("out").glob("model*")] == ["model.safetensors"]


def test_departure_save_and_output_share_one_path_rule(here: Path):
    """The suffix decides, a path without one is a folder; the reference writes safetensors bytes into `x.pt`."""
    run("[save: snap, save: snap.npz, save: x.pt]", ONE)
    expect(read("snap"), ONE)
    expect(read("snap.npz"), ONE)
    assert torch.load("x.pt")["w"].numpy().tolist() == W.tolist()


def test_departure_a_save_is_published_after_every_assert(here: Path):
    """Outputs appear whole or not at all; the reference has written the snapshot before the assert fails."""
    lay_out(ONE, {"plan.yaml": f"{MODEL}transforms: [save: snap.safetensors, assert: {{ iszero: w }}]"})
    with pytest.raises(bs.PlanError, match="'w' is not zero everywhere"):
        bs.load("plan.yaml").run(durable=False)
    assert not Path("snap.safetensors").exists()


def test_departure_a_load_sees_what_the_same_plan_saves(here: Path):
    """Though that is published only at the end."""
    steps = "[save: s.safetensors, scale_: { target: w, by: 2 }, load: { path: s.safetensors, to: old }]"
    out, _ = run(steps, ONE)
    expect(out, {"w": W * 2, "old": W})


def test_departure_dcp_needs_no_word_on_shards(here: Path):
    """The reference gives it the default shard size, and then refuses it."""
    assert codes(f"{MODEL}output: {{ path: out, format: dcp }}") == []


def test_departure_a_folder_may_have_a_dot_in_its_name(here: Path):
    """A final slash, or the format, says that it is one."""
    lay_out(ONE, {"plan.yaml": f"{MODEL}outputs: [llama-3.1/, {{ path: llama-3.2, format: safetensors }}]"})
    bs.load("plan.yaml").run(durable=False)
    expect(read("llama-3.1"), ONE)
    expect(read("llama-3.2"), ONE)


def test_departure_what_a_format_cannot_hold_is_found_before_the_run(here: Path):
    """The reference fails while it writes."""
    assert codes(f"{MODEL}transforms: [cast_: {{ target: w, to: complex128 }}]\n{OUT}") == ["dtype-unsavable"]


def test_departure_the_metadata_of_a_file_is_kept(here: Path):
    """And `format: pt`, which some loaders expect, is written."""
    write("model.safetensors", ONE, {"step": "7"})
    store("plan.yaml", f"{MODEL}{OUT}")
    bs.load("plan.yaml").run(durable=False)
    with safe_open("out.safetensors", "numpy") as file:
        assert file.metadata() == {"step": "7", "format": "pt"}


def test_departure_an_index_must_tell_the_truth(here: Path):
    """A shard with a tensor that the index does not list, or lists elsewhere, is a broken checkpoint."""
    index = json.dumps({"weight_map": {"w": "part.safetensors"}})
    files = {"dir/part.safetensors": {"w": W, "v": V}, "dir/model.safetensors.index.json": index}
    assert codes("inputs: [dir]", {}, files) == ["io-input"]


def test_departure_torch_files_beside_safetensors_are_left_alone(here: Path):
    """`training_args.bin` in a model's folder makes it no less a safetensors checkpoint."""
    Path("dir").mkdir()
    torch.save({"lr": 0.1}, "dir/training_args.bin")
    assert codes("inputs: [dir]", {}, {"dir/model.safetensors": ONE}) == []


def test_departure_a_torch_file_may_hold_more_than_tensors(here: Path):
    """A trainer's file says its epoch beside the weights; nested names have dots, and the rest is left out."""
    files = {"m.pt": {"model": {"w": W}, "epoch": 3}, "plan.yaml": "inputs: [m.pt]\noutput: out.safetensors"}
    lay_out({}, files)
    bs.load("plan.yaml").run(durable=False)
    expect(read("out.safetensors"), {"model.w": W})


def test_departure_the_home_folder_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch):
    """The reference makes a folder that is called `~`."""
    monkeypatch.setenv("HOME", str(here))
    lay_out(ONE, {"plan.yaml": "inputs: ['~/model.safetensors']\noutput: ~/out.safetensors"})
    bs.load("plan.yaml").run(durable=False)
    expect(read("out.safetensors"), ONE)


# --- The plan file ----------------------------------------------------------------------------------------------------


def test_departure_unknown_top_level_keys_are_mistakes(here: Path):
    """A misspelt `transforms` must not run as an empty plan."""
    assert codes(f"{MODEL}transfroms: [exit]\n") == ["key-unknown"]


def test_departure_the_language_may_be_named(here: Path):
    """`version: 1` is this one; a plan for another is refused rather than misread."""
    assert codes(f"version: 1\n{MODEL}") == []
    assert codes(f"version: 2\n{MODEL}") == ["plan-version"]


def test_departure_override_values_are_yaml(here: Path):
    """`rank=1` is a number and `[..]` a list; in the reference every value is text."""
    lay_out(ONE, {"plan.yaml": in_model("[reshape_: { target: w, shape: [24] }]")})
    bs.load("plan.yaml", "transforms[0].reshape_.shape=[2, 12]").run(durable=False)
    expect(read("out.safetensors"), {"w": W.reshape(2, 12)})


def test_departure_overrides_come_after_all_files(here: Path):
    """Wherever they stand on the line, as the reference's own documentation says."""
    lay_out(ONE, {"plan.yaml": in_model("[scale_: { target: w, by: 2 }]")})
    bs.load("transforms[0].scale_.by=3", "plan.yaml").run(durable=False)
    expect(read("out.safetensors"), {"w": W * 3})


def test_departure_an_override_may_end_in_yaml(here: Path):
    """With an equals sign in it, and no file of that name, it is no plan file."""
    lay_out(ONE, {"plan.yaml": MODEL})
    assert mistakes("plan.yaml", "output=plan.of.yaml") == ["output-path"]


def test_departure_a_number_is_a_number_everywhere(here: Path):
    """`1e-3`, which plain YAML 1.1 takes for text."""
    assert codes(in_model("[assert: { equal: { left: w, right: w, eps: 1e-3 } }]")) == []


def test_departure_what_a_message_lists_is_short(here: Path):
    """The nearest name, not every name of the checkpoint."""
    lay_out(
        {f"h.{i}.weight": W for i in range(50)}, {"plan.yaml": f"{MODEL}transforms: [delete: {{ target: h.1.wieght }}]"}
    )
    with pytest.raises(bs.PlanError, match=re.escape("Did you mean 'h.1.weight'?")) as caught:
        bs.load("plan.yaml").run()
    assert len(str(caught.value)) < 400


# --- The session ------------------------------------------------------------------------------------------------------


def test_departure_an_input_first_used_in_a_dry_run_is_there_afterwards(here: Path):
    """In the reference it lives in the overlay alone, and its alias is empty from then on."""
    steps = "[set: { dry-run: true }, dump: { target: w }, set: { dry-run: false }, scale_: { target: w, by: 2 }]"
    out, _ = run(steps, ONE)
    expect(out, {"w": W * 2})


def test_departure_a_dry_run_covers_aliases(here: Path):
    """`prefixes` and `load` work on the shadow like any step: later steps see them, and they are gone when it ends."""
    steps = "[set: { dry-run: true }, prefixes: { mode: rename, from: model, to: x }, load: { path: t.safetensors },"
    steps += " copy: { from: 'model::v', to: 'x::v' }, set: { dry-run: false }, prefixes]"
    out, said = run(steps, ONE, {"t.safetensors": {"v": V}})
    assert said == "Aliases:\n  model::"
    expect(out, ONE)


def test_departure_counters_go_on_in_a_dry_run(here: Path):
    """So that an assert on them says what it will say in earnest; turned off, they are as before."""
    steps = "set: { dry-run: true }, scale_: { target: w, by: 2 }, assert: { reads: { of: w, is: 1 } }"
    assert codes(f"{MODEL}transforms: [{steps}]") == []


def test_departure_a_previewed_dry_run_leaves_out_no_step(here: Path):
    """Each preview knows what the steps before it do, and the summary lists exactly what ran."""
    steps = "[set: { preview: true, dry-run: true }, copy: { from: w, to: n }, scale_: { target: n, by: 2 }]"
    lay_out(ONE, {"plan.yaml": f"{MODEL}transforms: {steps}\n{OUT}"})
    report = bs.load("plan.yaml").run(durable=False)
    assert report.said[:2] == ("preview 2/3 copy: created 1: model::n", "preview 3/3 scale_: changed 1: model::n")
    assert [next(iter(step)) for step in report.steps] == ["set", "copy", "scale_"]
    assert not Path("out.safetensors").exists()


def test_departure_a_preview_knows_every_op(here: Path):
    """What `zeroes`, `load` and `execute` make, and what `phlora` deletes; `dump` changes nothing."""
    steps = [
        "set: { preview: true }",
        "zeroes: { target: z, shape: [1] }",
        "load: { path: e.npy, to: e }",
        "phlora: { target: w, target_a: A, target_b: B, rank: 1 }",
        "execute: { transforms: [delete: { target: z }] }",
        "dump: { target: e }",
    ]
    _, said = run(f"[{', '.join(steps)}]", ONE, {"e.npy": V[0]})
    assert [line for line in said.splitlines() if line.startswith("preview")] == [
        "preview 2/6 zeroes: created 1: model::z",
        "preview 3/6 load: created 1: model::e",
        "preview 4/6 phlora: created 2: model::A, model::B; deleted 1: model::w",
        "preview 5/6 execute: deleted 1: model::z",
        "preview 6/6 dump: no tensor changes",
        "preview, all steps: changed 0, created 4, deleted 2",
    ]


def test_departure_the_summary_is_printed_only_when_asked(here: Path, capsys: pytest.CaptureFixture[str]):
    """Nobody has to look for what the steps print; `--summarize` and `--summarize-path` bring it."""
    from brainsurgery_jax.cli import plans

    lay_out(ONE, {"plan.yaml": f"{MODEL}transforms: [dump: {{ target: w }}]"})
    plans.run(["plan.yaml"], plans.Choices(fsync=False))
    assert capsys.readouterr().out == "└── w  shape=[4, 6]\n"


# --- What is saved ----------------------------------------------------------------------------------------------------


def test_departure_an_output_is_of_the_alias_that_got_the_results(here: Path):
    """The reference goes by the source of `phlora` and the first part of `split`: it may save the wrong one."""
    steps = "[prefixes: { mode: add, alias: f }, phlora: { target: w, target_a: 'f::A', target_b: 'f::B', rank: 1,"
    steps += " delete_original: false }]"
    lay_out(ONE, {"plan.yaml": in_model(steps)})
    bs.load("plan.yaml").run(durable=False)
    assert sorted(read("out.safetensors")) == ["A", "B"]
    steps = "[prefixes: { mode: add, alias: f }, split: { from: w, to: [a, 'f::b'], sizes: [2, 2] }]"
    Path("out.safetensors").unlink()
    assert codes(in_model(steps)) == ["output-ambiguous"]


def test_departure_edits_within_execute_find_their_output(here: Path):
    """Where no step of the plan itself writes to an alias, what the plans within it write to is saved."""
    out, _ = run("execute: { transforms: [scale_: { target: w, by: 2 }] }", ONE)
    expect(out, {"w": W * 2})


def test_departure_plans_within_plans_execute_others(here: Path):
    """The reference refuses an `execute` inside another; here only one without end, or deeper than 16, is refused."""
    out, _ = run("execute: { transforms: [execute: { transforms: [scale_: { target: w, by: 2 }] }] }", ONE)
    expect(out, {"w": W * 2})


def test_departure_a_folder_of_one_file_has_no_index(here: Path):
    """What fits into one shard is `model.safetensors`, as loaders expect it."""
    lay_out(ONE, {"plan.yaml": f"{MODEL}output: out"})
    bs.load("plan.yaml").run(durable=False)
    assert [p.name for p in Path("out").glob("model*")] == ["model.safetensors"]


def test_departure_unchanged_files_of_a_sharded_input_stay_files_unless_the_plan_names_a_size(here: Path):
    """A model in many files is not written anew for one layer; the limit on files holds as ever."""
    lay_out({"w": W, "v": V}, {"plan.yaml": f"{MODEL}output: {{ path: in, shard: 8B }}"})
    bs.load("plan.yaml").run(durable=False)
    for shard, expected in (("", 2), (", shard: 5GB", 1)):
        store("plan.yaml", f"inputs: [in]\noutput: {{ path: out{expected}{shard} }}")
        bs.load("plan.yaml").run(durable=False)
        assert len(list(Path(f"out{expected}").glob("*.safetensors"))) == expected


def test_departure_the_mean_of_a_dump_is_not_rounded_to_the_dtype(here: Path):
    """Statistics are of the values as they are, in float64: a bfloat16 mean has more than three digits."""
    x = np.array([1, 2, 4.5], ml_dtypes.bfloat16)
    _, said = run("dump: { target: x, verbosity: stat }", {"x": x})
    assert "mean=2.5 " in said
    Path("out.safetensors").unlink()
    _, said = run("dump: { target: x, verbosity: stat }", {"x": x[:2].repeat(51)[:-1]})
    assert "mean=1.49505 " in said


def test_departure_a_file_needs_a_suffix_that_tells_its_format(here: Path):
    """The reference takes any other file for one of torch; here `format:` of `load` settles what a suffix does not."""
    torch.save({"w": torch.ones(2)}, "weights.v1")
    assert codes("inputs: [weights.v1]", {}) == ["io-input"]
    store("plan.yaml", f"transforms: [load: {{ path: weights.v1, format: torch }}]\n{OUT}")
    bs.load("plan.yaml").run(durable=False)
    expect(read("out.safetensors"), {"w": np.ones(2, F32)})


# --- One line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "step"),
    [("help: copy", {"help": "copy"}), ("load: x.pt", {"load": "x.pt"}), ("a: k: 'it''s'", {"a": {"k": "it's"}}),
     (r'a: k: "\u0041"', {"a": {"k": "A"}})],
)  # fmt: skip
def test_departure_a_line_says_what_yaml_says(line: str, step: dict[str, object]):
    """Payloads of plain text and quotes within quotes have no form in the reference's one-line syntax."""
    assert plain(parse_oly(line)) == step


def test_departure_a_bracket_that_stays_open_is_a_mistake():
    """In the reference it swallows the rest of the line, commas and keys."""
    with pytest.raises(bs.PlanError, match=r"the '\(' opened here is never closed"):
        parse_oly("move: from: h.(\\d+.w, to: x")
