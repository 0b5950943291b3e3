"""Spec 2: references, patterns, templates, slices, and the work items they make. `row.py` tells how a row reads.

Most rows use `copy` or `delete`, as good as any op: every op reads its references in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import counting
from tests.compat.row import Row, accepted, check, refused

W, V, T = counting((4, 6)), counting((4, 6)) * 2, counting((2, 3, 4))
S = {"w": W, "t": T}
TWO = {"base": {"w": W}, "tuned": {"v": V}}
ABC = {f"{n}": np.full(1, i, np.float32) for i, n in enumerate(["a", "ab", "b", "[0]", "a.b"])}
GPT = {
    "h.0.attn.w": W,
    "h.1.attn.w": V,
    "h.10.attn.w": W + V,
    "h.0.mlp.w": -W,
    "hx0.attn.w": -V,
    "ln_f.w": W[0],
}
SPLIT = {"a.w.b.w": W, "a.m.a": V, "w..x": W + 1, "a.b.m.a.b": V + 1}


def one(name: str, x: Any = W) -> dict[str, Any]:
    """One new tensor."""
    return {name: x}


def renamed(names: dict[str, str], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Copies of tensors by their new names."""
    return {new: tensors[old] for new, old in names.items()}


# --- 2.1 How a string is split ----------------------------------------------------------------------------------------

TEXT = (
    accepted("2.1", "one part is a name in the only input", "copy: { from: w, to: n }", S, one("n")),
    accepted("2.1", "two parts are alias and name", "copy: { from: 'model::w', to: 'model::n' }", S, one("n")),
    accepted("2.1", "an empty alias is the only input", "copy: { from: '::w', to: '::n' }", S, one("n")),
    accepted("2.1", "with one input, two parts may be name and slice", "copy: { from: 'w::[0]', to: n }", S,
             one("n", W[0])),
    accepted("2.1", "with one input, what looks like a character class is a slice", "copy: { from: 'a::[0]', to: n }",
             ABC,
             one("n", np.float32(0))),
    accepted("2.1", "three parts are alias, name and slice", "copy: { from: 'base::w::[0]', to: 'base::n' }", TWO,
             {"base::n": W[0]}),
    accepted("2.1", "three parts with an empty alias", "copy: { from: '::w::[0]', to: n }", S, one("n", W[0])),
    accepted("2.1", "with several inputs two parts are alias and pattern, brackets or not",
             "copy: { from: 'base::[w]', to: 'base::n' }", TWO, {"base::n": W}),
    refused("2.1", "with several inputs every reference names its alias", "copy: { from: w, to: 'base::n' }", TWO,
            "ref-no-alias", "'w' has no alias"),
    refused("2.1", "an empty alias is none with several inputs", "copy: { from: '::w', to: 'base::n' }", TWO,
            "ref-no-alias", "'::w' has no alias"),
    refused("2.1", "without any input neither", "delete: { target: w }", {}, "ref-no-alias", "'w' has no alias"),
    refused("2.1", "the third part is a slice in brackets", "copy: { from: 'model::w::0', to: n }", S, "ref-parts",
            "'0', is not a slice in brackets"),
    refused("2.1", "four parts are too many", "copy: { from: 'a::b::c::d', to: n }", S, "ref-parts", "4 parts"),
    refused("2.1", "a pattern cannot hold `::`", "delete: { target: 'model::a::b' }", S, "ref-parts",
            "'b', is not a slice"),
    refused("2.1", "with one input, a character class after `::` is read as a slice",
            "delete: { target: 'model::[wt]' }", S,
            "slice-syntax", "neither an integer nor a range"),
    refused("2.1", "the name is not empty", "delete: { target: 'model::' }", S, "ref-empty", "the name is empty"),
    refused("2.1", "nothing is trimmed", "delete: { target: 'model ::w' }", S, "alias-unknown",
            "unknown alias 'model '"),
    refused("2.1", "aliases are no patterns", "delete: { target: 'm.*::w' }", S, "alias-unknown",
            r"unknown alias 'm\.\*'"),
    refused("2.1", "an alias must be there when its step comes",
            "[delete: { target: 'work::w' }, prefixes: { mode: add, alias: work }]", S, "alias-unknown", "'work'"),
    refused("2.1", "a tensor makes no alias", "copy: { from: w, to: 'work::w' }", S, "alias-unknown", "'work'"),
    refused("2.1", "a renamed alias is no longer known by its old name",
            """
            inputs: ["base::base.safetensors", "tuned::tuned.safetensors"]
            transforms:
              - prefixes: { mode: rename, from: base, to: first }
              - delete: { target: 'base::w' }
            """, TWO, "alias-unknown", "unknown alias 'base'"),
    refused("2.1", "a reference is text or a list", "delete: { target: 3 }", S, "ref-type", "found 3"),
)  # fmt: skip

# --- 2.2 and 2.4 Structured patterns ----------------------------------------------------------------------------------

TOKENS = (
    accepted("2.4", "`$x` takes one segment", "copy: { from: [h, $i, attn, w], to: [g, $i] }", GPT,
             renamed({"g.0": "h.0.attn.w", "g.1": "h.1.attn.w", "g.10": "h.10.attn.w"}, GPT)),
    accepted("2.4", "`*xs` takes a run of segments, also none",
             "copy: { from: [h, '0', '*rest', w], to: [x, '*rest', y] }",
             GPT, renamed({"x.attn.y": "h.0.attn.w", "x.mlp.y": "h.0.mlp.w"}, GPT)),
    accepted("2.4", "`~REGEX` takes a segment that matches in full, and binds nothing",
             r"delete: { target: [h, '~\d', $x, w] }", GPT, dict.fromkeys(["h.0.attn.w", "h.1.attn.w", "h.0.mlp.w"])),
    accepted("2.4", "`~x::REGEX` without a group binds the segment",
             "copy: { from: [h, '0', '~k::a.*', w], to: [n, $k] }",
             GPT, renamed({"n.attn": "h.0.attn.w"}, GPT)),
    accepted("2.4", "`~x::REGEX` with a group binds the group",
             "copy: { from: [h, '0', '~k::(a)ttn', w], to: [n, $k] }",
             GPT, renamed({"n.a": "h.0.attn.w"}, GPT)),
    accepted("2.4", "`~x,y::REGEX` binds one group each", "copy: { from: ['~p,n::([a-z]+)_(f)', w], to: [$n, $p] }",
             GPT,
             renamed({"f.ln": "ln_f.w"}, GPT)),
    accepted("2.4", "other tokens are equal segments: a dot is no wildcard",
             "copy: { from: [ln_f, w], to: [n] }", GPT, {"n": W[0]}),
    accepted("2.4", "the longest run wins", "copy: { from: ['*xs', w, '*ys'], to: [x, '*xs', y, '*ys'] }", SPLIT,
             renamed({"x.a.w.b.y": "a.w.b.w", "x.y..x": "w..x"}, SPLIT)),
    accepted("2.4", "a variable used twice takes equal values", "copy: { from: ['*x', m, '*x'], to: [got, '*x'] }",
             SPLIT,
             renamed({"got.a": "a.m.a", "got.a.b": "a.b.m.a.b"}, SPLIT)),
    accepted("2.4", "segments may be empty", "copy: { from: [w, $e, x], to: [e, $e, f] }", SPLIT, {"e..f": W + 1}),
    accepted("2.4", "a bad token counts only where it is reached", "assert: { not: { exists: [x, '~('] } }", GPT, {}),
    accepted("2.4", "a single sigil is a segment like others", "copy: { from: ['$', '*', '~'], to: [n] }", {"$.*.~": W},
             one("n")),
    refused("2.4", "a regex of a token must compile", "delete: { target: [h, '~(', attn, w] }", GPT, "regex-syntax",
            r"\("),
    refused("2.4", "two groups need two variables", "delete: { target: [h, '~x::(1)(0)', attn, w] }", GPT,
            "token-group",
            "1 variables and 2 groups|1 variable.* 2 groups"),
    refused("2.4", "every variable needs its group", "delete: { target: [h, '~x,y::(1)0', attn, w] }", GPT,
            "token-group",
            "2 variables and 1 group"),
    refused("2.4", "a group must take part", "copy: { from: [h, '~x,y::(1)|(0)', attn, w], to: [n, $x] }", GPT,
            "token-group", "without one of its groups"),
    refused("2.4", "groups have no names", "delete: { target: [h, '~x::(?P<y>.)', attn, w] }", GPT, "token-syntax",
            "named group"),
    refused("2.4", "a variable is an ASCII identifier", "delete: { target: [h, '$1', attn, w] }", GPT, "token-syntax",
            "'1' is not the name of a variable"),
    refused("2.4", "without spaces around it", "delete: { target: [h, '~n, k::(.)(.)', attn, w] }", GPT, "token-syntax",
            "' k' is not the name"),
    refused("2.4", "the regex is not empty", "delete: { target: [h, '~x::', attn, w] }", GPT, "token-syntax", "empty"),
    refused("2.4", "a scalar and a run of one name never agree", "delete: { target: [$x, '*x'] }", {"a.a": W},
            "no-match",
            "no tensor matches"),
    refused("2.2", "a list has no alias, so with several inputs it needs the mapping form", "delete: { target: [w] }",
            TWO,
            "ref-no-alias", "mapping form"),
    refused("2.2", "the list is not empty", "delete: { target: [] }", GPT, "ref-empty", "at least one token"),
    refused("2.2", "tokens are text", "delete: { target: [h, 0, attn, w] }", GPT, "ref-type",
            "token 0 of .* is not text"),
    refused("2.2", "tokens are not empty", "delete: { target: [h, ''] }", GPT, "ref-empty", "empty token"),
)  # fmt: skip

# --- 2.3 and 2.5 Regular expressions and templates --------------------------------------------------------------------

REGEX = (
    accepted("2.3", "the whole name must match", "delete: { target: 'h.0.attn' }", {"h.0.attn": W, "h.0.attn.w": V},
             {"h.0.attn": None}),
    accepted("2.3", "a dot is a wildcard", "delete: { target: 'h.0.attn.w' }", GPT,
             dict.fromkeys(["h.0.attn.w", "hx0.attn.w"])),
    accepted("2.3", "matches come in lexicographic order, h.10 before h.2",
             "[copy: { from: ln, to: acc }, add_: { from: 'h\\.1', to: acc }, dump: { target: 'h.*' }]",
             {"h.10": W, "h.2": V, "h.1": W, "ln": V}, {"acc": V + W},
             prints="""
             └── h
                 ├── [1-2]  shape=[4, 6]
                 └── [10]  shape=[4, 6]
             """),
    *(accepted("2.3", f"a regex may have {what}", f"delete: {{ target: '{regex}' }}", {"aa.W": W, "ab.w": V},
               {gone: None})
      for what, regex, gone in (
          ("flags of its own", r"(?i)A[A]\.w", "aa.W"), ("back-references", r"(?P<x>a)(?P=x)\..", "aa.W"),
          ("look-around", r"a(?!a).\.w", "ab.w"), ("named groups and classes", r"(?P<n>[b-z]|ab)\.\w", "ab.w"))),
    refused("2.3", "the regex must compile", "delete: { target: '(w' }", S, "regex-syntax", r"\(w"),
    accepted("2.5", r"`\1`, `\g<0>` and `\g<name>` put in captures",
             r"copy: { from: 'h\.(0)\.(?P<kind>\w+)\.w', to: '\g<kind>.\1.of.\g<0>' }", GPT,
             renamed({"attn.0.of.h.0.attn.w": "h.0.attn.w", "mlp.0.of.h.0.mlp.w": "h.0.mlp.w"}, GPT)),
    accepted("2.5", "everything else is literal", "copy: { from: w, to: 'n*[x](y)' }", S, one("n*[x](y)")),
    refused("2.5", "other escapes are errors", r"copy: { from: w, to: 'n\.x' }", S, "template-syntax", r"bad escape"),
    refused("2.5", "the group must be there", r"copy: { from: '(w)', to: 'n.\2' }", S, "template-group", "group 2"),
    refused("2.5", "the named group must be there", r"copy: { from: '(w)', to: 'n.\g<x>' }", S, "template-group",
            "'x'"),
    accepted("2.5", "in a list `$x` and `${x}` are one segment, `${x}` also within text",
             "copy: { from: [h, $i, $k, w], to: ['block_${i}', '${k}', $i, 'a.b'] }", GPT,
             renamed({"block_0.attn.0.a.b": "h.0.attn.w", "block_1.attn.1.a.b": "h.1.attn.w",
                      "block_10.attn.10.a.b": "h.10.attn.w", "block_0.mlp.0.a.b": "h.0.mlp.w"}, GPT)),
    refused("2.5", "a variable must be captured", "copy: { from: [h, $i, mlp, w], to: [n, $j] }", GPT, "template-group",
            "asks for 'j'"),
    refused("2.5", "a run needs its star", "copy: { from: [h, '*r'], to: [n, $r] }", GPT, "template-kind",
            "run of segments"),
    refused("2.5", "one segment takes no star", "copy: { from: [h, $i, mlp, w], to: [n, '*i'] }", GPT, "template-kind",
            "holds one segment"),
    refused("2.5", "a template cannot match", "copy: { from: [h, $i, mlp, w], to: [n, '~x'] }", GPT, "template-syntax",
            "regex"),
)  # fmt: skip

# --- 2.6 Slices -------------------------------------------------------------------------------------------------------


def sliced(text: str, x: np.ndarray, rule: str = "") -> Row:
    """A slice that numpy knows, too."""
    return accepted("2.6", rule or text, f"copy: {{ from: 't::{text}', to: n }}", S, {"n": x})


SLICES = (
    sliced("[]", T, "nothing between the brackets selects everything"),
    sliced("[1]", T[1], "an integer drops its axis"),
    sliced("[-1, -2]", T[-1, -2], "integers may count from the end"),
    sliced("[:, 1:3]", T[:, 1:3], "missing components mean all"),
    sliced("[:, :, :-1]", T[:, :, :-1]),
    sliced("[:, :, 0:4:2]", T[:, :, 0:4:2], "a range may have a step"),
    sliced("[0:99, -99:2]", T[0:99, -99:2], "ranges are cut to size"),
    sliced("[ 0 , +1 , 0_1 ]", T[0, 1, 1], "spaces, signs and underscores are as in Python"),
    sliced("[2:1]", T[2:1], "a range may be empty"),
    *(refused("2.6", f"{why} in a slice", f"copy: {{ from: 't::{text}', to: n }}", S, "slice-syntax", found)
      for why, text, found in (
          ("no ellipsis", "[..., 0]", "component 1"), ("no name", "[x]", "'x'"), ("no list", "[[0, 1]]", "component 1"),
          ("no trailing comma", "[0,]", "component 2 is empty"),
          ("no empty component", "[0, , 1]", "component 2 is empty"),
          ("no fraction", "[1.5]", "'1.5'"), ("no fourth part", "[1:2:3:4]", "'1:2:3:4'"))),
    refused("2.6", "an integer must be in range", "copy: { from: 't::[2]', to: n }", S, "slice-range", "index 2"),
    refused("2.6", "no more components than axes", "copy: { from: 't::[0, 0, 0, 0]', to: n }", S, "slice-range",
            "4 components"),
    refused("2.6", "no step of 0", "copy: { from: 't::[0:2:0]', to: n }", S, "slice-range", "step 0"),
    refused("2.6", "no step backwards", "copy: { from: 't::[2:0:-1]', to: n }", S, "slice-range", "step -1"),
    refused("2.6", "the slice is checked for every match", "copy: { from: '(.)::[0, 0, 0]', to: 'n\\1' }", S,
            "slice-range",
            "3 components"),
)  # fmt: skip

# --- 2.7 Work items ---------------------------------------------------------------------------------------------------

ITEMS = (
    refused("2.7", "source and destination are both text or both lists", "copy: { from: w, to: [n] }", S,
            "kinds-differ",
            "list"),
    refused("2.7", "two sources cannot give one destination", "copy: { from: '[wt]', to: n }", S, "names-collide",
            "'n'"),
    refused("2.7", "the alias of the destination is the default, not the source's",
            """
            inputs: [model.safetensors]
            transforms:
              - prefixes: { mode: add, alias: work }
              - zeroes: { target: 'work::w', shape: [1] }
              - copy: { from: 'work::w', to: w }
            """, S, "dest-exists", "'w' exists already in 'model'"),
    refused("2.7", "`from_b` and `to` are templates, no patterns",
            r"add: { from_a: '.*\.attn.w', from_b: '.*\.mlp.w', to: '.*\.attn.w' }", GPT, "template-syntax",
            "bad escape"),
    accepted("2.7", "so write captures", r"add: { from_a: '(h\.0)\.attn\.w', from_b: '\1.mlp.w', to: '\1.attn.w' }",
             GPT,
             {"h.0.attn.w": W - W}),
    refused("2.7", "every second source must exist",
            r"add: { from_a: '(h\.\d)\.attn\.w', from_b: '\1.mlp.w', to: '\1.attn.w' }",
            GPT, "tensor-missing", "'h.1.mlp.w' does not exist"),
)  # fmt: skip

ROWS = (*TEXT, *TOKENS, *REGEX, *SLICES, *ITEMS)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_references(row: Row, here: Path):
    check(row)
