"""Where layout files are: those that come with the package, by name, and anybody's own, by path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path

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


def load_layout(name: str) -> Layout:
    """The layout of a name, or of a path that ends in .yaml. Raises PlanError."""
    if name.endswith(SUFFIXES):
        return _from_file(os.path.expanduser(name))
    known = layout_names()
    if name not in known:
        hint = f"Known: {', '.join(known)}. A layout of your own is named by its path, such as ./mine.yaml."
        raise PlanError(
            [Diagnostic("layout-unknown", f"unknown layout '{name}'.{did_you_mean(name, known)}", hint=hint)]
        )
    return _packaged(name)


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
