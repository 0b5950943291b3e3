r"""Spec 1: top-level keys, inputs, steps, outputs, the alias that is saved, merges and overrides. `row.py` tells how a
row reads; here each plan is whole, so that its outputs go where it says.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import brainsurgery_jax as bs
from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, expect, lay_out, mistakes, read, refused, store

W, V = counting((4, 6)), -counting((4, 6))
ONE, TWO = {"w": W, "v": V}, {"a": {"w": W}, "b": {"v": V}}
NONE: dict[str, np.ndarray] = {}
HEAD = "inputs: [model.safetensors]\n"
SCALED = "transforms:\n  - scale_: { target: w, by: 2 }\n"
OUT = "output: out.safetensors\n"
BOTH = "inputs: ['a::a.safetensors', 'b::b.safetensors']\n"
ANY = {"w": W * 2, "v": V}


def body(text: str) -> str:
    """A plan with one input and an edit before the text."""
    return HEAD + SCALED + text


DOCUMENT = (
    accepted("1.1", "a plan may be without inputs and output", "transforms: [prefixes: { mode: add, alias: x }]", NONE),
    accepted("1.1", "null counts as left out", "inputs: ~\ntransforms: ~\noutput: ~", NONE),
    accepted("1.1", "an output that is empty is none", body("output: ''"), ONE),
    accepted("1.1", "also as a mapping", body("output: {}"), ONE),
    refused("1.1", "inputs are a list", "inputs: { model: model.safetensors }", ONE, "inputs-form",
            "expected a list"),
    refused("1.1", "and then nothing is said of what steps make of them",
            "inputs: { model: model.safetensors }\n" + SCALED, ONE, "inputs-form", "expected a list"),
    refused("1.1", "also where there is one", "inputs: model.safetensors\n" + SCALED, ONE, "inputs-form",
            "expected a list"),
)  # fmt: skip

INPUTS = (
    accepted("1.2", "an only input needs no alias; it is `model`",
             HEAD + "transforms: { scale_: { target: 'model::w', by: 2 } }\n" + OUT,
             ONE, {"w": W * 2}),
    accepted("1.2", "an empty alias is `model`, too", "inputs: ['::model.safetensors']\n" + SCALED + OUT, ONE,
             {"w": W * 2}),
    accepted("1.2", "the alias of an only input is the default", "inputs: ['x::model.safetensors']\n" + SCALED + OUT,
             ONE,
             {"w": W * 2}),
    accepted("1.2", "an alias is any text, and not trimmed",
             "inputs: [' x ::model.safetensors']\ntransforms: { scale_: { target: ' x ::w', by: 2 } }\n" + OUT,
             ONE, {"w": W * 2}),
    refused("1.2", "of several inputs each needs an alias", "inputs: ['a::a.safetensors', b.safetensors]", TWO,
            "inputs-form", "needs an alias"),
    refused("1.2", "the path is not empty", "inputs: ['a::']", NONE, "inputs-form", "has no path"),
    refused("1.2", "an alias is given once", "inputs: ['a::a.safetensors', 'a::b.safetensors']", TWO, "alias-duplicate",
            "given twice"),
    refused("1.2", "an input is text", "inputs: [3]", NONE, "inputs-form", "got 3"),
    refused("1.2", "an input is not empty", "inputs: ['']", NONE, "inputs-form", "got ''"),
    refused("1.2", "loading makes no default alias",
            "transforms: [load: { path: model.safetensors, alias: m }, delete: { target: w }]",
            ONE, "ref-no-alias", "'w' has no alias"),
)  # fmt: skip

STEPS = (
    accepted("1.3", "one step needs no list", HEAD + "transforms: { scale_: { target: w, by: 2 } }\n" + OUT, ONE,
             {"w": W * 2}),
    accepted("1.3", "one name needs no list", HEAD + "transforms: prefixes", ONE, prints="Aliases:\n  model::"),
    accepted("1.3", "a name is a step without payload, so is a null payload",
             HEAD + "transforms: [prefixes, prefixes: ~]",
             ONE, prints="Aliases:\n  model::\nAliases:\n  model::"),
    refused("1.3", "two keys are two steps", HEAD + "transforms: [{ prefixes: {}, exit: {} }]", ONE, "step-form",
            "exactly one key"),
    refused("1.3", "a number is no step", HEAD + "transforms: [3]", ONE, "step-form", "got 3"),
    refused("1.3", "null is no step", HEAD + "transforms: [~]", ONE, "step-form", "got None"),
    refused("1.3", "a list is no step", HEAD + "transforms: [[exit]]", ONE, "step-form", r"got \["),
    refused("1.3", "the name must be known", HEAD + "transforms: [scael_: { target: w, by: 2 }]", ONE, "op-unknown",
            "unknown op 'scael_'. Did you mean 'scale_'"),
    refused("1.3", "only `load`, `save` and `help` take plain text", HEAD + "transforms: [delete: w]", ONE,
            "payload-type",
            "expected a mapping"),
)  # fmt: skip

OUTPUT = (
    accepted("1.4", "a path with the suffix of a file", body("output: new/out.safetensors"), ONE,
             leaves={"new/out.safetensors": ANY}),
    accepted("1.4", "a path without suffix is a folder", body("output: { path: new/out }"), ONE,
             leaves={"new/out": ANY}),
    accepted("1.4", "also where the format is said", body("output: { path: out, format: safetensors, shard: none }"),
             ONE,
             leaves={"out/model.safetensors": ANY}),
    accepted("1.4", "`none` is no shard size, so a file takes it",
             body("output: { path: out.safetensors, shard: none }"), ONE, ANY),
    accepted("1.4", "a shard size, in a folder", body("output: { path: out, shard: 96B }"), ONE,
             leaves={"out/model-00001-of-00002.safetensors": {"v": V},
                     "out/model-00002-of-00002.safetensors": {"w": W * 2}}),
    refused("1.4", "an alias is no part of the path", body("output: 'model::out.safetensors'"), ONE, "output-form",
            "has an alias before the path"),
    refused("1.4", "`path` is required", body("output: { format: safetensors }"), ONE, "key-missing",
            "missing key 'path'"),
    refused("1.4", "the path is text", body("output: { path: 3 }"), ONE, "value-type", "expected text, got 3"),
    refused("1.4", "there are no other keys", body("output: { path: out, dtype: float16 }"), ONE, "key-unknown",
            "'dtype'"),
    refused("1.4", "the format must be known, in lower case", body("output: { path: out, format: Torch }"), ONE,
            "output-format", "unknown format 'Torch'"),
    refused("1.4", "an output is text or a mapping", body("output: [out]"), ONE, "output-form", "a path or a mapping"),
    refused("1.4", "a suffix that tells no format", body("output: llama-3.1"), ONE, "output-path", "tells no format"),
    refused("1.4", "a suffix of another format", body("output: { path: out.pt, format: safetensors }"), ONE,
            "output-path",
            "ends in .pt, and the format is safetensors"),
    refused("1.4", "torch files have a suffix of torch", body("output: { path: out.safetensors, format: torch }"), ONE,
            "output-path", "ends in .safetensors, and the format is torch"),
    refused("1.4", "dcp is a folder", body("output: { path: out.safetensors, format: dcp }"), ONE, "output-path",
            "dcp"),
    refused("1.4", "one file has no shards", body("output: { path: out.safetensors, shard: 1MB }"), ONE, "output-path",
            "one file, and a shard size needs a folder"),
    refused("1.4", "a shard size is an integer and a unit", body("output: { path: out, shard: 1.5GB }"), ONE,
            "output-shard", "1.5GB"),
    refused("1.4", "a shard size is not 0", body("output: { path: out, shard: 0MB }"), ONE, "output-shard",
            "0MB|above 0"),
    refused("1.4", "a shard size is text", body("output: { path: out, shard: 5 }"), ONE, "value-type",
            "expected text, got 5"),
)  # fmt: skip

ALIAS = (
    accepted("1.5", "the alias that steps write to is saved",
             BOTH + "transforms: [copy: { from: 'a::w', to: 'b::w' }]\n" + OUT,
             TWO, leaves={"out.safetensors": {"w": W, "v": V}}),
    accepted("1.5", "an alias that holds nothing at the end does not count",
             BOTH + "transforms: [move: { from: 'a::w', to: 'b::w' }]\n" + OUT,
             TWO, leaves={"out.safetensors": {"w": W, "v": V}}),
    accepted("1.5", "an alias that was removed does not count",
             HEAD + "transforms: [load: { path: model.safetensors, alias: x }, scale_: { target: w, by: 2 },"
             " prefixes: { mode: remove, alias: x }]\n" + OUT, ONE, {"w": W * 2}),
    accepted("1.5", "reports and asserts write to none",
             BOTH + "transforms: [dump, assert: { exists: 'b::v' },"
             " scale_: { target: 'a::w', by: 2 }, diff: { left: 'a::.*', right: 'b::.*' }]\n" + OUT, TWO,
             leaves={"out.safetensors": {"w": W * 2}}),
    accepted("1.5", "what plans within the plan write to does not count beside what its own steps do",
             body("  - execute: { plan: { inputs: ['t::tuned.safetensors'], transforms: [copy: { from: 't::x',"
                  " to: 'model::x' }] } }\n" + OUT), ONE, ANY | {"x": W}, files={"tuned.safetensors": {"x": W}}),
    refused("1.5", "two aliases that are written to are one too many",
            BOTH + "transforms: [scale_: { target: 'a::w', by: 2 },"
            " scale_: { target: 'b::v', by: 2 }]\n" + OUT, TWO, "output-ambiguous", "'a', 'b': steps wrote to each"),
    refused("1.5", "a loaded alias counts as written",
            HEAD + "transforms: [load: { path: model.safetensors, alias: x },"
            " scale_: { target: w, by: 2 }]\n" + OUT, ONE, "output-ambiguous", "'model', 'x': steps wrote to each"),
    refused("1.5", "something must be left", HEAD + "transforms: [delete: { target: '.*' }]\n" + OUT, ONE,
            "output-empty",
            "holds? (no|any) tensor"),
)  # fmt: skip

ROWS = (*DOCUMENT, *INPUTS, *STEPS, *OUTPUT, *ALIAS)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_plan_file(row: Row, here: Path):
    check(row)


def test_a_folder_has_an_index_of_its_shards(here: Path):
    check(next(row for row in ROWS if row.rule == "a shard size, in a folder"))
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 192},
        "weight_map": {"v": "model-00001-of-00002.safetensors", "w": "model-00002-of-00002.safetensors"},
    }


# --- 1.6 Several files and overrides ----------------------------------------------------------------------------------

FIRST = HEAD + "transforms:\n  - scale_: { target: w, by: 2 }\n" + OUT
MERGES = {
    "mappings are merged key by key, lists by index": "transforms: [{ scale_: { by: 3 } }]",
    "a list of the base stays as long as it was": "transforms: []\noutput: out.safetensors",
    "null in a list keeps what was there": "transforms: [~]",
    "an empty file changes nothing": "",
}  # fmt: skip


@pytest.mark.parametrize("rule", MERGES)
def test_merging(here: Path, rule: str):
    lay_out(ONE, {"plan.yaml": FIRST, "more.yaml": MERGES[rule]})
    bs.load("plan.yaml", "more.yaml").run(durable=False)
    expect(read("out.safetensors"), {"w": W * (3 if "merged" in rule else 2), "v": V})


def test_a_longer_list_of_a_later_file_adds_its_steps(here: Path):
    lay_out(ONE, {"plan.yaml": FIRST, "more.yaml": "transforms: [~, { scale_: { target: v, by: 3 } }]"})
    bs.load("plan.yaml", "more.yaml").run(durable=False)
    expect(read("out.safetensors"), {"w": W * 2, "v": V * 3})


def test_other_values_of_a_later_file_replace(here: Path):
    lay_out(ONE, {"plan.yaml": FIRST, "more.yaml": "output: other.safetensors"})
    bs.load("plan.yaml", "more.yaml").run(durable=False)
    assert not Path("out.safetensors").exists()
    expect(read("other.safetensors"), {"w": W * 2, "v": V})


def test_a_later_null_in_a_mapping_replaces(here: Path):
    lay_out(ONE, {"plan.yaml": FIRST, "more.yaml": "output: ~"})
    bs.load("plan.yaml", "more.yaml").run(durable=False)
    assert not Path("out.safetensors").exists()


OVERRIDES = {
    "transforms[0].scale_.by.=3": 3,
    "transforms[0].scale_.by=3": 3,
    "transforms[0].scale_.by=1e-1": np.float32(0.1),
    "transforms.[0].scale_.by=3": 3,
    "transforms[0]={scale_: {target: w, by: 3}}": 3,
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_sets_a_key(here: Path, override: str):
    lay_out(ONE, {"plan.yaml": FIRST})
    bs.load("plan.yaml", override).run(durable=False)
    expect(read("out.safetensors"), {"w": W * np.float32(OVERRIDES[override]), "v": V})


def test_an_empty_override_disables_the_output(here: Path):
    lay_out(ONE, {"plan.yaml": FIRST})
    bs.load("plan.yaml", "output=").run(durable=False)
    assert not Path("out.safetensors").exists()


def test_an_override_may_add_an_item(here: Path):
    lay_out(ONE, {"plan.yaml": FIRST})
    bs.load("plan.yaml", "transforms[1].scale_.target=v", "transforms[1].scale_.by=3").run(durable=False)
    expect(read("out.safetensors"), {"w": W * 2, "v": V * 3})


WRONG = {
    "two ops at one place of two files": (["plan.yaml", "more.yaml"], "step-form"),
    "a list is no plan": (["list.yaml"], "plan-not-a-mapping"),
    "a file that is not there": (["none.yaml"], "plan-file-missing"),
    "neither a file nor an override": (["plan.yaml", "faster"], "plan-item"),
    "a gap in a list": (["plan.yaml", "transforms[2]=exit"], "override-path"),
    **{f"the key path {key!r}": (["plan.yaml", f"{key}=1"], "override-syntax")
       for key in ("", "a..b", "a b", "a[x]", "a[-1]", "a[0]b", "[0].a")},
}  # fmt: skip


@pytest.mark.parametrize("rule", WRONG)
def test_items_that_make_no_plan(here: Path, rule: str):
    lay_out(ONE, {"plan.yaml": FIRST, "more.yaml": "transforms: [{ exit: ~ }]", "list.yaml": "- exit"})
    items, code = WRONG[rule]
    assert mistakes(*items) == [code]


def test_keys_stand_once_in_a_mapping(here: Path):
    store("plan.yaml", "transforms:\n  - delete: { target: a, target: b }\n")
    assert mistakes() == ["yaml-duplicate-key"]


# --- 1.7 Dialects -----------------------------------------------------------------------------------------------------


def test_a_variable_of_the_environment_stands_for_its_value(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHERE", str(here))
    lay_out(ONE, {"plan.yaml": "inputs: ['${oc.env:WHERE}/model.safetensors']\n" + OUT})
    bs.load("plan.yaml").run(durable=False)
    expect(read("out.safetensors"), ONE)


def test_a_plan_may_be_overrides_alone(here: Path):
    lay_out(ONE)
    bs.load("inputs[0]=model.safetensors", "transforms[0].save=snap.safetensors").run(durable=False)
    expect(read("snap.safetensors"), ONE)


def test_the_suffix_of_a_plan_file_may_be_in_capitals(here: Path):
    lay_out(ONE, {"PLAN.YML": FIRST})
    bs.load("PLAN.YML").run(durable=False)
    expect(read("out.safetensors"), {"w": W * 2, "v": V})


def test_words_and_numbers_are_those_of_yaml_1_1(here: Path):
    step = "phlora: { target: '(w)', target_a: a, target_b: b, rank: 1, delete_original: no }"
    lay_out(ONE, {"plan.yaml": f"{HEAD}transforms:\n  - {step}\n  - scale_: {{ target: v, by: 1e-1 }}\n{OUT}"})
    bs.load("plan.yaml").run(durable=False)
    out = read("out.safetensors")
    expect({k: out[k] for k in "wv"}, {"w": W, "v": V * np.float32(0.1)})
