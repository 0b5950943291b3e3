"""The examples of a page of documentation: each is run, and what came out stands below it.

A page is cut at its `## ` headings. Each section has a folder of its own with the files that comments declare:

    <!-- model.safetensors
    wte.weight: f32[10,8]
    -->

(for all sections if the comment stands above the first heading); `<!-- $ COMMAND -->` runs a command that makes more.
In it

- a block that starts with a comment `# NAME` becomes that file, in later sections, too;
- a `yaml` block is a plan (or the steps of one: then inputs and output are added) and is run in a fresh copy of
  the folder; the `text` block below it holds what became of it;
- a `console` block holds commands after `$ `, each followed by what it prints;
- a `python` block is run, and the `text` block below it holds what it prints.

`rendered` gives the page with all of that written anew. A plan is refused if, and only if, a comment in it says so.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax  # noqa: F401  (before a command can name a cache of compiled kernels in the environment)
import numpy as np

import brainsurgery_jax as bs
from brainsurgery_jax import plugins
from brainsurgery_jax.cli.app import main
from brainsurgery_jax.dtypes import BY_NAME, DType
from brainsurgery_jax.errors import StoreError, speaking
from brainsurgery_jax.select import pattern
from brainsurgery_jax.select.limit import TimeLimit
from tests.checkpoints import np_dtype, read, write_raw

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^<!-- (\S+\.\w+)\n(.*?)^-->\n", re.MULTILINE | re.DOTALL)
_RUN = re.compile(r"^<!-- \$ (.*) -->$", re.MULTILINE)
_NAMED = re.compile(r"# (\S+\.\w+)\n")
_ALIAS = re.compile(r"(?<![\w.])([a-z]\w*)::")
SOON, LIMIT = 0.125, pattern.TIME_LIMIT.seconds  # seconds after which a regex is stopped: here, and for users
SHOWN = 12  # elements of a tensor that are shown


class Section(NamedTuple):
    """A heading and what stands below it, with the files that are there before."""

    title: str
    text: str
    files: Mapping[str, str]
    commands: tuple[str, ...] = ()


def sections(page: str) -> list[Section]:
    """A page cut at its `## ` headings; what stands above the first of them is a section without a title."""
    head, *rest = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    files, commands = _declared(head)
    cut = [Section("", head, files, commands)]
    for text in rest:
        own, more = _declared(text)
        cut.append(Section(text.partition("\n")[0].removeprefix("## "), text, files | own, commands + more))
        files = files | {named[1]: block for _, block in _FENCE.findall(text) if (named := _NAMED.match(block))}
    return cut


def _declared(text: str) -> tuple[dict[str, str], tuple[str, ...]]:
    return dict(_FILE.findall(text)), tuple(_RUN.findall(text))


def rendered(section: Section) -> str:
    """The section with the outcome of every example written anew."""
    with Folder(section.files, section.commands) as folder:
        pieces, at = [], 0
        blocks = list(_FENCE.finditer(section.text))
        for block, below in zip_longest(blocks, blocks[1:]):
            if block[1] == "text":
                continue
            told = folder.told(block[1], block[2])
            target = block if block[1] == "console" else below if below and below[1] == "text" else None
            if told is not None and target is not None:
                pieces += [section.text[at : target.start(2)], told]
                at = target.end(2)
        return "".join([*pieces, section.text[at:]])


class Folder:
    """The working directory of a section: runs its examples in order."""

    def __init__(self, files: Mapping[str, str], commands: tuple[str, ...] = ()):
        self.files, self.commands = dict(files), commands
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def __enter__(self) -> Folder:
        self.stack = contextlib.ExitStack()
        self.fresh()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def fresh(self) -> None:
        """Start again in a new folder with the declared files alone."""
        self.stack.close()
        place = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.stack.enter_context(contextlib.chdir(place))
        self.stack.enter_context(plugins.scope())
        try:
            for name, text in self.files.items():
                make(name, text)
            for line in self.commands:
                _command(line)
        except BaseException:
            self.stack.close()
            raise

    def told(self, kind: str, text: str) -> str | None:
        """What an example prints; None if it is no example."""
        if named := _NAMED.match(text):
            self.files[named[1]] = text
            make(named[1], text)
            return None
        match kind:
            case "yaml":
                self.fresh()
                return self.plan(text)
            case "console":
                return "".join(f"$ {line}\n{_command(line)}" for line in _commands(text))
            case "python":
                return self.python(text)
        return None

    def plan(self, text: str) -> str:
        """What became of a plan: what its steps said and what changed, or why it was refused."""
        Path("plan.yaml").write_text(whole(text), encoding="utf-8")
        try:
            with mock.patch.object(pattern, "TIME_LIMIT", TimeLimit(SOON)), speaking("shell"):
                plan = bs.load("plan.yaml")
                report = plan.run(durable=False)
        except (bs.PlanError, StoreError) as error:
            assert "# refused" in text, f"the plan is refused:\n{text}\n{error}"
            return _tidy(f"{error}\n")
        assert "# refused" not in text, f"the plan is not refused:\n{text}"
        return "".join(f"{s.rstrip()}\n" for s in report.said) + "".join(f"{line}\n" for line in _changes(plan, report))

    def python(self, text: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, "<example>", "exec"), self.names)
        return _tidy(out.getvalue())


def make(name: str, text: str) -> None:
    """A file of a page: the text itself, or a checkpoint of the tensors listed.

    `w: f32[2,3]` holds 0, 1, 2, ...; `w: f32[2,3] from 10` starts elsewhere.
    """
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    if not name.endswith(".safetensors"):
        Path(name).write_text(text, encoding="utf-8")
        return
    header, data = {}, b""
    for tensor, _, told in (line.partition(":") for line in text.splitlines() if line.strip()):
        aval, _, start = told.strip().partition(" from ")
        short, _, sizes = aval.rstrip("]").partition("[")
        shape = [int(n) for n in sizes.split(",") if n]
        raw = _values(BY_NAME[short], int(np.prod(shape)), int(start or 0))
        header[tensor.strip()] = {
            "dtype": BY_NAME[short].tag, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]
        }  # fmt: skip
        data += raw
    write_raw(name, header, data)


def _values(dtype: DType, size: int, start: int) -> bytes:
    """So many numbers from a start on, as bytes; of `bool` in turns false and true."""
    if dtype.numpy is None:
        return bytes(size * dtype.bits // 8)
    numbers = np.arange(start, start + size)
    return (numbers % 2 if dtype.kind == "bool" else numbers).astype(np_dtype(dtype)).tobytes()


def whole(text: str) -> str:
    """A plan from what a page shows: steps alone get inputs and an output."""
    if not re.match(r"(#.*\n)*- ", text):
        return text
    used = [a for a in dict.fromkeys(_ALIAS.findall(text)) if Path(f"{a}.safetensors").exists()] or ["model"]
    inputs = ", ".join(f"{a}::{a}.safetensors" for a in used)
    return (
        f"inputs: [{inputs}]\ntransforms:\n{textwrap.indent(text, '  ')}"
        f"output: {{path: out.safetensors, alias: {used[0]}}}\n"
    )


def _changes(plan: bs.Plan, report: bs.Report) -> Iterator[str]:
    """A line for every tensor that is new (+), gone (-), or another one than before (~)."""
    before = {n: x for i in plan.data.inputs if _is_written(plan, i.alias) for n, x in _tensors(i.path).items()}
    for path, _, _ in report.published:
        if len(report.published) > 1:
            yield f"{path}:"
        after = _tensors(path)
        yield from _first([f"- {name}" for name in before if name not in after])
        yield from _first([_line("~", n, x) for n, x in after.items() if n in before and not _same(before[n], x)])
        yield from _first([_line("+", n, x) for n, x in after.items() if n not in before])


def _first(lines: list[str], most: int = 6) -> list[str]:
    """The first of many lines, and how many more there are."""
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[0][0]} {len(lines) - most + 1} more"]


def _is_written(plan: bs.Plan, alias: str) -> bool:
    wanted = {o.alias for o in plan.data.outputs}
    return len(plan.data.inputs) == 1 or alias in wanted or (wanted == {None} and alias == plan.data.inputs[0].alias)


def _tensors(path: str) -> dict[str, np.ndarray]:
    if path.endswith(".safetensors"):
        return read(path)
    return {name: np.asarray(x) for name, x in bs.open(path).items()}


def _same(a: np.ndarray | None, b: np.ndarray) -> bool:
    return a is not None and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _line(mark: str, name: str, x: np.ndarray) -> str:
    short = next(d.short for d in BY_NAME.values() if d.numpy and np_dtype(d) == x.dtype)
    line = f"{mark} {name}  {short}[{','.join(map(str, x.shape))}]"
    return line if x.size > SHOWN else f"{line}  {_listed(x.tolist())}"


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_listed, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()


def _commands(text: str) -> list[str]:
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


def _command(line: str) -> str:
    """What a command prints, standard output and errors as they come."""
    words = shlex.split(line, comments=True)
    source = io.StringIO(Path(words.pop()).read_text(encoding="utf-8") if "<" in words else "")
    words = [w for w in words if w != "<"]
    if words[0] == "cat":
        return "".join(Path(w).read_text(encoding="utf-8") for w in words[1:])
    if words[0] == "ls":
        return "".join(f"{name}\n" for name in sorted(os.listdir(words[1] if len(words) > 1 else ".")))
    assert words[0] == "brainsurgery-jax", line
    out, code = io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.object(sys, "stdin", source),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert bool(code) == ("# refused" in line), f"{line}: exit code {code}\n{out.getvalue()}"
    return _tidy(out.getvalue())


def _tidy(text: str) -> str:
    """Without what differs from run to run."""
    text = text.replace(os.path.realpath("."), "/home/me/work").rstrip("\n") + "\n"
    text = text.replace(f"more than {SOON:g} s", f"more than {LIMIT:g} s")
    text = re.sub(r", [^,\n]+ in all on \d+ threads?", "", text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())
