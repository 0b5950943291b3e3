"""Plan variables: `${vars.NAME}` anywhere in a plan stands for what the top-level `vars:` says, `${env.NAME}` for a
variable of the environment. `${oc.env:NAME}` and `${oc.env:NAME,DEFAULT}`, which the reference takes, mean the same."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from brainsurgery_jax import reading
from brainsurgery_jax.errors import Diagnostic, Span, did_you_mean, worded
from brainsurgery_jax.plan.declarations import Variable, find_mistakes, find_variable, fit
from brainsurgery_jax.plan.paths import KEYS
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, get

_VARIABLE = re.compile(r"\$\{vars\.([A-Za-z_][A-Za-z0-9_]*)\}")
_ENVIRONMENT = re.compile(r"\$\{(?:env\.(\w+)|oc\.env:\s*(\w+)\s*(?:,([^}]*))?)\}")
MAX_FILLED = 10_000_000  # a text of a megabyte, used a thousand times, would fill the memory


def find_variables(root: Node) -> frozenset[str]:
    """The names of all variables that a plan uses."""
    return frozenset(name for text in _texts(root) for name in _VARIABLE.findall(text))


def with_variables(
    root: Map,
    environment: Mapping[str, str] | None = None,
    replaced: Collection[str] = (),
    declared: Mapping[str, Variable] = {},
    recipe: str = "",
) -> tuple[Map, tuple[Diagnostic, ...]]:
    """The plan with its variables filled in, and what is wrong with them.

    A scalar that is a variable and nothing else takes its value as it is (a number stays a number); inside longer text
    its text is put in. Only scalars can be variables. Those of the environment are texts, filled in first, also in the
    values under `vars`. `declared`: the declarations that values replaced; one that is still under `vars` gives its
    default. `recipe`: the name under which a step gives the values.
    """
    unset: list[Diagnostic] = []
    filled = _from_environment(root, reading.environment() if environment is None else environment, unset)
    assert isinstance(filled, Map)
    made, problems = _with_vars(filled, replaced, declared, recipe)
    return made, (*unset, *problems)


def find_unfilled(root: Map) -> Iterator[Span]:
    """The places of all values in which a variable is left."""
    return (node.span for node in _scalars(root) if isinstance(node.value, str) and "${vars." in node.value)


def _from_environment(node: Node, environment: Mapping[str, str], problems: list[Diagnostic]) -> Node:
    match node:
        case Map(entries):
            return replace(node, entries=tuple((k, _from_environment(v, environment, problems)) for k, v in entries))
        case List(items):
            return replace(node, items=tuple(_from_environment(i, environment, problems) for i in items))
        case Scalar(value=str(text)) if "${env." in text or "${oc.env:" in text:
            put = _ENVIRONMENT.sub(lambda m: _environment_value(m, node.span, environment, problems), text)
            return replace(node, value=put, text=put, reference=text)
    return node


def _environment_value(
    found: re.Match[str], span: Span, environment: Mapping[str, str], problems: list[Diagnostic]
) -> str:
    name, default = found[1] or found[2], found[3]
    if name in environment:
        return environment[name]
    if default is not None:
        return default.strip()
    message = f"the environment has no variable '{name}'.{did_you_mean(name, environment)}"
    way = worded(shell=f"{name}=... brainsurgery-jax ...", python=f"os.environ[{name!r}] = ...")
    hint = f"Set it, as in `{way}`, or write a variable of the plan, ${{vars.NAME}}."
    problems.append(Diagnostic("env-unknown", message, span, hint))
    return found[0]


def _with_vars(
    root: Map, replaced: Collection[str], declared: Mapping[str, Variable], recipe: str
) -> tuple[Map, tuple[Diagnostic, ...]]:
    table = get(root, "vars")
    if isinstance(table, Scalar | List):
        hint = "Write `vars: {rank: 8}`; a value is a text, a number, true or false."
        return root, (Diagnostic("vars-form", "vars: expected a mapping of names to single values", table.span, hint),)
    if table and (lists := tuple(_find_lists(table, declared))):
        return root, lists
    problems: list[Diagnostic] = []
    used = find_variables(root)
    values = _values(table, declared, problems) if table else {}
    sizes = {name: sum(len(scalar.text) for scalar in _scalars(value)) for name, value in values.items() if value}
    if sum(sizes.get(name, 0) for text in _texts(root) for name in _VARIABLE.findall(text)) > MAX_FILLED:
        message = f"vars: after substitution they have more than {MAX_FILLED:,} characters"
        hint = "Use long texts less often, or write them where they are used."
        return replace(root, entries=()), (Diagnostic("yaml-too-large", message, table.span if table else None, hint),)
    if table:
        problems += _find_missing(table, used, recipe)
        problems += _find_unused(table, root, used, replaced)
    entries = tuple((k, v if k.text == "vars" else _fill(v, values, problems)) for k, v in root.entries)
    return replace(root, entries=entries), tuple(problems)


def _find_lists(table: Map, declared: Mapping[str, Variable]) -> Iterator[Diagnostic]:
    """Return the diagnostics of variables with a list for a value, which only paths may be."""
    for key, node in table.entries:
        variable = declared.get(key.text)
        if not isinstance(node, List) or (variable is not None and variable.takes_list):
            continue
        expected = "a single value" if variable is None else variable
        hint = f"Write `{key.text}: ...` with a single value."
        if variable is None or variable.is_text:
            hint += f" A text in brackets, such as a pattern, stands in quotes: `{key.text}: '[12]'`."
        yield Diagnostic("vars-form", f"vars.{key.text}: expected {expected}, got a list", node.span, hint)


def _values(
    table: Map, declared: Mapping[str, Variable], problems: list[Diagnostic]
) -> dict[str, Scalar | List | None]:
    """The value of each variable; None for one that has no value, or none that fits, so that more would be told of a
    plan without it."""
    found: dict[str, Scalar | List | None] = {}
    for key, node in table.entries:
        if isinstance(node, Map):
            problems += find_mistakes(key, node)
            variable = find_variable(key, node)
            value = None if variable is None else variable.default
        else:
            value, variable = node, declared.get(key.text)
        fitting = value if value is None or variable is None else fit(value, variable)
        if isinstance(fitting, Diagnostic):
            problems.append(fitting)
        found[key.text] = None if isinstance(fitting, Diagnostic) else fitting
    return found


def _find_missing(table: Map, used: Collection[str], recipe: str) -> Iterator[Diagnostic]:
    """Return the diagnostics of variables that are used and have no value."""
    for key, node in table.entries:
        variable = find_variable(key, node)
        if variable is not None and variable.default is None and key.text in used:
            message = f"vars: '{key.text}' has no value; it is {variable}"
            override = f"vars.{key.text}" if key.text in KEYS else key.text
            given = worded(
                shell=f"on the command line: `{override}=...`", python=f"as a keyword: `load(..., {key.text}=...)`"
            )
            within = f"below the name of the recipe: `recipe: {{{recipe}: {{{key.text}: ...}}}}`"
            yield Diagnostic("vars-missing", message, key.span, f"Give it {within if recipe else given}.")


def _find_unused(table: Map, root: Map, used: Collection[str], replaced: Collection[str]) -> Iterator[Diagnostic]:
    """Return the diagnostics of unused variables."""
    names = {key.text for key, _ in table.entries}
    alone = {text for text in _texts(root) if text.startswith("${")}
    for key, _ in table.entries:
        if key.text in used or f"${{{key.text}}}" in alone:  # the latter is told where a value is expected
            continue
        if key.text in replaced:
            message = f"vars: '{key.text}' has no effect: what used it was replaced by an override or a later file"
            yield Diagnostic("vars-unused", message, key.span, severity="note")
        elif not did_you_mean(key.text, set(used) - names):  # else the misspelling tells it all
            hint = "Use it in the plan as ${vars." + key.text + "}, or remove it."
            head = "" if key.span.file.startswith("keyword ") else "vars: "
            message = f"{head}'{key.text}' is used nowhere in the plan.{did_you_mean(key.text, used)}"
            yield Diagnostic("vars-unused", message, key.span, hint)


def _texts(node: Node) -> Iterator[str]:
    """Every text of a plan that may use a variable."""
    return (scalar.value for scalar in _scalars(node) if isinstance(scalar.value, str))


def _scalars(node: Node) -> Iterator[Scalar]:
    match node:
        case Map(entries):
            for _, value in entries:
                yield from _scalars(value)
        case List(items):
            for item in items:
                yield from _scalars(item)
        case Scalar():
            yield node


def _fill(node: Node, values: Mapping[str, Scalar | List | None], problems: list[Diagnostic]) -> Node:
    match node:
        case Map(entries):
            return replace(node, entries=tuple((k, _fill(v, values, problems)) for k, v in entries))
        case List(items):
            return replace(node, items=tuple(made for i in items for made in _fill_item(i, values, problems)))
        case Scalar(value=str(text)) if "${vars." in text:
            return _scalar(node, text, values, problems)
    return node


def _fill_item(node: Node, values: Mapping[str, Scalar | List | None], problems: list[Diagnostic]) -> tuple[Node, ...]:
    """What stands for an item of a list: the items of a variable that is a list itself."""
    alone = _VARIABLE.fullmatch(node.value) if isinstance(node, Scalar) and isinstance(node.value, str) else None
    value = None if alone is None else values.get(alone[1])
    if isinstance(value, List):
        return tuple(replace(item, span=node.span) for item in value.items)
    return (_fill(node, values, problems),)


def _scalar(node: Scalar, text: str, values: Mapping[str, Scalar | List | None], problems: list[Diagnostic]) -> Scalar:
    known: dict[str, Scalar] = {}
    for name in _VARIABLE.findall(text):
        if name not in values:
            given = worded(
                shell=f"on the command line: `vars.{name}=...`", python=f"as a keyword: `load(..., {name}=...)`"
            )
            hint = f"Add it under `vars:`, or {given}."
            problems.append(
                Diagnostic("vars-unknown", f"unknown variable '{name}'.{did_you_mean(name, values)}", node.span, hint)
            )
            return node
        if (value := values[name]) is None:  # told already
            return node
        if isinstance(value, List):
            message = f"'{name}' is a list of paths, which can only be an item of its own in a list"
            problems.append(Diagnostic("vars-form", message, node.span))
            return node
        known[name] = value
    if (alone := _VARIABLE.fullmatch(text)) is not None:
        return replace(known[alone[1]], span=node.span)
    put = _VARIABLE.sub(lambda m: known[m[1]].text, text)
    kept = _VARIABLE.sub(lambda m: known[m[1]].reference or known[m[1]].text, node.reference or text)
    return replace(node, value=put, text=put, reference=None if kept == put else kept)
