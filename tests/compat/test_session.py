"""Spec 6.3, 6.5 and 6.6: `help`, `set`, `execute`. `row.py` tells how a row reads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, refused

W, V = counting((4, 6)), -counting((4, 6))
ONE, TWO = {"w": W}, {"a": {"w": W}, "b": {"w": V}}
TUNED = {"tuned.safetensors": {"v": V}}
NONE: dict[str, np.ndarray] = {}
OFF = "dry-run: false\npreview: false\nverbose: false"

HELP = (
    accepted("help", "without a name, all ops", "help", ONE, prints=re.compile(r"^ *scale_\b.*^ *copy\b", re.M | re.S)),
    accepted("help", "of one op: what it does, and its keys", "help: copy", ONE,
             prints=re.compile(r"new names.*\bfrom\b.*required.*\bto\b.*required", re.S)),
    accepted("help", "of one operator of assert", "help: { assert: equal }", ONE,
             prints=re.compile(r"\bleft\b.*required.*\bright\b.*required.*\beps\b.*optional", re.S)),
    accepted("help", "nothing is changed", "help: exit", ONE, {}),
    refused("help", "the op must be known", "help: copi", ONE, "op-unknown", "no op 'copi'. Did you mean 'copy'"),
    refused("help", "the operator must be known", "help: { assert: eqal }", ONE, "op-unknown",
            "Did you mean 'assert.equal'"),
    refused("help", "only `assert` has operators", "help: { copy: from }", ONE, "key-unknown", "unknown key 'copy'"),
)  # fmt: skip

SET = (
    accepted("set", "without a key the flags are printed", "set", ONE, prints=OFF),
    accepted("set", "booleans, and the words for them in any case",
             "[set: { dry-run: T, preview: ' False ', verbose: true }, set, set: { verbose: f }]", ONE,
             prints=re.compile("dry-run: true\npreview: false\nverbose: true")),
    accepted("set", "in a dry run tensors change, and are as before when it is turned off",
             "[set: { dry-run: true }, scale_: { target: w, by: 0 }, copy: { from: w, to: n }, assert: { iszero: n },"
             " set: { dry-run: false }, assert: { not: { exists: n } }]", ONE, {}),
    refused("set", "asserts of a dry run count", "[set: { dry-run: true }, assert: { iszero: w }]", ONE,
            "assert-failed",
            "'w' is not zero", late=True),
    refused("set", "numbers are no flags", "set: { dry-run: 1 }", ONE, "value-type", "expected true or false, got 1"),
    refused("set", "other words are no flags", "set: { verbose: 'on' }", ONE, "value-type", "got the text 'on'"),
    refused("set", "the flag must be known", "set: { dryrun: true }", ONE, "key-unknown", "Did you mean 'dry-run'"),
    refused("set", "the payload is a mapping", "set: verbose", ONE, "payload-type", "expected a mapping"),
)  # fmt: skip

SOURCES = """
execute:
  path: sub.yaml
  plan-yaml: "transforms: [copy: { from: c2, to: c3 }]"
  plan: [copy: { from: c1, to: c2 }]
  transforms: { copy: { from: w, to: c1 } }
"""

EXECUTE = (
    accepted("execute", "steps of four sources, in their own order whatever that of the keys", SOURCES, ONE,
             {"c1": W, "c2": W, "c3": W, "c4": W}, files={"sub.yaml": "transforms: [copy: { from: c3, to: c4 }]"}),
    accepted("execute", "a source may be empty as long as another is not",
             "execute: { plan-yaml: '', transforms: [scale_: { target: w, by: 2 }] }", ONE, {"w": W * 2}),
    accepted("execute", "a file may be a list of steps", "execute: { path: sub.yaml }", ONE, {"w": W * 2},
             files={"sub.yaml": "- scale_: { target: w, by: 2 }\n"}),
    accepted("execute", "`${x}` in the text of a plan is a capture there",
             """execute: { plan-yaml: 'transforms: [{ copy: { from: ["$x"], to: ["n_${x}"] } }]' }""", ONE, {"n_w": W}),
    accepted("execute", "inputs of a plan are loaded, its output is saved",
             "execute: { plan: { inputs: ['t::tuned.safetensors'], transforms: [scale_: { target: v, by: 2 }],"
             " output: 't::snap.safetensors' } }", TWO, {}, files=TUNED, leaves={"snap.safetensors": {"v": V * 2}}),
    accepted("execute", "an only input without alias is `model`",
             "[execute: { plan: { inputs: [tuned.safetensors], transforms: [delete: { target: v }] } }]", TWO, {},
             files=TUNED),
    accepted("execute", "of several inputs the one without alias is numbered",
             "execute: { plan: { inputs: ['t::tuned.safetensors', '::a.safetensors'],"
             " transforms: [assert: { exists: 'model_2::w' }] } }", TWO, {}, files=TUNED),
    accepted("execute", "references without alias mean the only input of the plan within",
             "execute: { plan: { inputs: ['t::tuned.safetensors'], transforms: [assert: { exists: v }] } }", ONE,
             files=TUNED),
    accepted("execute", "else the only alias that there is", "execute: { transforms: [scale_: { target: w, by: 2 }] }",
             ONE, {"w": W * 2}),
    accepted("execute", "flags stay as the steps within leave them",
             "[execute: { transforms: [set: { verbose: true }] }, set]", ONE, prints=re.compile("verbose: true")),
    accepted("execute", "`exit` within ends the outer plan as well",
             "[execute: { transforms: [exit, delete: { target: none }] }, delete: { target: none }]", ONE, {}),
    refused("execute", "there must be a step", "execute", ONE, "execute-empty", "no step to execute"),
    refused("execute", "also in what is given", "execute: { transforms: [], plan-yaml: '' }", ONE, "execute-empty",
            "no step to execute"),
    refused("execute", "the file must be there", "execute: { path: none.yaml }", ONE, "plan-file-missing", "none.yaml"),
    refused("execute", "steps within are read like others", "execute: { transforms: [delete: {}] }", ONE, "key-missing",
            "missing key 'target'"),
    refused("execute", "text must be YAML", "execute: { plan-yaml: 'transforms: [' }", ONE, "yaml-syntax",
            "bracket|end|closed|YAML"),
    refused("execute", "aliases must be there", "execute: { transforms: [delete: { target: 'x::w' }] }", ONE,
            "alias-unknown", "unknown alias 'x'"),
    refused("execute", "with several aliases every reference names one",
            "execute: { transforms: [delete: { target: w }] }", TWO, "ref-no-alias", "'w' has no alias"),
    refused("execute", "an input within must not take an alias that is there",
            "execute: { plan: { inputs: [tuned.safetensors], transforms: [delete: { target: v }] } }", ONE,
            "alias-exists",
            "alias 'model' exists already",
            files=TUNED),
    refused("execute", "there are no other keys", "execute: { steps: [exit] }", ONE, "key-unknown", "'steps'"),
)  # fmt: skip

ROWS = (*HELP, *SET, *EXECUTE)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_session(row: Row, here: Path):
    check(row)
