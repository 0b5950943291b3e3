"""Interfaces 2: one step on a line, by the reference's own cases. test_departures.py has what only we can say."""

from __future__ import annotations

from typing import Any

import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.plan.oly import parse_oly
from brainsurgery_jax.plan.source import plain

READ: dict[str, Any] = {
    "exit": "exit",
    "exit:": {"exit": None},
    "exit :": {"exit": None},
    "copy: {}": {"copy": {}},
    "copy:from:x,to:y": {"copy": {"from": "x", "to": "y"}},
    "copy: {from: x, to: y}": {"copy": {"from": "x", "to": "y"}},
    "help: assert: equal": {"help": {"assert": "equal"}},
    "assert: equal: {left: a, right: b, eps: 1e-6}": {"assert": {"equal": {"left": "a", "right": "b", "eps": 1e-6}}},
    "assert: all: [{exists: a}, {not: {exists: b}}]": {"assert": {"all": [{"exists": "a"}, {"not": {"exists": "b"}}]}},
    "copy: from: [*p, $i, ~x::[0-9]+, ${i}], to: q": {
        "copy": {"from": ["*p", "$i", "~x::[0-9]+", "${i}"], "to": "q"},
    },
    "dump: target: w::[:, :10], format: json": {"dump": {"target": "w::[:, :10]", "format": "json"}},
    r"dump: target: h.(\d+)\.(a|b), format: json": {"dump": {"target": r"h.(\d+)\.(a|b)", "format": "json"}},
    "dump: target: h.[0-9]{1,2}.w": {"dump": {"target": "h.[0-9]{1,2}.w"}},
    """copy: from: "a,b", to: 'c:d'""": {"copy": {"from": "a,b", "to": "c:d"}},
    r"a: k: C:\x": {"a": {"k": r"C:\x"}},
    "a: k: x#y": {"a": {"k": "x#y"}},
    "a: k: a'b'": {"a": {"k": "a'b'"}},
    "a: k: x(y z), l: a)": {"a": {"k": "x(y z)", "l": "a)"}},
    "é: a: 1": {"é": {"a": 1}},
    "a: k: TRUE, l: False": {"a": {"k": True, "l": False}},
    "a: k: null, l: NULL, m: ~, n: Null": {"a": {"k": None, "l": None, "m": None, "n": "Null"}},
    "a: k: [0, -7, 1., .5, 1e3, 1.e3, -1E+3]": {"a": {"k": [0, -7, 1.0, 0.5, 1000.0, 1000.0, -1000.0]}},
    "a: k: [007, +1, 1_000, 0x10, .5e3, inf, nan, yes]": {
        "a": {"k": ["007", "+1", "1_000", "0x10", ".5e3", "inf", "nan", "yes"]},
    },
    r'a: k: "\"\\\n\r\t"': {"a": {"k": '"\\\n\r\t'}},
}  # fmt: skip

REFUSED = [
    "", "  ", "1copy: from: a", "a.b: c: 1", "- a: k: 1", "assert: equal: left: a, right: b", "copy: from x",
    "copy: from: x to: y", "copy: from: x,", "copy: {from: x,}", "a: k: [1, 2,]", "a: k:", "a: k:, l: 1", "a: k: [,1]",
    "copy: from: a, from: b", "copy: {from: x} z", "a: k: [a, b", 'a: k: "a', 'a: k: "a\\', "a: k: a], l: 1",
    "a: k: x # c",
]  # fmt: skip


@pytest.mark.parametrize("line", READ)
def test_a_line_is_read_as_the_reference_reads_it(line: str):
    assert plain(parse_oly(line)) == READ[line]


@pytest.mark.parametrize("line", REFUSED)
def test_a_line_that_the_reference_refuses_is_refused(line: str):
    with pytest.raises(bs.PlanError, match="oly-syntax"):
        parse_oly(line)
