"""Mistakes of YAML itself, and some more of lines and of sets of tensors."""

from __future__ import annotations

import numpy as np

from tests.hints.rows import HEAD, NO_W, TAIL, W2, M, Row, line, plan, step

W = M["w"]
STEP = f"{HEAD}transforms:\n  - copy:\n      from: w\n      to: "
SCALE = f"{HEAD}transforms: [{{scale_: {{target: w, by: 2}}}}]{TAIL}"
JOINED = {"j": np.concatenate([M["h.0.w"], M["h.1.w"]])}

ROWS = [
    Row(plan, "yaml-syntax", "inputs: [a::model.safetensors", "safetensors", "safetensors]", "Close it"),
    Row(step, "yaml-syntax", "delete: {target: 'w}", "'w", "'w'", "Close it", NO_W),
    Row(plan, "yaml-syntax", f"{HEAD}transforms:\n\t- delete: {{target: w}}{TAIL}", "\t", "  ", "with spaces", NO_W),
    Row(step, "yaml-syntax", "delete: {target: [w}", "[w", "[w]", "or close the bracket first", NO_W),
    Row(plan, "yaml-syntax", f"seed 7\n{SCALE}", "seed 7", "seed: 7", "give the line above its ':'", W2),
    Row(plan, "yaml-syntax", SCALE.replace("output:", "output"), "output", "output:", "Is the ':' missing", W2),
    Row(plan, "yaml-syntax", f"  seed: 7\n{SCALE}", "  seed", "seed", "Line up the keys of a mapping", W2),
    Row(plan, "yaml-syntax", SCALE.replace("[a::model.safetensors]", "- a::model.safetensors"),
        "- a::model.safetensors",
        "[a::model.safetensors]", "write a list as [a, b]", W2),
    Row(step, "yaml-syntax", "copy: {from: w, to: @u}", "@u", "'@u'", "Put it into single quotes.", {"@u": W}),
    Row(plan, "yaml-syntax", f"{STEP}u\n       if_missing: skip{TAIL}", "       if", "      if",
        "line up the keys of a mapping", {"u": W}),
    Row(step, "yaml-syntax", "copy: {from: w, to: &}", "&", "'&'", "Quote a text that starts with &.", {"&": W}),
    Row(step, "yaml-syntax", "copy: {from: w, to: *}", "*", "'*'", "Quote a text that starts with *.", {"*": W}),
    Row(plan, "yaml-syntax", f"{STEP}]u{TAIL}", "]u", "']u'", "Quote a text that starts with it", {"]u": W}),
    Row(step, "yaml-syntax", "concat: {from: [, h.0.w, h.1.w], to: j}", "[, ", "[", "remove an extra comma", JOINED),
    Row(plan, "yaml-syntax", f"{STEP}|u{TAIL}", "|u", "'|u'", "Quote a text that starts with | or >.", {"|u": W}),
    Row(step, "yaml-syntax", "copy: {from: w::[:2], to: u}", "w::[:2]", "'w::[:2]'", "Quote references as a whole",
        {"u": W[:2]}),
    Row(plan, "yaml-syntax", f"%YAML 3.0\n---\n{SCALE}", "%YAML 3.0\n", "", "Remove it", W2),
    Row(step, "yaml-syntax", r'scale_: {target: "h\.0\.w", by: 2}', r'"h\.0\.w"', r"'h\.0\.w'", "Use single quotes",
        {"h.0.w": M["h.0.w"] * 2}),
    Row(step, "yaml-syntax", "scale_ {target: w, by: 2}", "scale_ {", "scale_: {", "Write `scale_: {...}`.", W2),
    Row(step, "yaml-syntax", "scale_:{target: w, by: 2}", "scale_:{", "scale_: {", "Write `scale_: {...}`.", W2),
    Row(plan, "yaml-syntax", SCALE.replace("inputs: [", "inputs:["), "inputs:[", "inputs: [",
        "Write `inputs: [...]`.", W2),
    Row(line, "oly-syntax", "concat: from: ['h.0.w' 'h.1.w'], to: j", "w' 'h", "w', 'h",
        "Put a comma between two values",
        JOINED),
    Row(line, "oly-syntax", "delete: target w", "target w", "target: w", expect=NO_W),
    Row(line, "oly-syntax", "copy: w, u", "w, u", "from: w, to: u", "as in `copy: from: a, to: b`", {"u": W}),
    Row(step, "kind-not-allowed", "copy: {from: '(?:w|ids)', to: {name: u, kind: float}}",
        "'(?:w|ids)', to: {name: u, kind: float}", "{name: '(?:w|ids)', kind: float}, to: u",
        "Write it in the reference that is matched.", {"u": W}),
    Row(step, "over-gap", r"concat: {from: '([hk])\.(?P<i>\d)\..', over: i, to: 'j.\1'}",
        r"'([hk])\.(?P<i>\d)\..', over: i, to: 'j.\1'}", r"'h\.(?P<i>\d)\.w', over: i, to: j.h}"
        "\n  - concat: " r"{from: 'k\.(?P<i>\d)\.b', over: i, to: j.k}", "write a step for each kind",
        {"j.h": np.concatenate([M[f"h.{i}.w"] for i in range(3)]), "j.k": np.concatenate([M["k.0.b"], M["k.1.b"]])}),
]  # fmt: skip
