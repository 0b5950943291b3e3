"""Spec 6.1 and 6.2: `dump` and `diff`. `row.py` tells how a row reads.

They change nothing and never fail a plan for what they find; what they cannot read is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, refused, run

W, B = counting((2, 3)) - 1, np.array([0.5, -2, 1e-9, 12345.678], np.float32)
GPT = {f"h.{i}.w": counting((8, 4)) for i in range(4)} | {"ln.w": B}
ONE = {"w": W, "b": B, "e": np.zeros((0, 2), np.float32), "s": np.array(7, np.int8), "t": np.array([True, False])}
TWO = {"b": {"y.0": W, "y.1": W}, "a": {"x": B}}
LEFT = {"same": W, "value": W, "shape": W, "dtype": W, "nan": W * np.nan, "only": B}
RIGHT = {"same": W, "value": W + np.float32(0.25), "shape": W.T, "dtype": W.astype(np.float16), "nan": W * np.nan,
         "more": B}  # fmt: skip
BOTH = {"a": LEFT, "b": RIGHT}

DUMP = (
    accepted("dump", "compact, with shapes: list items that say the same are one", "dump: { target: '.*' }", GPT,
             prints="""
             ├── h
             │   └── [0-3]
             │       └── w  shape=[8, 4]
             └── ln
                 └── w  shape=[4]
             """),
    accepted("dump", "as a tree every list item has its line", "dump: { target: 'h.*', format: ' Tree ' }",
             {k: GPT[k] for k in ("h.0.w", "h.1.w")},
             prints="""
             └── h
                 ├── [0]
                 │   └── w  shape=[8, 4]
                 └── [1]
                     └── w  shape=[8, 4]
             """),
    accepted("dump", "as one line of JSON, keys sorted, digits as list indices",
             "dump: { target: '.*', format: json }", GPT,
             prints='{"h":[{"w":{"shape":[8,4]}},{"w":{"shape":[8,4]}},{"w":{"shape":[8,4]}},{"w":{"shape":[8,4]}}],'
                    '"ln":{"w":{"shape":[4]}}}'),
    accepted("dump", "a missing list index is null in JSON", "dump: { target: '.*', format: json }",
             {"h.0.w": B, "h.2.w": B}, prints='{"h":[{"w":{"shape":[4]}},null,{"w":{"shape":[4]}}]}'),
    accepted("dump", "without a target every alias is a block", "dump", TWO,
             prints="""
             b
             └── y
                 └── [0-1]  shape=[2, 3]

             a
             └── x  shape=[4]
             """),
    accepted("dump", "without a target JSON is a line for every alias", "dump: { format: json }", TWO,
             prints='{"b":{"y":[{"shape":[2,3]},{"shape":[2,3]}]}}\n{"a":{"x":{"shape":[4]}}}'),
    accepted("dump", "without any alias JSON is an empty object", "dump: { format: json }", {}, prints="{}"),
    accepted("dump", "statistics have six digits; the counters include this very read",
             "dump: { target: 'b|w', verbosity: STAT }", ONE,
             prints="""
             ├── b  shape=[4] min=-2 max=12345.7 mean=3086.04 reads=1 writes=1
             └── w  shape=[2, 3] min=-1 max=4 mean=1.5 reads=1 writes=1
             """),
    accepted("dump", "integers and booleans have statistics, an empty tensor has none",
             "dump: { target: '[est]', verbosity: stat }", ONE,
             prints="""
             ├── e  shape=[0, 2] min=None max=None mean=None reads=1 writes=1
             ├── s  shape=[] min=7 max=7 mean=7 reads=1 writes=1
             └── t  shape=[2] min=0 max=1 mean=0.5 reads=1 writes=1
             """),
    accepted("dump", "of an empty tensor the statistics are null in JSON",
             "dump: { target: e, verbosity: stat, format: json }", ONE,
             prints='{"e":{"max":null,"mean":null,"min":null,"reads":1,"shape":[0,2],"writes":1}}'),
    accepted("dump", "a slice is shown, not the whole", "dump: { target: 'w::[0, 1:]', verbosity: stat }", ONE,
             prints="└── w  shape=[2] min=0 max=1 mean=0.5 reads=1 writes=1"),
    accepted("dump", "nothing is changed", "dump", ONE, {}, prints=re.compile("shape")),
    refused("dump", "a target must match", "dump: { target: none }", ONE, "no-match", "no tensor matches 'none'"),
    refused("dump", "the format must be known", "dump: { format: yaml }", ONE, "value-type",
            "'compact', 'tree' or 'json'"),
    refused("dump", "the verbosity must be known", "dump: { verbosity: all }", ONE, "value-type",
            "'shape', 'stat' or 'full'"),
    refused("dump", "there are no other keys", "dump: { of: w }", ONE, "key-unknown", "unknown key 'of'"),
)  # fmt: skip

DIFF = (
    accepted("diff", "two aliases: what is missing, what differs, and in what",
             "diff: { mode: aliases, left_alias: a, right_alias: b }", BOTH,
             prints=re.compile(r"""diff a::\.\* b::\.\*
missing in a.*:
  - more
missing in b.*:
  - only
differing:
  - 'dtype' is f32\[2,3\] on the left and f16\[2,3\] on the right
  - 'nan' differs in value
  - 'shape' is f32\[2,3\] on the left and f32\[3,2\] on the right
  - 'value' differs in value
figures:
  - value: 6 of 6 differ; largest 0\.25 at .*$""")),
    accepted("diff", "two references, matched each by its own pattern", "diff: { left: 'a::s.*', right: 'b::same' }",
             BOTH,
             prints=re.compile(r"diff a::s\.\* b::same\n.*:\n  - none\n.*:\n  - shape\ndiffering:\n  - none$")),
    accepted("diff", "slices are compared", "diff: { left: 'a::same::[0]', right: 'b::same::[1]' }", BOTH,
             prints=re.compile("differing:\n  - 'same' differs in value")),
    accepted("diff", "with a tolerance the largest difference is told",
             "diff: { left: 'a::value', right: 'b::value', eps: 1.0e-2 }", BOTH,
             prints=re.compile("'value' differs by 0.25, more than 0.01")),
    accepted("diff", "within the tolerance nothing differs", "diff: { left: 'a::value', right: 'b::value', eps: 0.3 }",
             BOTH, prints=re.compile("differing:\n  - none\nno difference$")),
    accepted("diff", "no match on a side is no mistake", "diff: { left: 'a::none', right: 'b::same' }", BOTH,
             prints=re.compile(r"missing in a::none:\n  - same\n")),
    refused("diff", "no match on either side is one", "diff: { left: 'a::none', right: 'b::nil' }", BOTH, "no-match",
            "no tensor matches 'none' in 'a'"),
    accepted("diff", "nothing is changed", "diff: { left: 'a::.*', right: 'b::.*' }", BOTH, {}),
    refused("diff", "references need both sides", "diff: { left: 'a::.*' }", BOTH, "diff-keys", "left and right"),
    refused("diff", "keys of the other mode are refused", "diff: { left: 'a::.*', right: 'b::.*', left_alias: a }",
            BOTH,
            "diff-keys", "left and right"),
    refused("diff", "aliases need both sides", "diff: { mode: aliases, left_alias: a }", BOTH, "diff-keys",
            "left_alias and right_alias"),
    refused("diff", "the mode must be known", "diff: { mode: names }", BOTH, "value-type", "'refs' or 'aliases'"),
    refused("diff", "the alias must be there", "diff: { mode: aliases, left_alias: a, right_alias: c }", BOTH,
            "alias-unknown", "'c'"),
    refused("diff", "the tolerance is a number", "diff: { left: 'a::.*', right: 'b::.*', eps: '1' }", BOTH,
            "value-type",
            "'1'"),
)  # fmt: skip

ROWS = (*DUMP, *DIFF)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_reports(row: Row, here: Path):
    check(row)


def test_a_full_dump_holds_the_values(here: Path):
    _, said = run("dump: { target: 'w|s', verbosity: full, format: json }", ONE)
    found = json.loads(said)
    assert found["w"]["values"] == W.tolist()
    assert found["s"]["values"] == 7
    assert {k: found["w"][k] for k in ("shape", "reads", "writes")} == {"shape": [2, 3], "reads": 1, "writes": 1}
