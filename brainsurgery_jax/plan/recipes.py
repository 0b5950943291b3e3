"""The recipes: plans that are installed with the package, each a file of the folder `plans`, run by their names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.errors import Diagnostic, PlanError, Span, did_you_mean, worded
from brainsurgery_jax.packaged import find_packaged_folder
from brainsurgery_jax.plan.declarations import Variable, comment_of, declare, is_help, variables_of
from brainsurgery_jax.plan.source import Map, compose

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

PREFIX = "recipe:"
"""How a plan that is a recipe is named where plan files are: `recipe:merge-ties`."""
_SUFFIX = ".yaml"


class PlanRecipe(NamedTuple):
    """A plan of the package. `about`: the comment at its top without the help of its variables, in Markdown; `text`:
    the whole file; `root`: what it holds, its variables declared."""

    name: str
    about: tuple[str, ...]
    variables: Mapping[str, Variable]
    text: str
    root: Map

    @property
    def summary(self) -> str:
        """What it does, in a sentence or two: the first paragraph."""
        lines = self.about[: self.about.index("")] if "" in self.about else self.about
        return " ".join(lines)

    @property
    def plan(self) -> str:
        """The plan without the comment at its top."""
        return "".join(self.text.splitlines(keepends=True)[len(comment_of(self.text)) :])


def recipe_names() -> tuple[str, ...]:
    """The names of all recipes, sorted."""
    return tuple(_files())


def is_recipe(item: str) -> bool:
    """Whether an item of a command line names a recipe."""
    return item.startswith(PREFIX)


def find_recipe(name: str, span: Span | None = None) -> PlanRecipe:
    """The recipe of that name, with dashes or underscores. Raises PlanError; `span` is where a plan names it."""
    found = name.replace("_", "-")
    if found not in _files():
        raise PlanError([_unknown(found, span)])
    return _read(found)


@cache
def _read(name: str) -> PlanRecipe:
    text = _files()[name].read_text(encoding="utf-8")
    root = compose(text, PREFIX + name)
    assert isinstance(root, Map), "a recipe is a plan"
    root = declare(root, text)
    return PlanRecipe(name, _about(text), variables_of(root), text, root)


def _about(text: str) -> tuple[str, ...]:
    """The comment at the top without its marks and without the list of variables."""
    lines: list[str] = []
    within = False
    for line in comment_of(text):
        within = is_help(line) or (within and line.startswith("#   "))
        if not within and (lines or line != "#") and not (line == "#" and lines[-1:] == [""]):
            lines.append(line[1:].removeprefix(" "))
    return tuple(lines[:-1] if lines[-1:] == [""] else lines)


@cache
def _files() -> Mapping[str, Traversable]:
    """The file of each recipe."""
    found = (
        (entry.name, entry)
        for entry in find_packaged_folder("recipes", "plans").iterdir()
        if entry.name.endswith(_SUFFIX)
    )
    return {name.removesuffix(_SUFFIX).replace("_", "-"): entry for name, entry in sorted(found)}


def _unknown(name: str, span: Span | None) -> Diagnostic:
    near = did_you_mean(name, recipe_names())
    listing = worded(shell="`brainsurgery-jax recipes`", python="`brainsurgery-jax recipes` in a shell")
    return Diagnostic("recipe-unknown", f"there is no recipe '{name}'.{near}", span, f"{listing} lists them all.")
