"""The plan that a command line names: its YAML files, deep-merged in order, then its `path=value` overrides.

Unlike in the reference, overrides come after all files wherever they stand, and their values are YAML: `rank=8` is a
number. An unquoted value is a text to its end, so `to=a: b`, `target=*.weight` and `x=a #1` need no quotes for YAML.
For a variable of type text or path brackets are text, too: `small=[12]`.
An override puts its value in place of what was there: `x=[1]` makes a list of one item, whatever the files say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from brainsurgery_jax.errors import Diagnostic, PlanError, Span, did_you_mean
from brainsurgery_jax.plan.declarations import Variable, declare, variables_of
from brainsurgery_jax.plan.paths import KEYS, PathStep, parse_path, put
from brainsurgery_jax.plan.recipes import PREFIX, find_recipe, is_recipe, recipe_names
from brainsurgery_jax.plan.scalars import read_scalar
from brainsurgery_jax.plan.source import List, Map, Node, Scalar, compose, describe, get
from brainsurgery_jax.plan.variables import find_variables
from brainsurgery_jax.reading import check_read
from brainsurgery_jax.regular_files import open_regular

MAX_BYTES = 64 << 20  # a checkpoint given as a plan, or a device, would fill the memory


def read_text(path: str) -> str:
    """The text of a UTF-8 file, with line ends as they are; `~` is the home directory."""
    check_read(path)
    with open_regular(os.path.expanduser(path)) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes, too many for a plan")
    return data.decode("utf-8")


class Merged(NamedTuple):
    """The one mapping that plan files, composed plans and overrides make.

    `notes`: what is no mistake, but may surprise, as steps of several files that became one. `variables`: those that
    some plan used, before anything replaced it. `declared`: those that some plan declared.
    """

    root: Map
    notes: tuple[Diagnostic, ...]
    variables: frozenset[str]
    declared: Mapping[str, Variable]


def read_plan_files(items: Sequence[str | Map], read: Callable[[str], str] = read_text) -> Merged:
    """What plan files, composed plans and overrides make. Raises one PlanError with every mistake."""
    problems: list[Diagnostic] = []
    roots: list[Map] = []
    assigned: list[str] = []
    for item in items:
        try:
            if isinstance(item, Map):
                roots.append(declare(item))
            elif is_recipe(item):
                roots.append(find_recipe(item.removeprefix(PREFIX)).root)
            elif is_plan_file(item):
                roots.append(_read_plan(item, read))
            else:
                assigned.append(item)
        except PlanError as error:
            problems += error.diagnostics
    notes: list[Diagnostic] = []
    plan = _merge_all(roots, notes)
    declared = {name: variable for root in roots for name, variable in variables_of(root).items()}
    overrides: list[_Override] = []
    for item in assigned:
        try:
            overrides.append(_parse(item, plan, declared))
        except PlanError as error:
            problems += error.diagnostics
    if not problems:  # where a file is missing, an override that does not fit would be a mistake too many
        plan = _apply_all(plan, overrides, problems)
    if problems:
        raise PlanError(problems)
    return Merged(plan, tuple(notes), frozenset().union(*map(find_variables, roots)), declared)


def _read_plan(path: str, read: Callable[[str], str]) -> Map:
    """The plan in a file, its variables declared."""
    text = read_plan_text(path, read)
    return declare(_root(compose(text, path), path), text)


def read_yaml(
    path: str,
    read: Callable[[str], str] = read_text,
    span: Span | None = None,
    *,
    repeatable: Callable[[str], bool] = lambda key: False,
) -> Node | None:
    """The tree of a YAML file, or None if it is empty. `span` is where a plan names the file, if one does; for
    `repeatable` see `compose`."""
    return compose(read_plan_text(path, read, span), path, repeatable=repeatable)


def read_plan_text(path: str, read: Callable[[str], str] = read_text, span: Span | None = None) -> str:
    """The text of a YAML file. `span` is where a plan names it, if one does. Raises PlanError."""
    try:
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise PlanError([_missing(path, span)]) from None
    except UnicodeDecodeError as error:
        message = f"the plan file '{path}' is not UTF-8 text: {error.reason} at byte {error.start}"
        raise PlanError([Diagnostic("plan-file-unreadable", message, span, "Save it as UTF-8.")]) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise PlanError(
            [Diagnostic("plan-file-unreadable", f"the plan file '{path}' cannot be read: {reason}", span)]
        ) from error


def merge(base: Node, later: Node) -> Node:
    """Two nodes as one: mappings by key, lists by index where a null keeps the earlier item; else `later` wins."""
    match base, later:
        case Map(), Map():
            return _merge_maps(base, later)
        case List(), List():
            items = (_merge_items(a, b) for a, b in zip_longest(base.items, later.items))
            return List(tuple(items), (base if base.items else later).span)
        case _:
            return later


def _merge_maps(base: Map, later: Map) -> Map:
    if not base.entries:
        return later
    entries = {key.text: (key, value) for key, value in base.entries}
    for key, value in later.entries:
        before = entries.get(key.text)
        entries[key.text] = (key, value if before is None else merge(before[1], value))
    return Map(tuple(entries.values()), base.span)


def _merge_items(base: Node | None, later: Node | None) -> Node:
    if base is None or later is None:
        only = later if base is None else base
        assert only is not None, "one of two lists is long enough"
        return only
    return base if _is_null(later) else merge(base, later)


def _merge_all(roots: Iterable[Map], notes: list[Diagnostic]) -> Map:
    plan = Map((), Span("command line"))
    for root in roots:
        notes += _warn_of_merged_steps(get(plan, "transforms"), get(root, "transforms"))
        plan = _merge_maps(plan, root)
    return plan


def _warn_of_merged_steps(base: Node | None, later: Node | None) -> Iterator[Diagnostic]:
    hint = (
        "Lists of several plan files are merged item by item; a later file does not append its steps. To append them, "
        "begin its list with a `null` for each earlier step."
    )
    if isinstance(base, List) and isinstance(later, List):
        for old, new in zip(base.items, later.items, strict=False):
            if not _is_null(old) and not _is_null(new):
                yield Diagnostic("steps-merged", f"this step and that of {old.span} become one", new.span, hint, "note")


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None


def is_plan_file(item: str) -> bool:
    """Whether an item of a command line names a plan file; else it is a recipe or an override."""
    return not is_recipe(item) and _is_yaml(item) and ("=" not in item or os.path.isfile(os.path.expanduser(item)))


def _is_yaml(path: str) -> bool:
    return path.lower().endswith((".yaml", ".yml"))


def _root(node: Node | None, path: str) -> Map:
    if node is None or _is_null(node):
        return Map((), Span(path, 1, 1))
    if isinstance(node, Map):
        return node
    message = f"a plan must be a mapping, but this is {describe(node)}"
    hint = "Its top level holds keys such as 'inputs:', 'transforms:' and 'output:'."
    if isinstance(node, List):
        hint += " A list of steps goes under 'transforms:'."
    raise PlanError([Diagnostic("plan-not-a-mapping", message, node.span, hint)])


def _missing(path: str, span: Span | None) -> Diagnostic:
    folder = _folder(path)
    names = _yaml_names(folder)
    if not os.path.isdir(folder):
        hint = f"There is no folder '{folder}'."
    elif names:
        hint = f"Plan files in '{folder}': {', '.join(names[:10])}{', ...' if names[10:] else ''}."
    else:
        hint = f"There is no .yaml or .yml file in '{folder}'."
    return Diagnostic("plan-file-missing", f"the plan file '{path}' does not exist.{_nearest(path)}", span, hint)


def _nearest(path: str) -> str:
    """`" Did you mean 'plans/merge.yaml'?"` for the recipe of that name, or for the YAML file beside it that is named
    most like it, or nothing."""
    if path in recipe_names():
        return f" Did you mean '{PREFIX}{path}'?"
    return did_you_mean(path, (str(Path(path).parent / name) for name in _yaml_names(_folder(path))))


def _folder(path: str) -> Path:
    return Path(os.path.expanduser(path)).parent


def _yaml_names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if _is_yaml(name) and not name.startswith("."))
    except (OSError, ValueError):
        return []


class _Override(NamedTuple):
    path: tuple[PathStep, ...]
    value: Node


def _parse(item: str, plan: Map, declared: Mapping[str, Variable]) -> _Override:
    typed, equals, value = item.partition("=")
    if not equals:
        message = f"'{item}' is neither a plan file (.yaml or .yml) nor an override (path=value).{_nearest(item)}"
        hint = "A plan file ends in .yaml or .yml; an override, without spaces, is like transforms[0].scale.by=2."
        raise PlanError([Diagnostic("plan-item", message, None, hint)])
    name = f"override '{item}'"
    path = _of_variable(parse_path(typed, name), plan)
    variable = declared.get(str(path[1].at)) if len(path) == 2 and path[0].at == "vars" else None
    return _Override(path, _value(value, name, len(typed) + 1, variable))


def _value(text: str, name: str, col: int, variable: Variable | None) -> Node:
    """A value of the command line: in brackets or quotes it is YAML, else one unquoted scalar whatever it holds. Only
    quotes are YAML for a variable of type text, whose value may be a pattern: `[12]`."""
    bare = text.strip()
    if not bare.startswith(("'", '"') if variable is not None and variable.is_text else ("[", "{", "'", '"')):
        return Scalar(read_scalar(bare), bare, Span(name, 1, col + text.index(bare) + 1))
    try:
        node = compose(" " * col + text, name)  # the spaces make its columns those of the whole override
    except PlanError as error:
        hint = "A value that starts with a bracket or a quote is YAML. To give it as a text, quote it inside the quotes"
        hint += " that the shell takes away: \"path='[a-z]+'\"."
        raise PlanError(replace(problem, hint=hint) for problem in error.diagnostics) from error
    assert node is not None, "a bracket or a quote starts a node"
    return node


def _apply_all(plan: Map, overrides: Iterable[_Override], problems: list[Diagnostic]) -> Map:
    variables: set[str] = set()
    for override in overrides:
        try:
            if override.path[0].at == "vars":
                _refuse_twice(override.path[-1], variables)
            changed = put(plan, override.path, override.value)
        except PlanError as error:
            problems += error.diagnostics
        else:
            assert isinstance(changed, Map), "a path starts with a key"
            plan = changed
    return plan


def _refuse_twice(last: PathStep, variables: set[str]) -> None:
    """Refuse a second value for a variable. `variables`: those that have one by now, by the paths that lead there."""
    if last.path in variables:
        name = last.path.removeprefix("vars.")
        raise PlanError([Diagnostic("override-path", f"'{name}' is given twice", last.span, "Give it once.")])
    variables.add(last.path)


def _of_variable(path: tuple[PathStep, ...], plan: Map) -> tuple[PathStep, ...]:
    """The path of an override; of one key alone that is a variable of the plan and no key of plans, that variable's."""
    table = get(plan, "vars")
    (first, *more) = path
    if more or first.at in KEYS or not isinstance(table, Map) or get(table, str(first.at)) is None:
        return path
    return (PathStep("vars", first.span, "vars"), first._replace(path=f"vars.{first.at}"))
