"""Plans within a plan: what `execute` holds, made into a list of steps whose inputs are loads and outputs are saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, Span, did_you_mean
from brainsurgery_jax.plan.overrides import read_text, read_yaml
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, compose, describe, get, plain
from brainsurgery_jax.plan.variables import with_variables
from brainsurgery_jax.protocol import SubPlan

KEYS = ("inputs", "transforms", "output", "outputs", "vars", "version")
SAVED_KEYS = ("path", "alias", "format", "shard", "overwrite")


def sub_plan(kind: str, node: Node, read: Callable[[str], str] = read_text) -> SubPlan:
    """The steps that a node stands for: a list of steps ("steps"), a plan ("plan"), the YAML text of one ("plan-text"),
    or the path of its file ("plan-file"). Raises PlanError or Refusal."""
    match kind, node:
        case "steps", _:
            return _of(_items(node))
        case "plan", _:
            return _plan(node)
        case "plan-text", Scalar(value=str(text)):
            return _plan(compose(text, f"{node.span} (plan-yaml)"))
        case "plan-file", Scalar(value=str(path)) if path:
            return _plan(read_yaml(path, read, node.span))
    what = "the text of a plan" if kind == "plan-text" else "the path of a plan file"
    raise Refusal("value-type", f"expected {what}, got {describe(node)}", hint="Quote it if it is text.")


def _of(steps: tuple[Node, ...], alias: str | None = None) -> SubPlan:
    return SubPlan(steps, tuple(map(plain, steps)), alias)


def _items(node: Node | None) -> tuple[Node, ...]:
    """The steps under a key: a list, or one step standing alone."""
    if node is None or _is_null(node):
        return ()
    return node.items if isinstance(node, List) else (node,)


def _is_null(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.value is None


def _plan(node: Node | None) -> SubPlan:
    if node is None or _is_null(node):
        return _of(())
    if isinstance(node, List):
        return _of(node.items)
    if not isinstance(node, Map):
        raise Refusal("value-type", f"expected a plan or a list of steps, got {describe(node)}",
                      hint="Write `transforms: [...]`, with `inputs` and `output` where needed.")  # fmt: skip
    filled, problems = with_variables(node)
    problems = (*problems, *_unknown_keys(filled, KEYS, "a plan within a plan"))
    if errors := [d for d in problems if d.severity == "error"]:
        raise PlanError(errors)
    inputs = _items(get(filled, "inputs"))
    loads, aliases = _loads(inputs)
    saves = [_save(out) for key in ("output", "outputs") for out in _items(get(filled, key)) if _is_given(out)]
    alone = aliases[0] if len(aliases) == 1 else None
    return _of((*loads, *_items(get(filled, "transforms")), *saves), alone)


def _is_given(output: Node) -> bool:
    """An empty text or mapping means no output."""
    return not (isinstance(output, Scalar) and output.value == "") and not (
        isinstance(output, Map) and not output.entries
    )


def _unknown_keys(node: Map, known: Iterable[str], where: str) -> Iterator[Diagnostic]:
    for key, _ in node.entries:
        if key.text not in known:
            message = f"{where} has no key '{key.text}'.{did_you_mean(key.text, known)}"
            yield Diagnostic("key-unknown", message, key.span, f"Its keys: {', '.join(known)}.")


def _loads(inputs: tuple[Node, ...]) -> tuple[list[Node], list[str]]:
    """A load step for each input, and the aliases that they make."""
    loads: list[Node] = []
    aliases: list[str] = []
    for at, node in enumerate(inputs, start=1):
        if not (isinstance(node, Scalar) and isinstance(node.value, str) and node.value):
            message = f"inputs: expected 'alias::path', got {describe(node)}"
            hint = "Write the path of a checkpoint, such as 'base::models/base.safetensors'."
            raise PlanError([Diagnostic("inputs-form", message, node.span, hint)])
        alias, mark, path = node.value.partition("::")
        if not mark:
            alias, path = "", node.value
        if not mark and len(inputs) > 1:
            message = f"inputs: '{path}' needs an alias, since there are several inputs"
            raise PlanError([Diagnostic("inputs-form", message, node.span, f"Write 'NAME::{path}'.")])
        alias = alias or ("model" if len(inputs) == 1 else f"model_{at}")
        loads.append(_step("load", {"path": path, "alias": alias}, node.span))
        aliases.append(alias)
    return loads, aliases


def _save(output: Node) -> Node:
    """The save step that an output stands for; its path may begin with `alias::`."""
    given: dict[str, Node] = {}
    if isinstance(output, Map):
        if errors := list(_unknown_keys(output, SAVED_KEYS, "the output of a plan within a plan")):
            raise PlanError(errors)
        given = {key.text: value for key, value in output.entries}
    path = given.get("path", output)
    if not (isinstance(path, Scalar) and isinstance(path.value, str)):
        hint = "Write `output: out.safetensors`, or `output: {path: out, shard: 2GB}`."
        raise PlanError([Diagnostic("output-form", f"output: expected a path, got {describe(path)}", path.span, hint)])
    alias, mark, place = path.value.partition("::")
    if mark:
        given = {"alias": Scalar(alias, alias, path.span), **given}
    given["path"] = Scalar(place, place, path.span) if mark else path
    entries = tuple((Scalar(key, key, value.span), value) for key, value in given.items() if not _is_null(value))
    return Map(((Scalar("save", "save", output.span), Map(entries, output.span)),), output.span)


def _step(name: str, payload: dict[str, str], span: Span) -> Node:
    entries = tuple((Scalar(k, k, span), Scalar(v, v, span)) for k, v in payload.items())
    return Map(((Scalar(name, name, span), Map(entries, span)),), span)
