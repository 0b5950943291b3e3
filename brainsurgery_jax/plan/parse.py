"""From composed YAML to a `Plan`: every mistake of every file, at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from brainsurgery_jax import plugins
from brainsurgery_jax.config_patch import FULL_FORM, read_change
from brainsurgery_jax.errors import Diagnostic, Span, did_you_mean, worded
from brainsurgery_jax.op import ASSERTS, IF_MISSING, OPS, UNMATCHED
from brainsurgery_jax.plan.model import Input, Location, Output, Plan, Step
from brainsurgery_jax.plan.payload import Payload, parse_payload
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, get, plain, spans
from brainsurgery_jax.store.address import MARK, Address, split_alias
from brainsurgery_jax.store.formats import NAMES

KEYS = ("inputs", "transforms", "output", "outputs", "seed", "vars", "version")
INPUT_KEYS = ("alias", "path", "part", "leave_out")
OUTPUT_KEYS = ("path", "alias", "format", "shard", "overwrite", "sidecars", "config", "metadata", "options")
_OUTPUT_HINTS = {
    "path": "Write where to, such as `path: out.safetensors` for a file or `path: out` for a folder.",
    "alias": "Write the alias to save, such as `alias: model`.",
    "shard": "Write a size in quotes or with its unit, such as `shard: 2GB`, or `shard: none`.",
}


class Parser:
    """Reads one plan; what is wrong collects in `problems`, what is right in the plan."""

    def __init__(self, unfilled: frozenset[Span]) -> None:
        self.problems: list[Diagnostic] = []
        self.unfilled = unfilled  # places whose value is not known; that has been told already
        self.doubtful = False

    def complain(self, code: str, message: str, span: Span | None, hint: str = "") -> None:
        if span not in self.unfilled:
            self.problems.append(Diagnostic(code, message, span, hint))

    def plan(self, root: Map) -> Plan:
        given = get(root, "inputs")
        for key, value in root.entries:
            if key.text not in KEYS:
                meant = _OTHER_KEYS.get(key.text.lower())
                near = f" Did you mean '{meant}'?" if meant else did_you_mean(key.text, KEYS)
                overridden = key.span.file.startswith("override ")
                hint = _key_hint(key.text if overridden and not near else "")
                self.complain("key-unknown", f"unknown top-level key '{key.text}'.{near}", key.span, hint)
                given = given or (value if near.endswith("'inputs'?") else None)  # lest all references lack an alias
        version = _plain(get(root, "version"))
        if version not in (None, 1):
            self.complain(
                "plan-version",
                f"version: this tool reads plan language 1, got {version!r}",
                _span(get(root, "version")),
                "Write `version: 1` or leave it out; a newer plan needs a newer brainsurgery-jax.",
            )
        inputs = self.inputs(given)
        default = inputs[0].alias if len(inputs) == 1 else None
        steps = tuple(self.step(n, default) for n in _items(get(root, "transforms")))
        return Plan(inputs, steps, self.outputs(root), self.seed(get(root, "seed")), self.doubtful)

    def seed(self, node: Node | None) -> int:
        value = _plain(node)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value or 0
        self.complain("value-type", f"seed: expected an integer, got {value!r}", _span(node),
                      "Write a number, such as `seed: 7`; without it the seed is 0.")  # fmt: skip
        return 0

    def inputs(self, node: Node | None) -> tuple[Input, ...]:
        if node is None or _plain(node) is None:
            return ()
        if not isinstance(node, List):
            self.complain("inputs-form", f"inputs: expected a list of 'alias::path', got {_plain(node)!r}", node.span,
                          "Write `inputs: [base::models/base.safetensors]`.")  # fmt: skip
            if not isinstance(_plain(node), str):
                self.doubtful = True
                return ()
        out: dict[str, Input] = {}
        items = node.items if isinstance(node, List) else (node,)
        for item in items:
            entry = self.input(item, alone=len(items) == 1)
            if entry is not None and entry.alias in out:
                hint = f"Give each input a name of its own, such as '{entry.alias}2::{entry.path}'."
                self.complain("alias-duplicate", f"inputs: alias '{entry.alias}' is given twice", item.span, hint)
            elif entry is not None:
                out[entry.alias] = entry
        return tuple(out.values())

    def input(self, node: Node, *, alone: bool) -> Input | None:
        text = _plain(node)
        if isinstance(text, dict):
            text = self.input_mapping(node, text)
        elif not isinstance(text, str) or not text:
            self.complain("inputs-form", f"inputs: expected 'alias::path', got {text!r}", node.span,
                          "Write the path of a checkpoint, such as 'base::models/base.safetensors'.")  # fmt: skip
            text = ""
        if not text:
            self.doubtful = True
            return None
        alias, path = split_alias(text)
        if not path:
            self.complain("inputs-form", f"inputs: '{text}' has no path", node.span,
                          f"Write '{alias or 'NAME'}::PATH', the path of a checkpoint.")  # fmt: skip
            return Input(alias or "model", "", node.span)
        if not alias and not alone:
            self.complain("inputs-form", f"inputs: '{text}' needs an alias, since there are several inputs", node.span,
                          f"Write 'NAME::{path}'.")  # fmt: skip
            self.doubtful = True
            return None
        unfilled = self.unfilled.intersection((node.span, *spans(node).values()))
        return Input(alias or "model", "" if unfilled else path, node.span)

    def input_mapping(self, node: Node, value: Mapping[str, Any]) -> str:
        """The text that says what a mapping says of an input; empty where that is wrong."""
        places, before = spans(node), len(self.problems)
        for key, found in value.items():
            at = places.get((key,), node.span)
            if key not in INPUT_KEYS:
                self.complain("key-unknown", f"inputs: unknown key '{key}'.{did_you_mean(key, INPUT_KEYS)}", at,
                              f"Keys of an input: {', '.join(INPUT_KEYS)}.")  # fmt: skip
            elif key == "leave_out" and not _is_texts(found):
                self.complain("value-type", f"inputs: leave_out: expected a list of names, got {found!r}", at,
                              "Write the names of entries, such as `leave_out: [config, note]`.")  # fmt: skip
            elif key != "leave_out" and not (isinstance(found, str) and found and MARK not in found):
                self.complain("value-type", f"inputs: {key}: expected text without '{MARK}', got {found!r}", at,
                              f"Write it as `{key}: TEXT`.")  # fmt: skip
        if "path" not in value:
            self.complain("key-missing", "inputs: missing key 'path'", node.span, "Write the path of a checkpoint.")
        if len(self.problems) > before:
            return ""
        address = Address(value["path"], value.get("part", ""), tuple(value.get("leave_out", ())))
        return f"{value.get('alias', '')}{MARK}{address}"

    def step(self, node: Node, default: str | None) -> Step:
        named = self.named(node)
        if named is None:
            return Step(None, {}, node.span, text=_plain(node))
        name, span, payload = named
        text = {name: {} if _plain(payload) is None else _plain(payload)}
        places = {(): span} | ({} if payload is None else {k: s for k, s in spans(payload).items() if k})
        if self.unfilled.intersection((*places.values(), *([payload.span] if payload else []))):
            return Step(None, {}, span, text=text)
        if (op := plugins.find(OPS, name)) is None:
            near = nearest_op(name, OPS)
            hint = ops_hint()
            if name.startswith("-") and (dashed := name.lstrip("-")) in OPS:
                near, hint = "", f"Put a space behind the dash of a step: `- {dashed}: ...`."
            if name in ASSERTS:
                near, hint = "", f"'{name}' is an operator of assert: write `assert: {{{name}: ...}}`."
            if (first := name.partition(" ")[0]) in OPS:
                near, hint = "", f"Write `{first}:` and its keys. {ops_hint(first)}"
            self.complain("op-unknown", f"unknown op '{name}'.{near}", span,
                          "\n".join([hint, *plugins.left_out()]))  # fmt: skip
            return Step(None, {}, span, text=text)
        reading = Payload(places, (), name, default, payload)
        params = parse_payload(op, _plain(payload), reading, op.step_fields())
        # Where inputs cannot be read, nobody knows whether there is a default alias.
        self.problems.extend(d for d in reading.problems if not (self.doubtful and d.code == "ref-no-alias"))
        lenient = params.pop(IF_MISSING.param, IF_MISSING.default) == "skip"
        unmatched = params.pop(UNMATCHED.param, UNMATCHED.default) if UNMATCHED in op.step_fields() else None
        return Step(None if reading.problems else op, params, span, places, text, lenient, unmatched, node)

    def named(self, node: Node) -> tuple[str, Span, Node | None] | None:
        """The op's name, its place, and the payload of a step."""
        match node:
            case Scalar(value=str(name)):
                return name, node.span, None
            case Map(entries=((key, payload),)):
                return key.text, key.span, payload
            case Map(entries=entries) if entries:
                keys = " and ".join(f"'{k.text}' ({k.span.row})" for k, _ in entries)
                hint = _several_keys_hint(entries)
                self.complain("step-form", f"a step has exactly one key, got {keys}", entries[1][0].span, hint)
            case _:
                hint = "A step is the name of an op with its keys, such as `- delete: {target: 'tmp.*'}`."
                self.complain("step-form", f"expected a step `op: {{...}}`, got {_plain(node)!r}", node.span, hint)
        return None

    def outputs(self, root: Map) -> tuple[Output, ...]:
        one, several = get(root, "output"), get(root, "outputs")
        if one is not None and several is not None:
            self.complain("output-form", "give either `output` or `outputs`, not both", several.span,
                          "Move the one under `output` into the list under `outputs`.")  # fmt: skip
        out = [self.output(n, "output") for n in ([one] if one is not None and _plain(one) else [])]
        out += [self.output(n, f"outputs.{i}") for i, n in enumerate(_items(several))]
        return tuple(o for o in out if o is not None)

    def output(self, node: Node, label: str) -> Output | None:
        value = _plain(node)
        if self.unfilled.intersection(spans(node).values()):
            return None
        if isinstance(value, str):
            return Output(value, span=node.span)
        if not isinstance(value, dict):
            self.complain("output-form", f"{label}: expected a path or a mapping with `path`, got {value!r}", node.span,
                          "Write `output: out.safetensors`, or `output: {path: out, shard: 2GB}`.")  # fmt: skip
            return None
        places = spans(node)
        before = len(self.problems)
        self.output_keys(value, label, places, node.span)
        if len(self.problems) > before:
            return None
        return Output(**{k: v for k, v in value.items() if v is not None}, span=node.span, spans=places)

    def output_keys(self, value: Mapping[str, Any], label: str, places: Mapping[Location, Span], span: Span) -> None:
        for key, found in value.items():
            at = places.get((key,), span)
            if key not in OUTPUT_KEYS:
                self.complain("key-unknown", f"{label}: unknown key '{key}'.{did_you_mean(key, OUTPUT_KEYS)}", at,
                              f"Keys of an output: {', '.join(OUTPUT_KEYS)}.")  # fmt: skip
            elif key in ("path", "alias", "shard") and not (isinstance(found, str) and found):
                self.complain("value-type", f"{label}.{key}: expected text, got {found!r}", at, _OUTPUT_HINTS[key])
            elif key in ("overwrite", "sidecars") and not isinstance(found, bool):
                self.complain(
                    "value-type", f"{label}.{key}: expected true or false, got {found!r}", at, f"Write `{key}: true`."
                )
            elif key == "format" and found is not None and found not in NAMES:
                meant = _OTHER_FORMATS.get(str(found).lower().lstrip("."))
                known = did_you_mean(found, NAMES) if isinstance(found, str) else ""
                near = f" Did you mean '{meant}'?" if meant else known
                hint = f"There are: {', '.join(NAMES)}. Left out, the suffix of the path decides."
                self.complain("output-format", f"{label}.format: unknown format {found!r}.{near}", at, hint)
            elif key == "config" and not _is_options(found):
                self.complain("value-type", f"{label}.config: expected a mapping of keys to values, got {found!r}", at,
                              "Write what is to change in config.json: `config: {num_hidden_layers: 9}`.")  # fmt: skip
            elif key == "config" and (wrong := _wrong_change(found)):
                self.complain("value-type", f"{label}.config.{wrong}", at, FULL_FORM)
            elif key == "options" and not _is_options(found):
                self.complain("value-type", f"{label}.options: expected a mapping of names to values, got {found!r}",
                              at, "Write them as keys, such as `options: {compression: true}`.")  # fmt: skip
            elif key == "metadata" and not _is_text_map(found):
                self.complain("value-type", f"{label}.metadata: expected a mapping of text to text, got {found!r}", at,
                              "Quote numbers and words such as true: `metadata: {epoch: '3'}`.")  # fmt: skip
        if "path" not in value:
            self.complain("key-missing", f"{label}: missing key 'path'", span, _OUTPUT_HINTS["path"])


_OTHER_WORDS = {
    "rename": "move", "remove": "delete", "drop": "delete", "concatenate": "concat", "cat": "concat", "chunk": "split",
    "mul": "multiply", "sub": "subtract", "div": "divide", "svd": "phlora", "print": "dump", "zeros": "zeroes",
    "to": "cast_", "interpolate": "lerp", "index_select": "take", "gather": "take", "tile": "repeat",
    "unbind": "unstack", "mean": "reduce", "sum": "reduce", "norm": "reduce", "max": "reduce", "min": "reduce",
    "mv": "move", "cp": "copy", "clone": "copy", "duplicate": "copy", "rm": "delete", "del": "delete",
    "prune": "delete",
    "ls": "dump", "show": "dump", "inspect": "dump", "list": "dump", "compare": "diff", "write": "save", "read": "load",
    "open": "load", "import": "load", "view": "reshape", "astype": "cast_", "convert": "cast_", "half": "cast_",
    "swapaxes": "permute", "dot": "matmul", "mm": "matmul", "bmm": "matmul", "average": "lerp", "blend": "lerp",
    "clip": "clamp", "full": "fill", "slice": "copy", "eval": "compute", "expr": "compute", "include": "execute",
}  # fmt: skip
"""What other tools call our ops."""


def nearest_op(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"`: what we call what others call so, or the nearest name of an op."""
    meant = _OTHER_WORDS.get(name.lower().rstrip("_"))
    return f" Did you mean '{meant}'?" if meant in OPS else did_you_mean(name, known, ours=True)


_OTHER_KEYS = {
    "models": "inputs", "model": "inputs", "sources": "inputs", "checkpoints": "inputs", "base_model": "inputs",
    "steps": "transforms", "ops": "transforms", "operations": "transforms", "edits": "transforms", "plan": "transforms",
    "destination": "output", "save": "output", "target": "output", "out": "output", "variables": "vars",
}  # fmt: skip
"""What others call the keys of a plan."""

_OTHER_FORMATS = {"pt": "torch", "pth": "torch", "bin": "torch", "ckpt": "torch", "hf": "safetensors", "numpy": "npz"}
"""What others call our formats."""


def ops_hint(op: str = "") -> str:
    """Where the ops are listed, or one is described."""
    if not op:
        return worded(shell="`brainsurgery-jax ops` lists them all.", python="The step `help` prints a list of them.")
    page = worded(shell=f"brainsurgery-jax ops {op}", python=f"help: {{command: {op}}}")
    return f"`{page}` describes them."


def _several_keys_hint(entries: Sequence[tuple[Scalar, Node]]) -> str:
    (first, payload), (second, _) = entries[:2]
    if first.span.file != second.span.file:
        return "Steps of several plan files are merged by their place in the list, not appended to it."
    if isinstance(payload, Scalar) and payload.value is None:
        return f"Indent the keys of '{first.text}' deeper than '{first.text}' itself."
    return "Start each step with its own `- `."


def _key_hint(variable: str) -> str:
    """The keys of a plan, and how to set what may have been meant as a variable."""
    return f"Keys of a plan: {', '.join(KEYS)}." + _variable_hint(variable)


def _variable_hint(name: str) -> str:
    how = worded(shell=f"vars.{name}=...", python=f"load(..., {name}=...)")
    return f" A variable is set as `{how}`." if name else ""


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item and MARK not in item for item in value)


def _is_options(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(isinstance(k, str) for k in value))


def _wrong_change(value: Any) -> str:
    """What is wrong with a change to a config, if anything is."""
    try:
        read_change(value or {})
    except ValueError as bad:
        return str(bad)
    return ""


def _plain(node: Node | None) -> Any:
    return None if node is None else plain(node)


def _span(node: Node | None) -> Span | None:
    return None if node is None else node.span


def _items(node: Node | None) -> tuple[Node, ...]:
    """The steps under a key: a list, or one step standing alone."""
    if node is None or _plain(node) is None:
        return ()
    return node.items if isinstance(node, List) else (node,)


def parse_step(node: Node, default_alias: str | None) -> tuple[Step, tuple[Diagnostic, ...]]:
    """The one step that a node spells, and everything that is wrong with it."""
    parser = Parser(frozenset())
    step = parser.step(node, default_alias)
    return step, tuple(parser.problems)


def parse(root: Map, unfilled: frozenset[Span] = frozenset()) -> tuple[Plan, tuple[Diagnostic, ...]]:
    """The plan that a document spells, and everything that is wrong with it.

    `unfilled` are places at which a variable without a value stands: what holds one is left out, without another word.
    """
    parser = Parser(unfilled)
    plan = parser.plan(root)
    return plan, tuple(parser.problems)
