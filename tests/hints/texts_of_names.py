"""Mistakes in references, patterns, templates, slices and expressions."""

from __future__ import annotations

import numpy as np

from tests.hints.rows import NO_W, TAIL, W2, M, Row, expression, plan, step

TWO = "inputs: [a::model.safetensors, b::other.safetensors]\ntransforms:\n  - "
OUT = "\noutput: {path: out.safetensors, alias: a}\n"
H = {f"u.{i}": M[f"h.{i}.w"] for i in range(3)}
H01 = {name: H[name] for name in ("u.0", "u.1")}
W, RISING = M["w"], M["w"] > 1
HEADS = {name: array * 2 for name, array in M.items() if name.startswith("h.")}

REFERENCES = [
    Row(plan, "ref-no-alias", f"{TWO}delete: {{target: 'a:w'}}{OUT}", "a:w", "a::w", expect=NO_W),
    Row(plan, "ref-no-alias", f"{TWO}copy: {{from: 'w:[:2]', to: 'a::u'}}{OUT}", "w:[:2]", "a::w::[:2]",
        "'a::w::[:2]'", {"u": W[:2]}),
    Row(plan, "ref-no-alias", f"{TWO}delete: {{target: [w]}}{OUT}", "[w]", "{alias: a, name: [w]}",
        "{alias: a, name: ['w']}", NO_W),
    Row(plan, "ref-type", "inputs: ['7::model.safetensors']\ntransforms: {delete: {target: {alias: 7, name: w}}}"
        + TAIL, "alias: 7", "alias: '7'", expect=NO_W),
    Row(step, "ref-key", "delete: {target: {name: w, dtype: float32}}", ", dtype: float32", "",
        "Its keys are 'name' and, if needed, 'alias', 'slice' and 'kind'.", NO_W),
    Row(step, "ref-type", "scale_: {target: [h, 0, w], by: 2}", "0", "'0'", expect={"h.0.w": M["h.0.w"] * 2}),
    Row(step, "ref-type", "copy: {from: w, to: 7}", "to: 7", "to: '7'", "Quote it if it is text.", {"7": W}),
    Row(step, "ref-empty", "scale_: {target: 'a::', by: 2}", "a::", "a::.*", "'.*'",
        {name: array * 2 for name, array in M.items()}),
    Row(step, "ref-empty", "delete: {target: []}", "[]", "[w]", "a list of tokens", NO_W),
    Row(step, "ref-empty", "scale_: {target: [h, '', w], by: 2}", "''", "'$x'", expect=HEADS),
    Row(step, "ref-parts", "copy: {from: 'a::w::0:2', to: u}", "0:2", "[0:2]", "Write 'alias::name::[slice]'",
        {"u": W[:2]}),
    Row(step, "ref-parts", "scale_: {target: 'a::h::0::w', by: 2}", "a::h::0::w", "a::h.0.w", "Write 'alias::name'",
        {"h.0.w": M["h.0.w"] * 2}),
    Row(step, "ref-kind", "scale_: {target: {name: '.*', kind: int}, by: 2}", "int", "integer", "Kinds: float, integer",
        {"ids": M["ids"] * 2}),
    Row(step, "slice-syntax", "copy: {from: {name: w, slice: [0]}, to: u}", "[0]", "'[0]'", "Write slice: '[0",
        {"u": W[0]}),
    Row(step, "slice-syntax", "copy: {from: 'w::[0;2]', to: u}", "[0;2]", "[0:2]", "'start:stop:step'", {"u": W[:2]}),
    Row(step, "slice-range", "copy: {from: 'w::[::-1]', to: u}", "::-1", "::1", "Steps must be 1 or more", {"u": W}),
    Row(step, "slice-range", "copy: {from: 'w::[4]', to: u}", "[4]", "[3]", "Valid indices are -4 to 3.", {"u": W[3]}),
]  # fmt: skip

PATTERNS = [
    Row(step, "regex-timeout", "scale_: {target: '(a|aa)+c|w', by: 2}", "(a|aa)+c", "a+c",
        "Avoid repeating a repetition",
        W2),
    Row(step, "regex-syntax", f"delete: {{target: '{'(?:' * 250}w{')?' * 250}'}}", f"{'(?:' * 250}w{')?' * 250}", "w?",
        "Write it without rarer constructs", NO_W),
    Row(step, "ref-literal", "concat: {from: [h.0.w, h.1.w], to: [j, k]}", "[j, k]", "j.k",
        "Write the full name as text.",
        {"j.k": np.concatenate([M["h.0.w"], M["h.1.w"]])}),
    Row(step, "regex-syntax", "scale_: {target: '*w', by: 2}", "*w", ".*w", "any text is '.*'", {**W2, **HEADS}),
    Row(step, "regex-syntax", "delete: {target: 'm[0'}", "m[0", r"m\[0", "put a backslash before a special character",
        {"m[0": None}),
    Row(step, "regex-syntax", "delete: {target: '" + "|".join("w" * 50_001) + "'}", "|".join("w" * 50_001), "w",
        "At most 100,000 are allowed", NO_W),
    Row(step, "regex-syntax", "delete: {target: 'w{1,3000}w{3000}'}", "w{1,3000}w{3000}", "w+",
        "'+' allows any number",
        NO_W),
    Row(step, "token-group", "copy: {from: [h, '~x,y::([0-9])', w], to: [u, $x]}", "~x,y::", "~x::",
        "Give each variable one group", H),
    Row(step, "token-group", "copy: {from: [h, '~x,y::(0)|(1)', w], to: [u, $x]}", "~x,y::(0)|(1)", "~x::(0|1)",
        "'(a|b)', not '(a)|(b)'", H01),
    Row(step, "token-syntax", "copy: {from: [h, '~(?P<x>[01])', w], to: [u, $x]}", "~(?P<x>[01])", "~x::([01])",
        "Name the variables before '::' and use plain groups", H01),
    Row(step, "token-syntax", "copy: {from: [h, $1, w], to: [u, $x]}", "$1", "$x", expect=H),
    Row(step, "over-number", r"concat: {from: '[hk]\.(?P<i>[01])\..', over: i, to: j}", "[hk]", "h",
        "match fewer names",
        {"j": np.concatenate([M["h.0.w"], M["h.1.w"]])}),
    Row(step, "over-capture", r"concat: {from: 'h\.[01]\.w', over: i, to: j}", "[01]", "(?P<i>[0-9]+)", 
        expect={"j": np.concatenate([M[f"h.{i}.w"] for i in range(3)])}),
    Row(step, "over-capture", r"concat: {from: 'h\.([01])\.w', over: '2', to: j}", "'2'", "'1'", "counted from 1",
        {"j": np.concatenate([M["h.0.w"], M["h.1.w"]])}),
    Row(step, "over-gap", r"concat: {from: 'h\.(?P<i>[02])\.w', over: i, to: j}",
        r"{from: 'h\.(?P<i>[02])\.w', over: i, to: j}", "{from: [h.0.w, h.2.w], to: j}",
        "list them in `from`, without `over`", {"j": np.concatenate([M["h.0.w"], M["h.2.w"]])}),
    Row(step, "over-template", r"concat: {from: 'h\.(?P<i>[01])\.w', over: i, to: 'j.\g<i>'}", r".\g<i>", "",
        "Leave 'i' out of `to`", {"j": np.concatenate([M["h.0.w"], M["h.1.w"]])}),
    Row(step, "names-collide", r"concat: {from: '([hk])\.(?P<i>[01])\..', over: i, to: j}", "to: j", r"to: 'j.\1'",
        "every capture except 'i'", {f"j.{x}": np.concatenate([M[f"{x}.0.{y}"], M[f"{x}.1.{y}"]]) for x, y in ("hw",
        "kb")}),
    Row(step, "over-number", r"concat: {from: '(?P<i>[hk])\.0\..', over: i, to: j}",
        r"{from: '(?P<i>[hk])\.0\..', over: i, to: j}", "{from: [h.0.w, k.0.b], to: j}",
        "`from` as a list, without `over`",
        {"j": np.concatenate([M["h.0.w"], M["k.0.b"]])}),
    Row(step, "over-capture", "split: {from: w, to: 'x.${i}', parts: 2, over: 'i j'}", "'i j'", "i",
        "letters, digits and '_'", {"x.0": W[:2], "x.1": W[2:]}),
    Row(step, "over-capture", r"split: {from: '(?P<i>w)', to: 'x.${i}', parts: 2, over: i}", "<i>w", "<j>w",
        "choose another name for it", {"x.0": W[:2], "x.1": W[2:]}),
    Row(step, "names-collide", r"split: {from: '([hk])\.0\..', to: 'x.${i}', parts: 2, over: i}", "x.$", r"\1.x.$",
        "Keep the captures of the pattern in `to`",
        {f"{a}.x.{i}": M[name][i:i + 1] for a, name in (("h", "h.0.w"), ("k", "k.0.b")) for i in range(2)}),
    Row(step, "over-template", "split: {from: w, to: 'x.', parts: 2, over: i}", "x.", "x.${i}", "'${i}'",
        {"x.0": W[:2], "x.1": W[2:]}),
]  # fmt: skip

LONG = "a" * 70
TEMPLATES = [
    Row(step, "template-syntax", r"copy: {from: 'h\.(\d)\.w', to: 'u.$1'}", "$1", r"\1", expect=H),
    Row(step, "template-syntax", r"copy: {from: 'w', to: 'u.\0'}", r"\0", r"\g<0>", expect={"u.w": W}),
    Row(step, "template-syntax", r"copy: {from: 'h\.(\d)\.w', to: 'u\.\1'}", r"u\.", "u.", "a dot is just '.'", H),
    Row(step, "template-syntax", "copy: {from: [h, $x, w], to: [u, ~x]}", "~x", "$x", expect=H),
    Row(step, "template-syntax", r"copy: {from: 'h\.(\d)\.w', to: 'u.${title(\1)}'}", "title", "upper", "upper(x)", H),
    Row(step, "template-syntax", r"copy: {from: 'h\.(\d)\.w', to: 'u.${1}'}", "${1}", r"${\1}", r"'\1'", H),
    Row(step, "template-syntax", r"copy: {from: 'h\.(\d)\.w', to: 'u.${\1'}", r"${\1", r"${\1}", "Between the braces",
        H),
    Row(step, "template-length", "copy: {from: 'h\\.(\\d)\\.w', to: 'u.${\\1" + "+0" * 500 + "}'}", "+0" * 500, "",
        "A formula has at most 1,000", H),
    Row(step, "template-length", "copy: {from: 'h\\.(\\d)\\.w', to: '" + "x" * 5000 + ".\\1'}", "x" * 5000, "u",
        "A template may create names of at most 4,096", H),
    Row(step, "template-length",
        f"copy: {{from: (w), to: 'u${{replace(replace(\\1, \"w\", \"{LONG}\"), \"a\", \"{LONG}\")}}'}}",
        f"replace(replace(\\1, \"w\", \"{LONG}\"), \"a\", \"{LONG}\")", r"\1", "names of at most 4,096",
        {"uw": W}),
    Row(step, "template-arithmetic", r"copy: {from: 'h\.(?P<i>.*)', to: 'u.${i+0}'}", "(?P<i>.*)", r"(?P<i>[0-9]+)\.w",
        "(?P<i>[0-9]+)", H),
    Row(step, "template-arithmetic", r"copy: {from: 'h\.(\d)\.w', to: 'u.${\1-1}'}", r"\d", "[12]", "Match fewer names",
        {"u.0": M["h.1.w"], "u.1": M["h.2.w"]}),
    Row(step, "template-arithmetic", r"copy: {from: 'h\.(\d)\.w', to: 'u.${6//\1}'}", r"6//\1", r"\1//1",
        "correct the formula", H),
    Row(step, "template-empty", r"copy: {from: '(x?)w', to: '\1'}", r"'\1'", r"'u\1'", "Add text to it", {"u": W}),
    Row(step, "template-group", r"copy: {from: [h, $x, w], to: [u, '${\1}']}", r"${\1}", "${x}", "write 'x' here", H),
    Row(step, "template-group", r"copy: {from: 'h\.(?P<layer>\d)\.w', to: 'u.\g<i>'}", r"(?P<layer>\d)", r"(?P<i>\d)",
        "'(?P<i>...)'", H),
    Row(step, "template-group", r"copy: {from: 'h\.\d\.w', to: 'u.\1'}", r"\d", r"(\d)",
        "Put the part to keep in parentheses", H),
    Row(step, "template-kind", "copy: {from: [h, $x, w], to: [u, '*x']}", "*x", "$x", expect=H),
    Row(step, "template-kind", "copy: {from: [h, '*x'], to: [u, $x]}", "$x", "'*x'",
        expect={f"u.{i}.w": M[f"h.{i}.w"] for i in range(3)}),
    Row(step, "kinds-differ", r"copy: {from: [h, $x, w], to: 'u.\1'}", r"'u.\1'", "[u, $x]",
        "both as lists of tokens", H),
]  # fmt: skip

EXPRESSIONS = [
    Row(expression, "expression-syntax", "$w * 2", "$", "", "An expression has names", W2),
    Row(expression, "expression-syntax", "w ^ 2", "^ 2", "** 2", expect={"w": W**2}),
    Row(expression, "expression-syntax", "(w * 2", "2", "2)", "Is a bracket or an operator missing there", W2),
    Row(expression, "expression-syntax", f"w * 2{' + 0' * 400}", " + 0" * 400, "", "Compute a part of it", W2),
    Row(expression, "expression-syntax", f"{'-' * 102}w * 2", "-" * 102, "", "Compute a part of it", W2),
    Row(expression, "expression-syntax", "where(0 < w < 3, 0, w)", "0 < w < 3", "(0 < w) & (w < 3)",
        "Compare two at a time: `(a < b) & (b < c)`.", {"w": np.where((W > 0) & (W < 3), 0, W)}),
    Row(expression, "expression-syntax", "where(w > 0 and w < 3, 0, w)", "w > 0 and w < 3", "(w > 0) & (w < 3)",
        "Write `&` for and", {"w": np.where((W > 0) & (W < 3), 0, W)}),
    Row(expression, "expression-syntax", "where(not (w > 1), 0, w)", "not ", "~", expect={"w": np.where(RISING, W, 0)}),
    Row(expression, "expression-syntax", "w if w > 1 else 0", "w if w > 1 else 0", "where(w > 1, w, 0)",
        "Write `where(condition, this, that)`.", {"w": np.where(RISING, W, 0)}),
    Row(expression, "expression-syntax", "w.abs()", "w.abs()", "abs(w)", "Write `abs("),
    Row(expression, "expression-syntax", "sqart(w * w)", "sqart", "sqrt", expect={}),
]  # fmt: skip

ROWS = [*REFERENCES, *PATTERNS, *TEMPLATES, *EXPRESSIONS]
