"""Layout files: those of the package, by name, and those of users, by path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from brainsurgery_jax.errors import Diagnostic, PlanError, did_you_mean
from brainsurgery_jax.layout.expressions import Config
from brainsurgery_jax.layout.model import Layout
from brainsurgery_jax.layout.parse import parse_layout
from brainsurgery_jax.packaged import find_packaged_folder
from brainsurgery_jax.reading import check_read
from brainsurgery_jax.regular_files import read_regular

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

SUFFIXES = (".yaml", ".yml")


def _folder() -> Traversable:
    return find_packaged_folder("converters", "converters")


def layout_names() -> tuple[str, ...]:
    """The names of the layouts in the package, sorted."""
    return tuple(sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml")))


def family_names() -> tuple[str, ...]:
    """The libraries that have layouts: the first words of the layouts' names."""
    return tuple(dict.fromkeys(name.partition("-")[0] for name in layout_names()))


def load_layout(name: str) -> Layout:
    """The layout with a name, or at a path that ends in .yaml. Raises PlanError."""
    if name.endswith(SUFFIXES):
        return _from_file(os.path.expanduser(name))
    if name not in layout_names():
        raise unknown_layout(name)
    return _load_packaged(name)


def unknown_layout(name: str, *others: str) -> PlanError:
    """The error for an unknown layout, with suggestions. `others`: further words that would be valid."""
    hint = (
        f"Known: {', '.join(layout_names())}; the first word of a name takes the one for the model. "
        "Give a layout of your own by its path, such as ./mine.yaml."
    )
    near = did_you_mean(name, [*layout_names(), *family_names(), *others])
    return PlanError([Diagnostic("layout-unknown", f"unknown layout '{name}'.{near}", hint=hint)])


def layouts_of(name: str) -> tuple[Layout, ...]:
    """The layout with a name or path, or all layouts of a library. Raises PlanError."""
    if name in layout_names() or name.endswith(SUFFIXES):
        return (load_layout(name),)
    found = tuple(_load_packaged(n) for n in layout_names() if n.partition("-")[0] == name)
    if not found:
        raise unknown_layout(name)
    return found


def layout_for(name: str, config: Config | None) -> Layout:
    """The layout with a name or path, or a library's layout for the model that config.json names. Raises PlanError."""
    family = layouts_of(name)
    if len(family) == 1:
        return family[0]
    model = (config or {}).get("model_type")
    fitting = [layout for layout in family if model in layout.models]
    if len(fitting) == 1:
        return fitting[0]
    which = "more than one" if fitting else "no"
    hint = f"There are: {', '.join(f'{each.name} for {each.model_list}' for each in family)}."
    if not fitting:
        hint += f" For any model: {', '.join(each.name for each in layouts() if not each.models)}."
    found = f"{which} layout of '{name}' is for {describe_model(model)}"
    raise PlanError([Diagnostic("convert-layout", found, hint=hint)])


def describe_model(model: object) -> str:
    """A model_type, for messages."""
    return f"model_type '{model}'" if model else "no model_type"


@lru_cache(maxsize=256)
def _load_packaged(name: str) -> Layout:
    text = _folder().joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return _check_name(parse_layout(text, f"converters/{name}.yaml"), name)


def _from_file(path: str) -> Layout:
    check_read(path)
    try:
        text = read_regular(path).decode()
    except OSError as error:
        problem = f"the layout '{path}' cannot be read: {error.strerror}"
        raise PlanError([Diagnostic("layout-unknown", problem, hint="Give the path of a YAML file.")]) from error
    except UnicodeDecodeError as error:
        raise PlanError([Diagnostic("layout-unknown", f"the layout '{path}' is not UTF-8 text")]) from error
    return replace(parse_layout(text, path), file=path)


def _check_name(layout: Layout, name: str) -> Layout:
    if layout.name != name:
        found = f"the file is named {name}.yaml, but the layout in it '{layout.name}'"
        raise PlanError([Diagnostic("layout-form", found, layout.span, f"Write `layout: {name}`.")])
    return layout


def layouts() -> Iterator[Layout]:
    """Every layout of the package. Raises PlanError for the first one with mistakes."""
    return map(_load_packaged, layout_names())
