r"""The compatibility tables: how a row reads, and how it is run.

A row is one rule of the plan language, shown by one plan:

    accepted("copy", "a slice of the source becomes a tensor of its own",
             "copy: { from: 'w::[:2]', to: n }", W, {"n": W["w"][:2]})
    refused("copy", "the destination must not exist",
            "copy: { from: w, to: b }", W, "dest-exists", "'b' exists already")

- The first word is the entry of the specification that the row belongs to: an op, `assert OPERATOR`, or a section.
- The plan is what a user would write. One step, or a list of steps, is run on inputs that hold the row's tensors:
  `{name: array}` is one input, which needs no alias; `{alias: {name: array}}` are several. All of it is written back.
  Text with a top-level `transforms:`, `inputs:` or `output:` is a plan of its own and is run as it stands, in a folder
  where each alias lies as `ALIAS.safetensors` (a single one as `model.safetensors`) and output goes to
  `out.safetensors`.
- What comes out: the tensors that are new or changed (None: gone), as numpy makes them; all others must be as they
  were, bit for bit. `within` is an absolute tolerance. `prints` is what the steps say: the exact text, or a compiled
  regex that is found in it. `files` lie in the folder before, `leaves` after the run.
- What is refused has a diagnostic's code and a regex of its text. It must be the only mistake that is found, `check`
  must find it as well (`late`: only the values tell it), and nothing may be written.

Everything goes through files: written and read by the `safetensors` package, and run as `load("plan.yaml").run()`.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import brainsurgery_jax as bs
from tests.checkpoints import same

Tensors = Mapping[str, Any]
Files = Mapping[str, Any]
NO_FILES: Files = {}


class Row(NamedTuple):
    """One rule, shown by one plan. Made by `accepted` and `refused`."""

    entry: str
    rule: str
    plan: str
    tensors: Tensors
    gives: Tensors | None = None
    within: float = 0.0
    prints: str | re.Pattern[str] | None = None
    files: Files = NO_FILES
    leaves: Files = NO_FILES
    code: str = ""
    text: str = ""
    late: bool = False

    def __str__(self) -> str:
        return f"{self.entry}: {self.rule}"


def accepted(entry: str, rule: str, plan: str, tensors: Tensors, gives: Tensors | None = None, **more: Any) -> Row:
    """A plan that runs: what it changes (nothing is written if `gives` is left out), prints and leaves behind."""
    return Row(entry, rule, plan, tensors, gives, **more)


def refused(entry: str, rule: str, plan: str, tensors: Tensors, code: str, text: str, **more: Any) -> Row:
    """A plan that does not run: the code of what is wrong with it, and a regex of how that is told."""
    return Row(entry, rule, plan, tensors, {}, code=code, text=text, **more)


def check(row: Row) -> None:
    """Run a row in the working directory and compare all that it says."""
    lay_out(row.tensors, row.files)
    Path("plan.yaml").write_text(whole(row), encoding="utf-8")
    if row.code:
        check_refusal(row)
    else:
        check_result(row)


def check_result(row: Row) -> None:
    report = bs.load("plan.yaml").run(durable=False)
    said = "\n".join(report.said)
    if isinstance(row.prints, re.Pattern):
        assert row.prints.search(said), said
    elif row.prints is not None:
        assert said == textwrap.dedent(row.prints).strip("\n")
    if row.gives is not None:
        expect(written(row.tensors), _expected(row), row.within)
    for path, content in row.leaves.items():
        expect(read(path), content, row.within)


def check_refusal(row: Row) -> None:
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(bs.PlanError, match=row.text) as caught:
        bs.load("plan.yaml").run(durable=False)
    assert [d.code for d in caught.value.diagnostics if d.severity == "error"] == [row.code]
    assert sorted(Path.cwd().rglob("*")) == before
    assert row.late or mistakes() == [row.code]


def mistakes(*items: str) -> list[str]:
    """The codes of what `check` finds in a plan."""
    try:
        found: Sequence[Any] = bs.check(bs.load(*(items or ("plan.yaml",))))
    except bs.PlanError as bad:
        found = bad.diagnostics
    return [d.code for d in found if d.severity == "error"]


def run(plan: str, tensors: Tensors, files: Files = NO_FILES) -> tuple[dict[str, np.ndarray], str]:
    """What a plan writes and what it prints, for rules that do not fit into a row."""
    lay_out(tensors, files)
    Path("plan.yaml").write_text(whole(Row("", "", plan, tensors, {})), encoding="utf-8")
    report = bs.load("plan.yaml").run(durable=False)
    return written(tensors), "\n".join(report.said)


# --- Files ------------------------------------------------------------------------------------------------------------


def whole(row: Row) -> str:
    """The plan file of a row."""
    text = textwrap.dedent(row.plan).strip("\n")
    if re.search(r"^(transforms|inputs|outputs?):", text, re.MULTILINE):
        return text + "\n"
    lines = [_inputs(row.tensors), "transforms:", textwrap.indent(text, "  ")]
    return "\n".join([*lines, *([_outputs(row.tensors)] if row.gives is not None else [])]) + "\n"


def lay_out(tensors: Tensors, files: Files = NO_FILES) -> None:
    """Write a row's inputs and its other files."""
    for alias, group in groups(tensors).items():
        store(f"{alias}.safetensors", group)
    for path, content in files.items():
        store(path, content)


TORCH = (".pt", ".pth", ".bin")


def store(path: str, content: Any) -> None:
    """Write text, a tensor (.npy) or a set of tensors, as the path and the content say; a path is copied."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        place.write_bytes(content.read_bytes())
    elif place.suffix in TORCH:
        import torch

        torch.save(_mapped(content, lambda x: torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x), path)
    elif isinstance(content, str):
        place.write_text(textwrap.dedent(content), encoding="utf-8")
    elif place.suffix == ".npy":
        np.save(place, content)
    elif place.suffix == ".npz":
        np.savez(place, **content)
    else:
        save_file({name: np.array(x, order="C") for name, x in content.items()}, path)


def read(path: str) -> Any:
    """What lies at a path: a tensor, or a set of tensors from a file or a folder."""
    place = Path(path)
    if place.is_dir():
        return {name: x for file in sorted(place.glob("*.safetensors")) for name, x in load_file(file).items()}
    if place.suffix in TORCH:
        import torch

        return _mapped(torch.load(place), lambda x: x.numpy())
    if place.suffix == ".npy":
        return np.load(place)
    return dict(np.load(place)) if place.suffix == ".npz" else load_file(path)


def _mapped(content: Any, convert: Callable[[Any], Any]) -> Any:
    """The same nested mappings, with every value converted."""
    return {k: _mapped(v, convert) for k, v in content.items()} if isinstance(content, Mapping) else convert(content)


def groups(tensors: Tensors) -> dict[str, Tensors]:
    """A row's tensors by alias."""
    if not tensors:
        return {}
    several = all(isinstance(group, Mapping) for group in tensors.values())
    return dict(tensors) if several else {"model": tensors}


def written(tensors: Tensors) -> dict[str, np.ndarray]:
    """All that a row wrote, by name; of several inputs by `alias::name`."""
    aliases = list(groups(tensors))
    if len(aliases) < 2:
        return read("out.safetensors")
    return {f"{a}::{name}": x for a in aliases for name, x in read(f"out-{a}.safetensors").items()}


def expect(found: Any, wanted: Any, within: float = 0.0) -> None:
    """Compare what was written with what should be there."""
    if not isinstance(wanted, Mapping):
        found, wanted = {"": found}, {"": wanted}
    assert sorted(found) == sorted(wanted)
    for name, x in wanted.items():
        if within:
            assert (found[name].shape, found[name].dtype) == (x.shape, x.dtype), name
            wide = np.complex128 if x.dtype.kind == "c" else np.float64
            np.testing.assert_allclose(found[name].astype(wide), x.astype(wide), 0, within, err_msg=name)
        else:
            assert same(found[name], x), f"{name}: {found[name]!r} instead of {x!r}"


def _inputs(tensors: Tensors) -> str:
    aliases = list(groups(tensors))
    if len(aliases) < 2:
        return f"inputs: {json.dumps([f'{a}.safetensors' for a in aliases])}"
    return f"inputs: {json.dumps([f'{a}::{a}.safetensors' for a in aliases])}"


def _outputs(tensors: Tensors) -> str:
    aliases = list(groups(tensors))
    if len(aliases) < 2:
        return "output: out.safetensors"
    return f"outputs: {json.dumps([{'path': f'out-{a}.safetensors', 'alias': a} for a in aliases])}"


def _expected(row: Row) -> dict[str, np.ndarray]:
    several = len(groups(row.tensors)) > 1
    before = {f"{a}::{n}" if several else n: x for a, group in groups(row.tensors).items() for n, x in group.items()}
    assert row.gives is not None
    return {name: np.asarray(x) for name, x in {**before, **row.gives}.items() if x is not None}
