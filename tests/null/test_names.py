"""Each class of the package has a name of its own: one word means one thing."""

import ast
from collections import defaultdict
from pathlib import Path

import brainsurgery_jax

PACKAGE = Path(brainsurgery_jax.__file__).parent


def _homes() -> dict[str, list[str]]:
    """The modules that define a class, by the name of the class."""
    homes = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(path.relative_to(PACKAGE)))
    return homes


def test_each_class_name_exists_once():
    twice = {name: places for name, places in _homes().items() if len(places) > 1}
    assert not twice


def test_the_test_sees_the_classes_of_the_package():
    homes = _homes()
    assert homes["PlanError"] == ["errors.py"]
    assert len(homes) > 300
