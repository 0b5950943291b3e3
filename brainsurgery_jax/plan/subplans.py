"""Plans within a plan: what `execute` holds, made into a list of steps whose inputs are loads and outputs are saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from brainsurgery_jax.errors import Diagnostic, PlanError, Refusal, Span, did_you_mean
from brainsurgery_jax.plan.declarations import Variable, declare
from brainsurgery_jax.plan.endpoints import Endpoints, fingerprint_step
from brainsurgery_jax.plan.overrides import merge, read_text, read_yaml
from brainsurgery_jax.plan.recipes import PREFIX, find_recipe
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, compose, describe, get, plain
from brainsurgery_jax.plan.variables import with_variables
from brainsurgery_jax.protocol import SubPlan

KEYS = ("inputs", "transforms", "output", "outputs", "vars", "version")


def sub_plan(kind: str, node: Node, read: Callable[[str], str] = read_text) -> SubPlan:
    """The steps that a node stands for: a list of steps ("steps"), a plan ("plan"), the YAML text of one ("plan-text"),
    the path of its file ("plan-file"), or a recipe with its variables ("recipe"). Raises PlanError or Refusal."""
    match kind, node:
        case "steps", _:
            return _of(_items(node))
        case "plan", _:
            return _plan(node)
        case "plan-text", Scalar(value=str(text)):
            return _plan(compose(text, f"{node.span} (plan-yaml)"))
        case "recipe", Scalar(value=str(name)) if name:
            return _recipe(name, Map((), node.span), node.span)
        case "recipe", Map(entries=((name, values),)):
            return _recipe(name.text, Map((), name.span) if _is_null(values) else values, name.span)
        case "plan-file", Scalar(value=str(path)) if path:
            return replace(_plan(read_yaml(path, read, node.span)), file=path)
    if kind == "recipe":
        hint = "Write `recipe: {merge-ties: {base: base/, models: [a/, b/], out: out/}}`."
        raise Refusal("value-type", f"expected a recipe and its variables, got {describe(node)}", hint=hint)
    what = "the text of a plan" if kind == "plan-text" else "the path of a plan file"
    raise Refusal("value-type", f"expected {what}, got {describe(node)}", hint="Quote it if it is text.")


def _recipe(name: str, values: Node, span: Span) -> SubPlan:
    """The steps of a recipe with the values that a step gives to its variables."""
    recipe = find_recipe(name, span)
    if not isinstance(values, Map):
        hint = f"Write `recipe: {{{recipe.name}: {{{next(iter(recipe.variables), 'NAME')}: ...}}}}`."
        raise Refusal("value-type", f"expected the variables of '{recipe.name}', got {describe(values)}", hint=hint)
    if unknown := tuple(_unknown_keys(values, recipe.variables, f"the recipe '{recipe.name}'", "variable")):
        raise PlanError(unknown)
    root = merge(recipe.root, Map(((Scalar("vars", "vars", values.span), values),), values.span))
    assert isinstance(root, Map), "two mappings make a mapping"
    return replace(_plan(root, recipe.variables, recipe.name), file=PREFIX + recipe.name, apart=True)


def _of(steps: tuple[Node, ...], alias: str | None = None) -> SubPlan:
    return SubPlan(steps, tuple(map(plain, steps)), alias)


def _items(node: Node | None) -> tuple[Node, ...]:
    """The steps under a key: a list, or one step standing alone."""
    if node is None or _is_null(node):
        return ()
    return node.items if isinstance(node, List) else (node,)


def _is_null(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.value is None


def _plan(node: Node | None, declared: Mapping[str, Variable] = {}, recipe: str = "") -> SubPlan:
    if node is None or _is_null(node):
        return _of(())
    if isinstance(node, List):
        return _of(node.items)
    if not isinstance(node, Map):
        raise Refusal("value-type", f"expected a plan or a list of steps, got {describe(node)}",
                      hint="Write `transforms: [...]`, with `inputs` and `output` where needed.")  # fmt: skip
    filled, problems = with_variables(declare(node), declared=declared, recipe=recipe)
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


def _unknown_keys(node: Map, known: Iterable[str], where: str, word: str = "key") -> Iterator[Diagnostic]:
    for key, _ in node.entries:
        if key.text not in known:
            message = f"{where} has no {word} '{key.text}'.{did_you_mean(key.text, known)}"
            yield Diagnostic("key-unknown", message, key.span, f"Its {word}s: {', '.join(known)}.")


def _loads(inputs: tuple[Node, ...]) -> tuple[list[Node], list[str]]:
    """A load step for each input, and the aliases that they make."""
    if not inputs:
        return [], []
    reader = Endpoints(numbered=True)
    entries = reader.inputs(List(inputs, inputs[0].span))
    _refuse(reader)
    loads = [_step("load", {"path": e.path, "alias": e.alias}, e.span or inputs[0].span) for e in entries]
    loads += [fingerprint_step(e, inputs[0].span) for e in entries if e.fingerprint]
    return loads, [e.alias for e in entries]


def _save(output: Node) -> Node:
    """The save step that an output stands for; its path may begin with `alias::`."""
    given = {key.text: value for key, value in output.entries} if isinstance(output, Map) else {"path": output}
    path = given.get("path")
    if isinstance(path, Scalar) and isinstance(path.value, str) and "::" in path.value:
        alias, _, place = path.value.partition("::")
        given = {"alias": Scalar(alias, alias, path.span), **given, "path": Scalar(place, place, path.span)}
    entries = tuple((Scalar(key, key, value.span), value) for key, value in given.items() if not _is_null(value))
    reader = Endpoints()
    reader.output(Map(entries, output.span) if isinstance(output, Map | Scalar) else output, "output")
    _refuse(reader)
    return Map(((Scalar("save", "save", output.span), Map(entries, output.span)),), output.span)


def _refuse(reader: Endpoints) -> None:
    if reader.problems:
        raise PlanError(reader.problems)


def _step(name: str, payload: dict[str, str], span: Span) -> Node:
    entries = tuple((Scalar(k, k, span), Scalar(v, v, span)) for k, v in payload.items())
    return Map(((Scalar(name, name, span), Map(entries, span)),), span)
