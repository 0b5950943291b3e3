"""Print pip constraints that pin each dependency of pyproject.toml to its lower bound. Needs nothing but Python.

`make test-oldest` installs by them, so that every bound is one that the tests pass with.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("torch", "test", "docs")
_BOUND = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[.*\])?>=(?P<version>[0-9][0-9A-Za-z.]*)")


def lower_bounds(project: dict[str, Any]) -> Iterator[str]:
    """`NAME==VERSION` for every dependency of the package and of its `EXTRAS` that has a lower bound."""
    extras = project["optional-dependencies"]
    for requirement in (*project["dependencies"], *(r for extra in EXTRAS for r in extras[extra])):
        if bound := _BOUND.match(requirement):
            yield f"{bound['name']}=={bound['version']}"


if __name__ == "__main__":
    print("\n".join(lower_bounds(tomllib.loads(PYPROJECT.read_text())["project"])))
