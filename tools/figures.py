"""Print figures of the code's structure, from its syntax trees alone: `python tools/figures.py [FOLDER...]`.

One row a figure. `make figures` prints them for this checkout; with a worktree of another commit beside it, name both
package folders to compare. Functions are measured without their docstrings; tests are left out.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import mean, median, quantiles
from typing import NamedTuple

LONG_FUNCTION = 40
MANY_PARAMETERS = 7
PARTICIPLES = frozenset(
    [
        "begun",
        "bound",
        "broken",
        "brought",
        "built",
        "bought",
        "caught",
        "chosen",
        "done",
        "drawn",
        "fallen",
        "forgotten",
        "found",
        "given",
        "gone",
        "gotten",
        "grown",
        "held",
        "hidden",
        "kept",
        "known",
        "laid",
        "left",
        "lent",
        "lost",
        "made",
        "meant",
        "met",
        "paid",
        "risen",
        "said",
        "seen",
        "sent",
        "shown",
        "sold",
        "sought",
        "spelt",
        "spent",
        "stolen",
        "struck",
        "swept",
        "taken",
        "taught",
        "thought",
        "thrown",
        "told",
        "torn",
        "understood",
        "won",
        "worn",
        "written",
    ]
)
NO_PARTICIPLES = frozenset(
    ["bleed", "breed", "embed", "exceed", "feed", "need", "proceed", "seed", "shed", "speed", "succeed"]
)
"""Verbs and nouns that end in -ed."""


class Module(NamedTuple):
    """One source file: its dotted name, its text and its syntax tree."""

    name: str
    text: str
    tree: ast.Module


def read_modules(folder: Path) -> list[Module]:
    """The modules below a package folder."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        text = path.read_text(encoding="utf-8")
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, text, ast.parse(text)))
    return found


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(modules: Iterable[Module]) -> list[Function]:
    """Every function and method, nested ones included."""
    return [node for m in modules for node in ast.walk(m.tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def count_parameters(function: Function) -> int:
    """Named parameters, `self` and `cls` left out."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def is_participle(name: str) -> bool:
    """Whether a function's name begins with a past participle, as in `renamed_leaves`."""
    word = name.strip("_").split("_")[0].lower()
    return word in PARTICIPLES or (word.endswith("ed") and len(word) > 3 and word not in NO_PARTICIPLES)


def compares_literal(node: ast.AST) -> bool:
    """Whether `.kind`, `.op` or `.name` is compared with a string literal, or with several."""
    if not isinstance(node, ast.Compare):
        return False
    sides = (node.left, *node.comparators)
    has_attribute = any(isinstance(s, ast.Attribute) and s.attr in ("kind", "op", "name") for s in sides)
    return has_attribute and any(_is_text(s) for s in sides)


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Tuple | ast.Set | ast.List):
        return bool(node.elts) and all(map(_is_text, node.elts))
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def names_any(node: ast.AST) -> bool:
    """Whether an expression is the type `Any`."""
    return isinstance(node, ast.Name) and node.id == "Any"


def repeated_classes(modules: Iterable[Module]) -> list[str]:
    """Names of classes that are defined at the top of two or more modules."""
    names = Counter(node.name for m in modules for node in m.tree.body if isinstance(node, ast.ClassDef))
    return sorted(name for name, times in names.items() if times > 1)


def imports(modules: Iterable[Module]) -> dict[str, set[str]]:
    """Which modules each module imports, inside functions and under TYPE_CHECKING too."""
    known = {m.name for m in modules}
    found: dict[str, set[str]] = defaultdict(set)
    for m in modules:
        for node in ast.walk(m.tree):
            found[m.name].update(_nearest(name, known) for name in _imported(node))
        found[m.name] -= {"", m.name}
    return found


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _nearest(name: str, known: set[str]) -> str:
    """The module that a dotted name lies in; empty for those of others."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import one another, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                found.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def figures(folder: Path) -> dict[str, str]:
    """All figures of one package folder, by what they count."""
    modules = read_modules(folder)
    nodes = [node for m in modules for node in ast.walk(m.tree)]
    every = functions(modules)
    lines = [len(m.text.splitlines()) for m in modules]
    lengths = [length(f) for f in every]
    words = sum(map(names_any, nodes))
    participles = [f.name for f in every if is_participle(f.name)]
    documented = [ast.get_docstring(f) is not None for f in every if not f.name.startswith("_")]
    return {
        "files": f"{len(modules):,}",
        "lines": f"{sum(lines):,}",
        "file, median and largest": f"{median(lines):.0f}, {max(lines)}",
        "functions": f"{len(every):,}",
        "function, median and longest": f"{median(lengths):.0f}, {max(lengths)}",
        "function, 90th percentile": f"{quantiles(lengths, n=10)[8]:.0f}",
        f"functions over {LONG_FUNCTION} lines": str(sum(n > LONG_FUNCTION for n in lengths)),
        f"functions with more than {MANY_PARAMETERS} parameters": str(
            sum(count_parameters(f) > MANY_PARAMETERS for f in every)
        ),
        "public functions with a docstring": f"{mean(documented):.0%}",
        "`Any` per 1,000 lines": f"{1000 * words / sum(lines):.1f}",
        "`.kind`, `.op`, `.name` compared with literals": str(sum(map(compares_literal, nodes))),
        "function names that are participles": f"{len(participles) / len(every):.1%}",
        "class names defined twice": str(len(repeated_classes(modules))),
        "import circles, lazy and typing imports included": str(len(circles(imports(modules)))),
    }


def main(folders: list[str]) -> None:
    """Print a table of figures, a column for each folder."""
    found = [figures(Path(folder)) for folder in folders]
    width = max(map(len, found[0]))
    for label in found[0]:
        print(f"{label:<{width}}  " + "  ".join(f"{column[label]:>14}" for column in found))


if __name__ == "__main__":
    main(sys.argv[1:] or [str(Path(__file__).parents[1] / "brainsurgery_jax")])
