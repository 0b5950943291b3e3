"""The page of all ops, from the registry: `docs/ops.md`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from typing import Any

from brainsurgery_jax.cli.ops import ops
from brainsurgery_jax.op import ASSERTS, OPS, Op, TensorOp
from tests.apply.modes import KINDS, LIMITS, MESH_MODES, Limit
from tests.ops_table import ROWS

FAMILIES = {
    "names": "Names, aliases, files",
    "elementwise": "Elementwise arithmetic",
    "compute": "Expressions",
    "shape": "Shapes and parts",
    "sets": "Sets of tensors",
    "linalg": "Linear algebra",
    "lowrank": "Low rank",
    "create": "New tensors",
    "layout": "Layouts",
    "report": "Reports",
    "session": "The session",
    "asserts": "Asserts",
}
"""The families in the order of the page, and what they are called there; others follow by their own names."""

HEAD = """\
# Ops

<!-- Made from the registry by `make docs`. Change the docstrings, then run it. -->

Every op that a step can name, with its keys. `brainsurgery-jax ops NAME` prints the same; the JSON Schema of
`brainsurgery-jax schema` has it for editors. How references, templates and slices are written is in
[the language guide](language.md).

In the tables, *pattern* is a regular expression over whole names, or a list of tokens; *template* makes a name from
each match of the pattern; *name* is one name, taken literally. *Sliced*: `::[...]` may follow.
"""


MODES_HEAD = """\
## Under jit, vmap and grad

`plan.apply` works inside `jax.jit`, `jax.vmap` and `jax.grad`, in JAX's default configuration and with 64-bit types.
Every op is tested in each of them, on floats and integers: it gives what it gives outside of them, and its gradient is
that of finite differences. The exceptions:

| op | under | on | why |
|---|---|---|---|"""


def page() -> str:
    """The text of `docs/ops.md`."""
    every = told()
    families: dict[str, list[Op]] = {}
    for op in OPS.values():
        families.setdefault(every["ops"][op.name]["family"], []).append(op)
    order = [*(f for f in FAMILIES if f in families), *sorted(f for f in families if f not in FAMILIES)]
    parts = [HEAD, *_contents({f: families[f] for f in order})]
    for family in order:
        parts.append(f"## {_title(family)}\n")
        parts += [_section(op, every["ops"][op.name], op.name) for op in sorted(families[family], key=lambda o: o.name)]
    parts.append("## Operators of assert\n")
    parts += [_section(op, every["asserts"][name], f"assert.{name}") for name, op in sorted(ASSERTS.items())]
    parts += [MODES_HEAD, *_limits()]
    return "\n".join(parts) + "\n"


MODES_BEGIN, MODES_END = "<!-- modes:begin -->\n", "<!-- modes:end -->\n"


def with_modes(text: str) -> str:
    """A page with the table of ops and modes between its marks, if it has some."""
    before, begin, rest = text.partition(MODES_BEGIN)
    _, end, after = rest.partition(MODES_END)
    return f"{before}{begin}{''.join(f'{line}{chr(10)}' for line in modes())}{end}{after}" if begin else text


def modes() -> Iterator[str]:
    """The table of what each op does in each mode: the rows that `test_meshes.py` and `test_modes.py` try."""
    names = sorted({row.op for row in ROWS if not row.before} | {"diff"})
    yield f"| op | {' | '.join(f'`{mode}`' if mode != 'concrete' else mode for mode in MESH_MODES)} |"
    yield f"|---|{'---|' * len(MESH_MODES)}"
    yield from (f"| `{name}` | {' | '.join(_mode(name, mode) for mode in MESH_MODES)} |" for name in names)


def _mode(op: str, mode: str) -> str:
    """What an op does in a mode: "yes", or what it needs or lacks there."""
    under = "jit" if mode == "shard_map" else mode
    found = [limit for limit in LIMITS if under in limit.modes and any(_is_about(row, op) for row in limit.ops)]
    return "; ".join(map(_words, found)) or "yes"


def _is_about(row: str, op: str) -> bool:
    return row.removesuffix("*").partition("-")[0] == op


def _words(limit: Limit) -> str:
    if not limit.lifted:
        return limit.why if limit.why.startswith("integers") else f"no: {limit.why}"
    return "needs `checks=`" if "f" in limit.kinds else f"{KINDS[limit.kinds[0]]} need `checks=`"


def told() -> Mapping[str, Any]:
    """What `ops --json` says, by name."""
    out = io.StringIO()
    with redirect_stdout(out):
        ops(None, json=True)
    said = json.loads(out.getvalue())
    return {kind: {record["name"]: record for record in said[kind]} for kind in ("ops", "asserts")}


def _title(family: str) -> str:
    return FAMILIES.get(family, family.replace("_", " ").capitalize())


def _contents(families: Mapping[str, list[Op]]) -> Iterator[str]:
    yield "| family | ops |\n|---|---|"
    for family, members in families.items():
        yield f"| {_title(family)} | {_links({o.name: o.name for o in members})} |"
    yield f"| Operators of assert | {_links({name: f'assert.{name}' for name in ASSERTS})} |\n"


def _links(titles: Mapping[str, str]) -> str:
    return ", ".join(f"[`{name}`](#{anchor(title)})" for name, title in sorted(titles.items()))


def anchor(title: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _section(op: Op, told: Mapping[str, Any], title: str) -> str:
    text, examples, references = _parted(op.doc)
    lines = [f"### {title}\n", *text, ""]
    if told["keys"]:
        lines += [*_table(told["keys"]), ""]
    lines += [line for line in (_destination(op), _shorthand(op)) if line]
    lines += ["```yaml", *(f"- {example}" for example in examples), "```"]
    lines += ["", *references] if references else []
    return "\n".join(lines) + "\n"


def _parted(doc: str) -> tuple[list[str], list[str], list[str]]:
    """A docstring's text, its examples, and its references."""
    lines = doc.splitlines()
    examples = [line.removeprefix("Example: `").removesuffix("`") for line in lines if line.startswith("Example: `")]
    text = [line for line in lines if not line.startswith("Example: `")]
    at = next((i for i, line in enumerate(text) if line.startswith("Reference")), len(text))
    return _stripped(text[:at]), examples, _stripped(text[at:])


def _limits() -> Iterator[str]:
    """What ops lack under JAX's transformations: the rows of the tests."""
    for limit in LIMITS:
        ops = ", ".join(dict.fromkeys(_row_name(name) for name in limit.ops))
        yield f"| {ops} | {', '.join(limit.modes)} | {', '.join(KINDS[k] for k in limit.kinds)} | {limit.why} |"


def _row_name(row: str) -> str:
    op, _, label = row.removesuffix("*").partition("-")
    return f"`{label}`" if op == "compute" else f"`{op}`"


def _stripped(lines: Iterable[str]) -> list[str]:
    return "\n".join(lines).strip().splitlines()


def _table(keys: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield "| key | takes | default |\n|---|---|---|"
    for key in keys:
        default = "required" if key["required"] else _default(key["default"])
        yield f"| `{key['key']}` | {_kind(key)} | {default} |"


def _kind(key: Mapping[str, Any]) -> str:
    words = {"tensors, by pattern": "pattern", "name created from each match": "template", "one literal name": "name"}
    kind = key["kind"].removesuffix(" (a slice may follow)")
    for long, short in words.items():
        kind = kind.replace(long, short)
    kind = kind.replace("|", "\\|")
    return kind + (", sliced" if key["slices"] else "")


def _default(value: Any) -> str:
    return "" if value is None else f"`{json.dumps(value)}`"


_DESTINATIONS = {
    "new": "{} must not exist.",
    "existing": "{} must exist, with the shape and dtype of the result; its values are replaced.",
    "rebind": "{} is replaced, whatever its shape and dtype were.",
}


def _destination(op: Op) -> str:
    """What must be true of the tensors that an op writes."""
    if not isinstance(op, TensorOp) or op.form.writes == (op.form.match_key,) != ("to",):
        return ""
    return _DESTINATIONS[op.form.dest].format(" and ".join(f"`{key}`" for key in op.form.writes)) + "\n"


def _shorthand(op: Op) -> str:
    key = op.shorthand or op.bare
    return f"`{op.name}: VALUE` stands for the key `{key}`.\n" if key and len(op.fields()) > 1 else ""
