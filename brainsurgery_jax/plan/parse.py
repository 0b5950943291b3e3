"""From composed YAML to a `PlanData`: every mistake of every file, at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from brainsurgery_jax import plugins
from brainsurgery_jax.errors import Diagnostic, Span, did_you_mean, worded
from brainsurgery_jax.op import ASSERTS, IF_MISSING, OPS, UNMATCHED, ControlOp
from brainsurgery_jax.plan.endpoints import Endpoints, fingerprint_step, plain_of, span_of
from brainsurgery_jax.plan.model import Output, PlanData, Step
from brainsurgery_jax.plan.paths import KEYS
from brainsurgery_jax.plan.payload import Payload, parse_payload
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, get, spans
from brainsurgery_jax.select import name_aliases


class Parser(Endpoints):
    """Reads one plan, and collects its mistakes in `problems`. `aliases`: those that hints may propose."""

    aliases: Sequence[str] = ()

    def plan(self, root: Map) -> PlanData:
        given, table = get(root, "inputs"), get(root, "vars")
        variables = [name.text for name, _ in table.entries] if isinstance(table, Map) else []
        for key, value in root.entries:
            if key.text not in KEYS:
                meant = _OTHER_KEYS.get(key.text.lower())
                near = f" Did you mean '{meant}'?" if meant else did_you_mean(key.text, [*KEYS, *variables])
                overridden = key.span.file.startswith("override ")
                hint = _key_hint(key.text if overridden and not near else "")
                self.complain("key-unknown", f"unknown top-level key '{key.text}'.{near}", key.span, hint)
                given = given or (value if near.endswith("'inputs'?") else None)  # lest all references lack an alias
        version = plain_of(get(root, "version"))
        if version not in (None, 1):
            self.complain(
                "plan-version",
                f"version: this tool reads plan language 1, got {version!r}",
                span_of(get(root, "version")),
                "Write `version: 1` or leave it out; a newer plan needs a newer brainsurgery-jax.",
            )
        inputs = self.inputs(given)
        default = inputs[0].alias if len(inputs) == 1 else None
        self.aliases = [entry.alias for entry in inputs]
        asked = [fingerprint_step(entry, root.span) for entry in inputs if entry.fingerprint]
        steps = tuple(self.step(n, default) for n in (*asked, *_items(get(root, "transforms"))))
        return PlanData(inputs, steps, self.outputs(root), self.seed(get(root, "seed")), self.doubtful)

    def seed(self, node: Node | None) -> int:
        value = plain_of(node)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value or 0
        self.complain("value-type", f"seed: expected an integer, got {value!r}", span_of(node),
                      "Write a number, such as `seed: 7`; without it the seed is 0.")  # fmt: skip
        return 0

    def step(self, node: Node, default: str | None) -> Step:
        named = self.named(node)
        if named is None:
            return Step(None, {}, node.span, text=plain_of(node))
        name, span, payload = named
        text = {name: {} if plain_of(payload) is None else plain_of(payload)}
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
        params = parse_payload(op, plain_of(payload), reading, op.step_fields())
        # Where inputs cannot be read, nobody knows whether there is a default alias.
        known = [replace(d, hint=name_aliases(d.hint, self.aliases)) for d in reading.problems]
        self.problems.extend(d for d in known if not (self.doubtful and d.code == "ref-no-alias"))
        if isinstance(op, ControlOp) and (made := op.alias_made(params)) not in (None, *self.aliases):
            self.aliases = [*self.aliases, made]
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
                self.complain("step-form", f"expected a step `op: {{...}}`, got {plain_of(node)!r}", node.span, hint)
        return None

    def outputs(self, root: Map) -> tuple[Output, ...]:
        one, several = get(root, "output"), get(root, "outputs")
        if one is not None and several is not None:
            self.complain("output-form", "give either `output` or `outputs`, not both", several.span,
                          "Move the one under `output` into the list under `outputs`.")  # fmt: skip
        out = [self.output(n, "output") for n in ([one] if one is not None and plain_of(one) else [])]
        out += [self.output(n, f"outputs.{i}") for i, n in enumerate(_items(several))]
        return tuple(o for o in out if o is not None)


_OTHER_WORDS = {
    "rename": "move", "remove": "delete", "drop": "delete", "concatenate": "concat", "cat": "concat", "chunk": "split",
    "mul": "multiply", "sub": "subtract", "div": "divide", "svd": "phlora", "print": "dump", "zeros": "zeroes",
    "to": "cast_", "interpolate": "lerp", "index_select": "take", "gather": "take", "tile": "repeat",
    "unbind": "unstack", "mean": "reduce", "sum": "reduce", "norm": "reduce", "max": "reduce", "min": "reduce",
    "mv": "move", "cp": "copy", "clone": "copy", "duplicate": "copy", "rm": "delete", "del": "delete",
    "ls": "dump", "show": "dump", "inspect": "dump", "list": "dump", "compare": "diff", "write": "save", "read": "load",
    "open": "load", "import": "load", "view": "reshape", "astype": "cast_", "convert": "cast_", "half": "cast_",
    "swapaxes": "permute", "dot": "matmul", "mm": "matmul", "bmm": "matmul", "average": "lerp", "blend": "lerp",
    "clip": "clamp", "full": "fill", "slice": "copy", "eval": "compute", "expr": "compute", "include": "execute",
}  # fmt: skip
"""Names that other tools use for our ops."""


def nearest_op(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"`: what we call what others call so, or the nearest name of an op."""
    meant = _OTHER_WORDS.get(name.lower().rstrip("_"))
    return f" Did you mean '{meant}'?" if meant in OPS else did_you_mean(name, known, ours=True)


_OTHER_KEYS = {
    "models": "inputs", "model": "inputs", "sources": "inputs", "checkpoints": "inputs", "base_model": "inputs",
    "steps": "transforms", "ops": "transforms", "operations": "transforms", "edits": "transforms", "plan": "transforms",
    "destination": "output", "save": "output", "target": "output", "out": "output", "variables": "vars",
}  # fmt: skip
"""Names that other tools use for the keys of a plan."""


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


def _items(node: Node | None) -> tuple[Node, ...]:
    """The steps under a key: a list, or one step standing alone."""
    if node is None or plain_of(node) is None:
        return ()
    return node.items if isinstance(node, List) else (node,)


def parse_step(
    node: Node, default_alias: str | None, aliases: Sequence[str] = ()
) -> tuple[Step, tuple[Diagnostic, ...]]:
    """The one step that a node spells, and everything that is wrong with it. `aliases`: those that there are."""
    parser = Parser(frozenset())
    parser.aliases = aliases
    step = parser.step(node, default_alias)
    return step, tuple(parser.problems)


def parse(root: Map, unfilled: frozenset[Span] = frozenset()) -> tuple[PlanData, tuple[Diagnostic, ...]]:
    """The plan that a document spells, and everything that is wrong with it.

    `unfilled`: places of variables without a value; the parts that contain one are skipped without a further error.
    """
    parser = Parser(unfilled)
    plan = parser.plan(root)
    return plan, tuple(parser.problems)
