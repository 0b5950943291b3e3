"""Plans with one mistake each: refused before a tensor byte is read, with the line, what is wrong, and the remedy.

Each plan is run, not only checked. The line that ends in `# here` is the one that the message must name. What a user
reads is kept in `snapshots/planted_mistakes.txt`; `python -m tests.null.test_planted_mistakes` rewrites the file after
a change of wording, and the difference is to be read as a stranger would.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

import brainsurgery_jax as bs
from brainsurgery_jax.errors import speaking
from brainsurgery_jax.select import pattern
from brainsurgery_jax.select.limit import TimeLimit
from brainsurgery_jax.world import Files
from tests.null.world import write_zeros

SNAPSHOT = Path(__file__).parent / "snapshots" / "planted_mistakes.txt"

MODEL = {
    "wte.weight": "f32[10,8]",
    "h.0.attn.weight": "f32[8,8]",
    "h.0.mlp.weight": "f32[8,16]",
    "h.0.ln.bias": "bf16[8]",
    "h.1.attn.weight": "f32[8,8]",
    "h.1.mlp.weight": "f32[8,16]",
    "h.1.ln.bias": "bf16[8]",
    "ids": "i64[10]",
    "mask": "u8[10]",
    "flag": "bool[2]",
    "conv": "f32[4,2,3]",
}
OTHER = {"wte.weight": "f32[12,8]", "h.0.attn.weight": "f32[8,8]", "h.0.ln.bias": "f32[8]"}


def step(
    text: str, *, before: str = "", inputs: str = "[m::model.safetensors]", output: str = "out.safetensors"
) -> str:
    """A plan whose last step is the mistake."""
    first = f"  - {before}\n" if before else ""
    return f"inputs: {inputs}\ntransforms:\n{first}  - {text}  # here\noutput: {output}\n"


def two(text: str) -> str:
    """The same with two inputs, so that there is no default alias."""
    return step(text, inputs="[m::model.safetensors, o::other.safetensors]", output="{path: out.safetensors, alias: m}")


def output(text: str, *, transform: str = "scale_: {target: wte.weight, by: 2}") -> str:
    """A plan whose output is the mistake."""
    return f"inputs: [m::model.safetensors]\ntransforms:\n  - {transform}\noutput: {text}  # here\n"


MISTAKES = {
    # --- YAML
    "yaml: a key given twice": (
        "inputs: [m::model.safetensors]\ntransforms:\n  - scale_:\n      target: wte.weight\n      by: 2\n"
        "      by: 3  # here\noutput: out.safetensors\n"
    ),
    "yaml: a tab for indentation": "inputs: [m::model.safetensors]\ntransforms:\n\t- delete: {target: ids}  # here\n",
    "yaml: a bracket never closed": (
        "inputs: [m::model.safetensors]\ntransforms:\n  - delete: {target: ids\noutput: out.safetensors  # here\n"
    ),
    "yaml: an unquoted star": step("delete: {target: *ids}"),
    # --- the plan as a whole
    "top level: a key that plans do not have": (
        "inputs: [m::model.safetensors]\ntransform: [delete: {target: ids}]  # here\noutput: out.safetensors\n"
    ),
    "top level: a language version of the future": (
        "version: 2  # here\ninputs: [m::model.safetensors]\noutput: out.safetensors\n"
    ),
    "top level: a seed that is text": "seed: often  # here\ninputs: [m::model.safetensors]\noutput: out.safetensors\n",
    "top level: output and outputs": (
        "inputs: [m::model.safetensors]\noutput: out.safetensors\noutputs: [more.safetensors]  # here\n"
    ),
    "inputs: text instead of a list": "inputs: m::model.safetensors  # here\noutput: out.safetensors\n",
    "inputs: two, one without an alias": (
        "inputs:\n  - m::model.safetensors\n  - other.safetensors  # here\noutput: {path: out.safetensors, alias: m}\n"
    ),
    "inputs: one alias twice": (
        "inputs:\n  - m::model.safetensors\n  - m::other.safetensors  # here\n"
        "output: {path: out.safetensors, alias: m}\n"
    ),
    "inputs: an alias without a path": "inputs:\n  - 'm::'  # here\noutput: out.safetensors\n",
    "inputs: a file that is not there": "inputs:\n  - m::modle.safetensors  # here\noutput: out.safetensors\n",
    "inputs: a file cut short": "inputs:\n  - m::short.safetensors  # here\noutput: out.safetensors\n",
    "inputs: a file of another format": "inputs:\n  - m::notes.txt  # here\noutput: out.safetensors\n",
    "merge: a method misspelt": step("merge: {method: slrep, models: {m: 1}, parameters: {t: 0.5}, to: out}"),
    "merge: a parameter among the keys": step("merge: {method: slerp, models: {m: 1}, t: 0.5, to: out}"),
    "vars: an unknown variable": step("scale_: {target: wte.weight, by: '${vars.alpha}'}"),
    # --- steps
    "step: an unknown op": step("scal_: {target: wte.weight, by: 2}"),
    "step: two ops in one": (
        "inputs: [m::model.safetensors]\ntransforms:\n  - delete: {target: ids}\n    dump: {}  # here\n"
        "output: out.safetensors\n"
    ),
    "step: a number": step("7"),
    "step: an unknown key": step("scale_: {target: wte.weight, by: 2, form: wte}"),
    "step: a missing key": step("scale_: {target: wte.weight}"),
    "step: a payload that is no mapping": step("delete: ids"),
    "step: text for a number": step("scale_: {target: wte.weight, by: twice}"),
    "step: a list for a number": step("scale_: {target: wte.weight, by: [1, 2]}"),
    "step: text for an integer": step("concat: {from: [ids, ids], to: idss, dim: '0'}"),
    "step: text for true or false": step(
        r"phlora: {target: '(.*attn).weight', target_a: '\1.A', target_b: '\1.B', rank: 2, delete_original: 'no'}"
    ),
    "step: a word that is no choice": step("dump: {format: xml}"),
    "step: an unknown dtype": step("cast_: {target: wte.weight, to: bflaot16}"),
    "step: a number for a name": step("delete: {target: 7}"),
    # --- references
    "reference: a name with a typo": step("delete: {target: wte.wieght}"),
    "reference: a regex with a typo": step(r"delete: {target: 'h\.\d\.mpl\.weight'}"),
    "reference: a broken regex": step("delete: {target: 'h.(0.attn.weight'}"),
    "reference: a star that repeats nothing": step("delete: {target: '*.weight'}"),
    "reference: a regex that never ends": step(r"delete: {target: '(a|aa)+[x-z]'}", inputs="[m::long.safetensors]"),
    "reference: an unknown alias": step("delete: {target: 'n::ids'}"),
    "reference: no alias with two inputs": two("delete: {target: ids}"),
    "reference: too many parts": step("delete: {target: 'm::ids::0::1'}"),
    "reference: one colon before a slice": step("scale_: {target: 'wte.weight:[0:2]', by: 2}"),
    "reference: one colon before a slice, two inputs": two("scale_: {target: 'wte.weight:[0:2]', by: 2}"),
    "reference: an empty name": step("delete: {target: 'm::'}"),
    "slice: not a slice": step("scale_: {target: 'wte.weight::[0:a]', by: 2}"),
    "slice: an index out of range": step("scale_: {target: 'wte.weight::[10]', by: 2}"),
    "slice: more components than axes": step("scale_: {target: 'wte.weight::[:, :, 0]', by: 2}"),
    "slice: a step of zero": step("scale_: {target: 'wte.weight::[0:4:0]', by: 2}"),
    "slice: where none is allowed": step("delete: {target: 'wte.weight::[0]'}"),
    # --- templates
    "template: a group that is not captured": step(r"copy: {from: 'h\..*\.attn.weight', to: 'x.\1'}"),
    "template: a bad escape": step(r"copy: {from: '(.*)\.bias', to: '\1\.offset'}"),
    "template: an unknown variable": step("copy: {from: [h, $i, attn, weight], to: [x, $j]}"),
    "template: colliding names": step(r"copy: {from: 'h\.\d\.attn\.weight', to: attn}"),
    # --- destinations
    "destination: exists already": step("copy: {from: ids, to: mask}"),
    "destination: exists already, for move": step("move: {from: ids, to: mask}"),
    "destination: does not exist": step("add_: {from: h.0.attn.weight, to: h.0.atn.weight}"),
    "destination: of another shape": step("assign: {from: h.0.attn.weight, to: h.0.mlp.weight}"),
    "destination: a slice of another shape": step("assign: {from: h.0.attn.weight, to: 'wte.weight::[:7]'}"),
    "destination: of another dtype": two("assign: {from: 'o::h.0.ln.bias', to: 'm::h.0.ln.bias'}"),
    "destination: split onto a name that exists": step("split: {from: ids, to: [first, mask], sizes: [4, 6]}"),
    "destination: both factors under one name": step(
        r"phlora: {target: 'h.0.attn.(.*)', target_a: 'f.\1', target_b: 'f.\1', rank: 2}"
    ),
    # --- shapes and dtypes
    "operands: shapes differ": two("add_: {from: 'o::wte.weight', to: 'm::wte.weight'}"),
    "operands: dtypes differ": two("add_: {from: 'o::h.0.ln.bias', to: 'm::h.0.ln.bias'}"),
    "operands: matmul of shapes that do not fit": step("matmul: {from_a: wte.weight, from_b: wte.weight, to: product}"),
    "operands: matmul of booleans": step("matmul: {from_a: flag, from_b: flag, to: product}"),
    "operands: one of three is missing": step(
        r"add: {from_a: '(h\.0)\.attn\.weight', from_b: '\1.delta', to: '\1.attn.weight'}"
    ),
    "operands: booleans subtracted": step("subtract_: {from: flag, to: flag}"),
    "reshape: another number of elements": step("reshape_: {target: wte.weight, shape: [7, -1]}"),
    "reshape: two unknown sizes": step("reshape_: {target: wte.weight, shape: [-1, -1]}"),
    "permute: not a permutation": step("permute: {from: conv, to: conv_t, order: [0, 2]}"),
    "concat: sizes that do not fit": step("concat: {from: [wte.weight, h.0.mlp.weight], to: both}"),
    "concat: dtypes that differ": step("concat: {from: [ids, mask], to: both}"),
    "concat: an axis that is not there": step("concat: {from: [ids, ids], to: both, dim: 1}"),
    "concat: one source": step("concat: {from: [ids], to: both}"),
    "concat: a source that matches several": step(r"concat: {from: ['h\.\d\.ln\.bias', h.0.ln.bias], to: both}"),
    "split: sizes that do not add up": step("split: {from: ids, to: [a, b], sizes: [4, 5]}"),
    "split: more names than sizes": step("split: {from: ids, to: [a, b, c], sizes: [4, 6]}"),
    # --- numbers
    "phlora: a tensor with three axes": step("phlora_: {target: conv, rank: 2}"),
    "phlora: integers": step("phlora_: {target: m2, rank: 2}", before="reshape: {from: ids, to: m2, shape: [5, 2]}"),
    "phlora: rank 0": step("phlora_: {target: wte.weight, rank: 0}"),
    "phlora: rank 2.5": step("phlora_: {target: wte.weight, rank: 2.5}"),
    "clamp: min above max": step("clamp_: {target: wte.weight, min: 1, max: -1}"),
    "clamp: no bound": step("clamp_: {target: wte.weight}"),
    "clamp: a fraction for integers": step("clamp_: {target: ids, max: 2.5}"),
    "fill: 300 in uint8": step("fill_: {target: mask, mode: constant, value: 300}"),
    "fill: ragged values": step("fill_: {target: wte.weight, mode: tensor, values: [[1, 2], [3]]}"),
    "fill: values of another shape": step("fill_: {target: wte.weight, mode: tensor, values: [1, 2, 3]}"),
    "fill: no value": step("fill_: {target: wte.weight, mode: constant}"),
    "fill: random integers": step("fill_: {target: ids, mode: rand}"),
    "rand: low above high": step("rand: {target: noise, shape: [4], low: 1, high: 0}"),
    "zeroes: a size of zero": step("zeroes: {target: z, shape: [4, 0]}"),
    # --- aliases, load and save
    "load: an alias that exists": step("load: {path: other.safetensors, alias: m}"),
    "load: a file that is not there": step("load: {path: othr.safetensors, alias: o}"),
    "load: one tensor of many": step("load: {path: other.safetensors, to: new}"),
    "prefixes: a key too many": step("prefixes: {mode: add, alias: work, to: other}"),
    "prefixes: remove what is not there": step("prefixes: {mode: remove, alias: work}"),
    "save: two aliases to choose from": two("save: {path: snap.safetensors}"),
    "save: a tensor that is not there": step("save: {path: snap.safetensors, target: idz}"),
    "save: two to one path": step("save: snap.safetensors", before="save: snap.safetensors"),
    "save: a load inside the saved folder": step("load: {path: snap/model.safetensors, alias: s}", before="save: snap"),
    # --- asserts that headers settle
    "assert: a shape that is not so": step("assert: {shape: {of: wte.weight, is: [10, 9]}}"),
    "assert: a dtype that is not so": step(r"assert: {dtype: {of: '.*\.bias', is: float32}}"),
    "assert: a count that is not so": step(r"assert: {count: {of: 'h\..*', is: 7}}"),
    "assert: a tensor that is not there": step("assert: {exists: lm_head.weight}"),
    "assert: one inside all": step("assert: {all: [{exists: ids}, {exists: idz}]}"),
    "assert: not, of what holds": step("assert: {not: {exists: ids}}"),
    "assert: bounds that contradict": step("assert: {dimensions: {of: ids, ge: 3, lt: 3}}"),
    "assert: an unknown operator": step("assert: {exist: ids}"),
    "assert: a mistake inside not": step("assert: {not: {exists: '('}}"),
    "assert: two operators": step("assert: {exists: ids, count: {of: ids, is: 1}}"),
    "assert: an unequal pair": two("assert: {equal: {left: 'm::wte.weight', right: 'o::wte.weight'}}"),
    # --- outputs
    "output: a suffix that tells no format": output("out.v2"),
    "output: a suffix that cannot be written": output("out.gguf"),
    "output: a shard size for one file": output("{path: out.safetensors, shard: 1GB}"),
    "output: a shard size of zero": output("{path: out, shard: 0GB}"),
    "output: an unknown format": output("{path: out, format: safetensor}"),
    "output: an unknown key": output("{path: out, overwrit: true}"),
    "output: no path": output("{alias: m}"),
    "output: exists already": output("other.safetensors"),
    "output: below a file": output("other.safetensors/out.safetensors"),
    "output: an unknown alias": output("{path: out.safetensors, alias: n}"),
    "output: a dtype that the format lacks": output(
        "out.safetensors", transform="cast_: {target: ids, to: complex128}"
    ),
    "output: no tensor left": output("out.safetensors", transform="delete: {target: '.*'}"),
    "output: two aliases to choose from": (
        "inputs: [m::model.safetensors, o::other.safetensors]\noutput: out.safetensors  # here\n"
    ),
}


class Refused(NamedTuple):
    """What became of a run: the error's diagnostics, tensor bytes read, and the files that were not there before."""

    error: bs.PlanError | None
    nbytes: int
    new_files: set[str]


def run(text: str, folder: Path) -> Refused:
    """Run a plan in a folder with two checkpoints, a damaged one and a text file."""
    write_zeros(folder / "model.safetensors", MODEL)
    write_zeros(folder / "other.safetensors", OTHER)
    write_zeros(folder / "long.safetensors", {"a" * 60 + ".weight": "f32[2]"})
    (folder / "notes.txt").write_text("notes")
    whole = write_zeros(folder / "short.safetensors", MODEL).read_bytes()
    (folder / "short.safetensors").write_bytes(whole[:-100])
    (folder / "plan.yaml").write_text(text)
    before, world = set(os.listdir(folder)), Files()
    try:
        with pytest.MonkeyPatch.context() as patch, speaking("shell"):
            patch.setattr(pattern, "TIME_LIMIT", TimeLimit(0.25))  # for the regex that never ends
            bs.load("plan.yaml").run(world=world)
        error = None
    except bs.PlanError as refused:
        error = refused
    return Refused(error, world.bytes_read, set(os.listdir(folder)) - before)


def shown(name: str, error: bs.PlanError, folder: Path) -> str:
    return f"## {name}\n{error}\n".replace(os.path.realpath(folder), "FOLDER")


def snapshot() -> dict[str, str]:
    blocks = SNAPSHOT.read_text().split("\n\n")
    return {block.partition("\n")[0].removeprefix("## "): block.strip() + "\n" for block in blocks if block.strip()}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_plan_with_one_mistake_is_refused_in_one_message_that_names_its_line_and_the_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    error, nbytes, new_files = run(MISTAKES[name], tmp_path)
    assert error is not None, "the plan ran"
    (diagnostic,) = error.diagnostics
    assert diagnostic.severity == "error"
    assert diagnostic.span is not None
    assert MISTAKES[name].splitlines()[diagnostic.span.line - 1].endswith("# here"), diagnostic
    assert diagnostic.hint or diagnostic.code == "assert-failed" or "Did you mean" in diagnostic.message
    assert (nbytes, new_files) == (0, set())
    assert shown(name, error, tmp_path) == snapshot()[name]


def test_the_snapshot_holds_the_messages_of_these_mistakes_and_no_others():
    assert list(snapshot()) == list(MISTAKES)


def test_several_mistakes_over_two_files_are_told_at_once_in_the_order_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_zeros(tmp_path / "model.safetensors", MODEL)
    (tmp_path / "one.yaml").write_text(
        "inputs: [m::model.safetensors]\ntransforms:\n  - delete: {target: idz}\n  - scale_: {target: ids, buy: 2}\n"
    )
    (tmp_path / "two.yaml").write_text(
        "transforms:\n  - null\n  - null\n  - copy: {from: mask, to: flag}\noutput: out.v2\n"
    )
    with pytest.raises(bs.PlanError) as refused:
        bs.load("one.yaml", "two.yaml").run()
    assert {(d.span.file, d.span.line, d.code) for d in refused.value.diagnostics if d.span} == {
        ("one.yaml", 3, "no-match"),
        ("one.yaml", 4, "key-unknown"),
        ("two.yaml", 4, "dest-exists"),
        ("two.yaml", 5, "output-path"),
    }
    assert [d.span.line for d in refused.value.diagnostics if d.span] == [3, 4, 4, 5]


def rewrite() -> None:
    """Write the snapshot anew."""
    blocks: list[str] = []
    for name, text in MISTAKES.items():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            error = run(text, Path(folder)).error
            blocks.append(f"## {name}\nNOT REFUSED\n" if error is None else shown(name, error, Path(folder)))
            os.chdir("/")
    SNAPSHOT.write_text("\n".join(blocks))


if __name__ == "__main__":
    sys.exit(rewrite())
