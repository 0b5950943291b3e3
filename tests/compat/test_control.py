"""Spec 6.4 and 6.9: `prefixes` and `exit`. `row.py` tells how a row reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, refused

W = counting((2, 3))
ONE, TWO = {"w": W}, {"b": {"w": W}, "a": {"v": W}}
WHOLE = "inputs: [model.safetensors]\ntransforms:\n%s\noutput: { path: out.safetensors, alias: %s }"
ADD = "  - prefixes: { mode: add, alias: work }\n"
COPY = "  - copy: { from: w, to: 'work::w' }\n"

PREFIXES = (
    accepted("prefixes", "`list` prints every alias, sorted", "prefixes: { mode: list }", TWO,
             prints="Aliases:\n  a::\n  b::"),
    accepted("prefixes", "is `list` without a payload", "prefixes", ONE, prints="Aliases:\n  model::"),
    accepted("prefixes", "`add` makes an empty alias for later steps", WHOLE % (ADD + COPY, "work"), ONE, {}),
    accepted("prefixes", "`rename` takes all tensors, edits too, to the new alias",
             WHOLE % (ADD + COPY + "  - scale_: { target: 'work::w', by: 2 }\n"
                      "  - prefixes: { mode: rename, from: work, to: edited }", "edited"), ONE, {"w": W * 2}),
    accepted("prefixes", "`remove` drops an alias with its tensors",
             WHOLE % (ADD + COPY + "  - prefixes: { mode: remove, alias: work }\n  - prefixes", "model"), ONE, {},
             prints="Aliases:\n  model::"),
    refused("prefixes", "`add` makes no alias twice", "prefixes: { mode: add, alias: a }", TWO, "alias-exists",
            "alias 'a' exists already"),
    refused("prefixes", "`remove` needs an alias that is there", "prefixes: { mode: remove, alias: c }", TWO,
            "alias-unknown", "unknown alias 'c'"),
    refused("prefixes", "`rename` needs one, too", "prefixes: { mode: rename, from: c, to: d }", TWO, "alias-unknown",
            "unknown alias 'c'"),
    refused("prefixes", "`rename` replaces no other alias", "prefixes: { mode: rename, from: a, to: b }", TWO,
            "alias-exists", "alias 'b' exists already"),
    refused("prefixes", "`rename` needs two names", "prefixes: { mode: rename, from: a, to: a }", TWO, "alias-exists",
            "alias 'a' exists already"),
    refused("prefixes", "keys of another mode are refused", "prefixes: { mode: list, alias: a }", TWO, "prefixes-keys",
            "mode 'list' takes no other key"),
    refused("prefixes", "keys of the mode are required", "prefixes: { mode: rename, from: a }", TWO, "prefixes-keys",
            "takes 'from' and 'to'"),
    refused("prefixes", "the mode must be known", "prefixes: { mode: drop, alias: a }", TWO, "value-type", "'remove'"),
)  # fmt: skip

EXIT = (
    accepted("exit", "later steps are left out, the output is written",
             "[scale_: { target: w, by: 2 }, exit, scale_: { target: w, by: 3 }]", ONE, {"w": W * 2}),
    accepted("exit", "also with an empty payload", "[exit: {}, delete: { target: none }]", ONE, {}),
    refused("exit", "it has no payload", "exit: { code: 1 }", ONE, "key-unknown", "unknown key 'code'"),
    refused("exit", "neither text", "exit: now", ONE, "payload-type", "expected no payload, got 'now'"),
    refused("exit", "later steps are still read", "[exit, delete: {}]", ONE, "key-missing", "missing key 'target'"),
)  # fmt: skip

ROWS = (*PREFIXES, *EXIT)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_control(row: Row, here: Path):
    check(row)
