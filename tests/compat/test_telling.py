"""Spec 7: what a run says of its steps: the summary, preview, dry-run and verbose lines.

Wording is our own where the specification leaves it free; what is said, in which order, and when, is not.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import brainsurgery_jax as bs
from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, expect, lay_out, read, store

W, V = counting((4, 6)), -counting((4, 6))
ONE = {"w": W, "v": V, "h.0.b": W, "h.1.b": V}
FILES = {"tuned.safetensors": {"x": W}, "e.npy": W[0]}
TWO = {"a": {"w": W}, "b": {"w": V}}


def verbose(step: str, says: str, rule: str) -> Row:
    """What a step says with the flag on; the flag itself says nothing."""
    return accepted("7.4", rule, f"[set: {{ verbose: true }}, {step}]", ONE, prints=says, files=FILES)


VERBOSE = (
    verbose("copy: { from: w, to: n }", "copy: w -> n", "a source and what it became"),
    verbose(r"move: { from: 'h\.(.)\.b', to: 'g.\1' }", "move: h.0.b -> g.0\nmove: h.1.b -> g.1", "one line per item"),
    verbose("add: { from_a: w, from_b: v, to: w }", "add: v -> w", "an operand that is written counts as written"),
    verbose("subtract: { from_a: w, from_b: v, to: h.0.b }", "subtract: w, v -> h.0.b", "two sources"),
    verbose("scale_: { target: 'w|v', by: 2 }", "scale_: v\nscale_: w", "one name for what changes in place"),
    verbose("delete: { target: 'h.*' }", "delete: h.0.b\ndelete: h.1.b", "or goes away"),
    verbose("concat: { from: [w, v, w], to: c }", "concat: w, v -> c", "few sources by name"),
    verbose("concat: { from: [w, v, 'h.0.b', 'h.1.b'], to: c }", "concat: 4 tensors -> c", "many by their number"),
    verbose("split: { from: w, to: [x, y], sizes: [1, 3] }", "split: w -> x, y", "all parts"),
    verbose("phlora: { target: w, target_a: A, target_b: B, rank: 1 }", "phlora: w -> A, B", "both factors"),
    verbose("zeroes: { target: z, shape: [2] }", "zeroes: z", "what is made of nothing"),
    verbose("load: { path: tuned.safetensors, alias: t }", "load: tuned.safetensors -> alias t",
            "a checkpoint by its path"),
    verbose("save: { path: s.safetensors, target: w }", "save: model::w -> s.safetensors", "one tensor by its alias"),
    verbose("save: snap.safetensors", "save: model -> snap.safetensors", "an alias"),
    verbose("prefixes: { mode: add, alias: x }", "prefixes: add x", "a mode"),
    accepted("7.4", "in a dry run the line says so",
             "[set: { verbose: true, dry-run: true }, scale_: { target: w, by: 2 }]",
             ONE, prints="dry-run scale_: w"),
    accepted("7.4", "names come without alias", "[set: { verbose: true }, copy: { from: 'a::w', to: 'b::n' }]", TWO,
             prints="copy: w -> n"),
    accepted("7.4", "an assert that holds", "[set: { verbose: true }, assert: { exists: w }]", ONE,
             prints="assert.exists: ok"),
)  # fmt: skip

PREVIEW = (
    accepted("7.2", "before each step, its place among all and what it will change, make and delete",
             r"""
             - set: { preview: true }
             - copy: { from: '[wv]', to: 'n.\g<0>' }
             - scale_: { target: '[wv]', by: 2 }
             - move: { from: w, to: m }
             - dump: { target: m }
             """, ONE, {"n.w": W, "n.v": V, "w": None, "m": W * 2, "v": V * 2},
             prints="""
             preview 2/5 copy: created 2: model::n.v, model::n.w
             preview 3/5 scale_: changed 2: model::v, model::w
             preview 4/5 move: created 1: model::m; deleted 1: model::w
             preview 5/5 dump: no tensor changes
             └── m  shape=[4, 6]
             preview, all steps: changed 2, created 3, deleted 1
             """),
)  # fmt: skip

DRY_RUN = (
    accepted("7.3", "steps see what earlier ones did; turned off, all is as it was",
             "[set: { dry-run: true }, scale_: { target: w, by: 0 }, delete: { target: v }, assert: { iszero: w },"
             " set: { dry-run: false }, assert: { exists: v }]", ONE, {}),
    accepted("7.3", "a save is checked and left out",
             "[set: { dry-run: true }, save: snap.safetensors, set: { dry-run: false }, scale_: { target: w, by: 2 }]",
             ONE,
             {"w": W * 2}),
    accepted("7.3", "what is loaded is gone when it is turned off",
             "[set: { dry-run: true }, load: { path: tuned.safetensors, alias: t }, set: { dry-run: false }, prefixes]",
             ONE,
             files=FILES, prints="Aliases:\n  model::"),
    accepted("7.3", "counters stand where they stood",
             "[set: { dry-run: true }, scale_: { target: w, by: 2 }, set: { dry-run: false },"
             " assert: { all: [reads: { of: w, is: 0 }, writes: { of: w, is: 1 }] }]", ONE),
)  # fmt: skip

ROWS = (*VERBOSE, *PREVIEW, *DRY_RUN)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_telling(row: Row, here: Path):
    check(row)


def test_a_dry_run_that_stays_on_writes_neither_output_nor_save(here: Path):
    steps = "[set: { dry-run: true }, save: snap.safetensors, scale_: { target: w, by: 2 }]"
    lay_out(ONE, {"plan.yaml": f"inputs: [model.safetensors]\ntransforms: {steps}\noutput: out.safetensors"})
    assert bs.load("plan.yaml").run(durable=False).published == ()
    assert sorted(p.name for p in here.iterdir()) == ["model.safetensors", "plan.yaml"]


def test_flags_do_not_outlive_a_run(here: Path):
    lay_out(ONE, {"plan.yaml": "transforms: [set: { dry-run: true, preview: true, verbose: true }]"})
    bs.load("plan.yaml").run(durable=False)
    store("plan.yaml", "transforms: [set]")
    assert bs.load("plan.yaml").run(durable=False).said == ("dry-run: false\npreview: false\nverbose: false",)


# --- 7.1 The summary --------------------------------------------------------------------------------------------------

PLAN = r"""
inputs: [base::model.safetensors]
transforms:
  - dump
  - copy: { from: [h, $i, b], to: ['g.${i}'] }
  - fill_: { target: w, mode: rand }
  - execute: { plan-yaml: "transforms: [{ scale_: { target: v, by: 1e-1 } }]" }
  - assert: { exists: 'g\.\d' }
  - exit: ~
  - delete: { target: none }
seed: 3
output: { path: out, shard: 96B }
"""
STEPS = [
    {"dump": {}},
    {"copy": {"from": ["h", "$i", "b"], "to": ["g.${i}"]}},
    {"fill_": {"target": "w", "mode": "rand"}},
    {"execute": {"plan-yaml": "transforms: [{ scale_: { target: v, by: 1e-1 } }]"}},
    {"assert": {"exists": r"g\.\d"}},
    {"exit": {}},
]


def summary(mode: str) -> str:
    """What a run of the plan writes as its summary."""
    from brainsurgery_jax.cli.plans import summary as written

    lay_out(ONE, {"plan.yaml": PLAN})
    plan = bs.load("plan.yaml")
    return written(plan, plan.run(durable=False), resolve=mode == "resolve")


def test_a_raw_summary_is_the_steps_that_ran_as_they_were_written(here: Path):
    assert yaml.safe_load(summary("raw")) == {"transforms": STEPS}


def test_a_resolved_summary_has_inputs_and_output_too(here: Path):
    assert yaml.safe_load(summary("resolve")) == {
        "inputs": ["base::model.safetensors"],
        "seed": 3,
        "transforms": STEPS,
        "output": {"path": "out", "shard": "96B"},
    }


def test_a_resolved_summary_runs_again_and_gives_the_same_tensors(here: Path):
    store("again.yaml", summary("resolve"))
    before = read("out")
    bs.load("again.yaml").run(durable=False, overwrite=True)
    expect(read("out"), before)
