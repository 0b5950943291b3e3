"""What a shell may complete: plan files, recipes, override keys and values, ops, layouts, tensors. Never loads JAX.

typer writes the scripts for bash, zsh and fish (`--install-completion`, `--show-completion`); they call the command
with the line so far, and get words back. Where nothing comes back, the shell completes paths by itself; so checkpoints,
which have many suffixes and may be folders, are left to it. bash cuts words at `=` and `:`, and wants what follows
alone there.

A shell sets a space behind the only word that fits. Where a line goes on (`seed=`, a folder), there are therefore never
fewer than two words: the key alone, and with the value that the plan has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Words = list[tuple[str, str]]
"""Words, each with a few words about it, which may be empty."""

PLANS = (".yaml", ".yml")
_RECIPE = "recipe:"
REST = "rest of the line"
"""Under this the parameters hold the words that could not be assigned yet, since an option waits for its value."""
_MANY = 40
"""More than this are cut to what tells them apart next."""
_SAFE = re.compile(r"[\w./:@%+,~=\[\]-]+")
"""What no shell reads as anything but itself."""
_VARIABLE = re.compile(r"\$\{vars\.(\w+)\}")


def complete(what: str, params: Mapping[str, object], incomplete: str) -> Words:
    """The words for one argument of the command; `params` are those that come before it.

    A shell cannot make use of any error: then there are none.
    """
    try:
        found = _KINDS[what](params, incomplete)
        return [(word, note) for word, note in found if word.startswith(incomplete) and _SAFE.fullmatch(word)]
    except (Exception, SystemExit):
        return []


# --- Paths ------------------------------------------------------------------------------------------------------------


def paths(incomplete: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """The files with one of these suffixes, and the folders, whose path starts as typed. A folder that is alone is
    opened, as long as there is something in it."""
    found = sorted(_beside(incomplete, suffixes))
    opens = len(found) == 1 and found[0].endswith("/") and found[0] != incomplete
    yield from paths(found[0], suffixes) if opens else found


def _beside(incomplete: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    folder, start = os.path.split(incomplete)
    with os.scandir(os.path.expanduser(folder or ".")) as entries:
        for entry in entries:
            if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
                continue
            path = os.path.join(folder, entry.name)
            if entry.is_dir():
                yield f"{path}/"
            elif entry.name.lower().endswith(suffixes):
                yield path


def _files(*suffixes: str) -> Callable[[Mapping[str, object], str], Words]:
    return lambda params, incomplete: [(path, "") for path in paths(incomplete, suffixes)]


def _first_word(params: Mapping[str, object], incomplete: str) -> Words:
    """Plans in place of a command. Before anything is typed only those that lie here; recipes once they are named."""
    if incomplete.startswith(_RECIPE):
        return _recipe_words(incomplete)
    found = paths(incomplete, PLANS)
    return [(path, "run this plan") for path in found if incomplete or not path.endswith("/")]


# --- Recipes ----------------------------------------------------------------------------------------------------------


def _recipes(params: Mapping[str, object], incomplete: str) -> Words:
    from brainsurgery_jax.plan.recipes import find_recipe, recipe_names

    return [(name, find_recipe(name).summary) for name in recipe_names()]


def _recipe_words(incomplete: str) -> Words:
    """The recipes as plans are named; before the colon is typed, that there are such."""
    if not incomplete.startswith(_RECIPE):
        return [(_RECIPE, "a plan of the package"), (f"{_RECIPE}...", "")] if _RECIPE.startswith(incomplete) else []
    return [(f"{_RECIPE}{name}", note) for name, note in _recipes({}, incomplete)]


def _join_recipes(items: list[str]) -> list[str]:
    """The words of a line as they were typed, recipes in one piece where bash cut them at the colon."""
    joined: list[str] = []
    for item in items:
        whole = joined and (joined[-1] == _RECIPE or (joined[-1] == _RECIPE[:-1] and item == ":"))
        joined[-1:] = [joined[-1] + item] if whole else [*joined[-1:], item]
    return joined


# --- Overrides --------------------------------------------------------------------------------------------------------


def _items(params: Mapping[str, Any], incomplete: str) -> Words:
    """Plan files and overrides of those that stand on the line already."""
    items = _join_recipes(list(params.get("items") or ()))
    if items and items[-1] == _RECIPE:  # bash, behind the `:`
        return _recipes(params, incomplete)
    plans = [item for at, item in enumerate(items) if _is_plan(item) and items[at - 1 : at] != ["="]]
    key, mark, _ = incomplete.partition("=")
    if mark:
        return [(f"{key}={value}", "") for value in _values(plans, key)]
    if items and (items[-1] == "=" or "=" not in items[-1]) and items[-1] not in plans:  # bash, behind the `=`
        key = items[-2] if items[-1] == "=" and len(items) > 1 else items[-1]
        return [(value, "") for value in _values(plans, key)]
    files = [(path, "") for path in paths(incomplete, PLANS) if path not in plans]
    recipes = [] if plans and not incomplete else _recipe_words(incomplete)
    return [*_keys(plans, incomplete), *files, *recipes]


def _is_plan(item: str) -> bool:
    return item.endswith(PLANS) or item.startswith(_RECIPE)


def _keys(plans: list[str], incomplete: str) -> Words:
    known = {key: text for key, text in overrides(plans).items() if key.startswith(incomplete)}
    if len(short := shorten(known, incomplete)) < len(known):
        return [(key if key.endswith(".") else f"{key}=", "") for key in short]
    words = [(f"{key}=", text if _SAFE.fullmatch(text) else "") for key, text in known.items()]
    return words if len(words) > 1 else [*words, *((f"{key}={text}", "") for key, text in known.items() if text)]


def _values(plans: list[str], key: str) -> Iterable[str]:
    text = overrides(plans).get(key, "")
    return ("true", "false") if text in ("true", "false") else (text,) if text else ()


def overrides(plans: Iterable[str]) -> dict[str, str]:
    """The path of every single value that the plans hold, or that they have a use for, and its text."""
    from brainsurgery_jax.plan.overrides import read_plan_files

    merged = read_plan_files(list(plans))
    declared = {f"vars.{name}": variable for name, variable in merged.declared.items()}
    leaves = dict(_leaves(merged.root, ""))
    short = {v.name: "" if v.default is None else v.default.text for v in declared.values()}
    found = short | {path: text for path, text in leaves.items() if path.rpartition(".")[0] not in declared}
    top = ("seed", "output") if plans else ()
    used = (f"vars.{name}" for text in list(found.values()) for name in _VARIABLE.findall(text))
    for key in (*used, *top):
        if key not in declared and not any(path == key or path.startswith((f"{key}.", f"{key}[")) for path in found):
            found[key] = ""
    return found


def _leaves(node: object, path: str) -> Iterator[tuple[str, str]]:
    from brainsurgery_jax.plan.source import List, Map, Scalar

    match node:
        case Scalar():
            yield path, node.text
        case List():
            for at, item in enumerate(node.items):
                yield from _leaves(item, f"{path}[{at}]")
        case Map():
            for key, value in node.entries:
                if re.fullmatch(r"[^.\s\[\]=]+", key.text):  # what a path can spell
                    yield from _leaves(value, f"{path}.{key.text}" if path else key.text)


def shorten(words: Iterable[str], incomplete: str) -> list[str]:
    """The words; of very many, what they have up to the next dot, or the one after it if that is the same for all."""
    listed = list(words)
    short, typed = listed, incomplete
    while len(listed) > _MANY:
        short = list(dict.fromkeys(_cut(word, len(typed)) for word in listed))
        if len(short) > 1 or short[0] == typed:
            break
        typed = short[0]
    return short


def _cut(word: str, start: int) -> str:
    dot = word.find(".", start)
    return word if dot < 0 else word[: dot + 1]


# --- What the package knows -------------------------------------------------------------------------------------------


def _ops(params: Mapping[str, Any], incomplete: str) -> Words:
    import brainsurgery_jax.ops  # noqa: F401  (says which ops there are)
    from brainsurgery_jax import plugins
    from brainsurgery_jax.op import ASSERTS, OPS

    plugins.register(*(params.get("ops") or ()))
    plugins.look_up()
    known = {**OPS, **{f"assert.{name}": op for name, op in ASSERTS.items()}}
    return [(name, op.doc.splitlines()[0]) for name, op in sorted(known.items())]


def _layouts(params: Mapping[str, object], incomplete: str) -> Words:
    names = _layout_names()
    libraries = sorted({name.partition("-")[0] for name in names} - set(names))
    return [(name, "") for name in ("none", *libraries, *names)]


def _layout_words(params: Mapping[str, object], incomplete: str) -> Words:
    words = params.get("words") or ()
    return [*([] if words else [("check", "verify one or all")]), *((name, "") for name in _layout_names())]


def _layout_names() -> tuple[str, ...]:
    from brainsurgery_jax.layout.library import layout_names

    return layout_names()


def _formats(params: Mapping[str, object], incomplete: str) -> Words:
    from brainsurgery_jax.store.formats import NAMES

    return [(name, "") for name in NAMES]


def _dtypes(params: Mapping[str, object], incomplete: str) -> Words:
    from brainsurgery_jax.dtypes import DTYPES

    return [(dtype.name, "") for dtype in DTYPES if dtype.numpy]


def _tensors(params: Mapping[str, Any], incomplete: str) -> Words:
    from brainsurgery_jax.store.address import parse_address
    from brainsurgery_jax.store.detect import open_source

    path = next(iter([*filter(None, [params.get("checkpoint"), params.get("left")]), *params.get(REST, ())]), None)
    if path is None or not os.path.exists(parse_address(path).path):
        return []
    tensors = open_source(path).header.tensors
    known = [name for name in tensors if name.startswith(incomplete)]
    return [(name, str(tensors[name].aval) if name in tensors else "") for name in shorten(known, incomplete)]


_KINDS: Mapping[str, Callable[[Mapping[str, object], str], Words]] = {
    "first word": _first_word,
    "items": _items,
    "plan": _files(*PLANS),
    "python": _files(".py"),
    "op": _ops,
    "recipe": _recipes,
    "layout": _layouts,
    "layouts": _layout_words,
    "format": _formats,
    "dtype": _dtypes,
    "tensor": _tensors,
}
