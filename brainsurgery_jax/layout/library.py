"""Where layout files are: those that come with the package, by name, and anybody's own, by path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from brainsurgery_jax.errors import Diagnostic, PlanError, did_you_mean
from brainsurgery_jax.layout.model import Layout
from brainsurgery_jax.layout.parse import parse_layout

SUFFIXES = (".yaml", ".yml")


def _folder() -> Traversable:
    """The installed `converters`; in a source tree that is not installed, the folder beside the package."""
    if find_spec("brainsurgery_jax.converters") is not None:
        return files("brainsurgery_jax.converters")
    return Path(__file__).parents[2] / "converters"


def layout_names() -> tuple[str, ...]:
    """The layouts that come with the package, sorted."""
    return tuple(sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml")))


def family_names() -> tuple[str, ...]:
    """The libraries that there are layouts for, by the first words of the layouts' names."""
    return tuple(dict.fromkeys(name.partition("-")[0] for name in layout_names()))


def load_layout(name: str) -> Layout:
    """The layout of a name, or of a path that ends in .yaml. Raises PlanError."""
    if name.endswith(SUFFIXES):
        return _from_file(os.path.expanduser(name))
    if name not in layout_names():
        raise unknown_layout(name)
    return _packaged(name)


def unknown_layout(name: str, *others: str) -> PlanError:
    """That there is no such layout, and what may have been meant; `others` are words that would do as well."""
    hint = (
        f"Known: {', '.join(layout_names())}; the first word of a name takes the one for the model. "
        "A layout of your own is named by its path, such as ./mine.yaml."
    )
    near = did_you_mean(name, [*layout_names(), *family_names(), *others])
    return PlanError([Diagnostic("layout-unknown", f"unknown layout '{name}'.{near}", hint=hint)])


def layouts_of(name: str) -> tuple[Layout, ...]:
    """The layout of a name or path, or all those of a library. Raises PlanError."""
    if name in layout_names() or name.endswith(SUFFIXES):
        return (load_layout(name),)
    found = tuple(_packaged(n) for n in layout_names() if n.partition("-")[0] == name)
    if not found:
        raise unknown_layout(name)
    return found


def layout_for(name: str, config: Mapping[str, Any] | None) -> Layout:
    """The layout of a name or path, or that of a library for the model that a config.json names. Raises PlanError."""
    family = layouts_of(name)
    if len(family) == 1:
        return family[0]
    model = (config or {}).get("model_type")
    fitting = [layout for layout in family if model in layout.models]
    if len(fitting) == 1:
        return fitting[0]
    which = "more than one" if fitting else "no"
    hint = f"There are: {', '.join(f'{each.name} for {each.models_told}' for each in family)}."
    if not fitting:
        hint += f" For any model: {', '.join(each.name for each in layouts() if not each.models)}."
    found = f"{which} layout of '{name}' is for {told_model(model)}"
    raise PlanError([Diagnostic("convert-layout", found, hint=hint)])


def told_model(model: Any) -> str:
    """A model_type as messages tell it."""
    return f"model_type '{model}'" if model else "no model_type"


@lru_cache(maxsize=256)
def _packaged(name: str) -> Layout:
    text = _folder().joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return _named(parse_layout(text, f"converters/{name}.yaml"), name)


def _from_file(path: str) -> Layout:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        problem = f"the layout '{path}' cannot be read: {error.strerror}"
        raise PlanError([Diagnostic("layout-unknown", problem, hint="Give the path of a YAML file.")]) from error
    except UnicodeDecodeError as error:
        raise PlanError([Diagnostic("layout-unknown", f"the layout '{path}' is no text in UTF-8")]) from error
    return replace(parse_layout(text, path), file=path)


def _named(layout: Layout, name: str) -> Layout:
    if layout.name != name:
        found = f"the file is called {name}.yaml, and the layout in it '{layout.name}'"
        raise PlanError([Diagnostic("layout-form", found, layout.span, f"Write `layout: {name}`.")])
    return layout


def layouts() -> Iterator[Layout]:
    """Every layout that comes with the package. Raises PlanError for the first that is wrong."""
    return map(_packaged, layout_names())
