"""The registry of ops knows all names from the start, and imports a module when one of its ops is looked up."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import brainsurgery_jax.ops
from brainsurgery_jax.op import ASSERTS, OPS, NameTaken, Op, Registry, SinkOp, function_of


def module_of(op: Op) -> str:
    return inspect.unwrap(function_of(op)).__module__


def test_each_op_is_registered_by_the_module_that_is_announced_for_it():
    for registry in (OPS, ASSERTS):
        assert {name: module_of(registry[name]) for name in registry._announced} == registry._announced


def test_no_module_registers_an_op_that_is_not_announced():
    for found in iter_modules(brainsurgery_jax.ops.__path__, f"{brainsurgery_jax.ops.__name__}."):
        import_module(found.name)
    for registry in (OPS, ASSERTS):
        ours = {name for name, op in registry.items() if module_of(op).startswith(brainsurgery_jax.ops.__name__)}
        assert ours == registry._announced.keys()


def test_asking_whether_there_is_an_op_imports_nothing():
    code = (
        "import sys, brainsurgery_jax.ops; from brainsurgery_jax.op import OPS\n"
        "assert 'merge' in OPS and 'merged' not in OPS and len(OPS) == len(list(OPS)) > 90\n"
        "assert 'brainsurgery_jax.ops.merge' not in sys.modules\n"
        "assert OPS['merge'].name == 'merge' and 'brainsurgery_jax.ops.linalg' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_name_of_an_op_whose_module_is_not_imported_is_taken():
    code = (
        "import brainsurgery_jax.ops\nfrom brainsurgery_jax.op import NameTaken, sink\n"
        "try: sink('logits')(lambda view: None); sink('dump')(lambda view: None)\n"
        "except NameTaken as taken: print(taken)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out == "two ops are called 'dump'\n"


def test_an_op_that_was_registered_before_ours_has_no_name_of_ours():
    """As in a notebook, before the first plan is loaded."""
    code = (
        "from brainsurgery_jax.op import NameTaken, sink\nsink('dump')(lambda view: None)\n"
        "try: import brainsurgery_jax.ops\nexcept NameTaken as taken: print(taken)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out == "two ops are called 'dump'\n"


def test_a_file_of_ops_that_fails_takes_none_of_ours_with_it(tmp_path: Path):
    (tmp_path / "bad.py").write_text("1 / 0")
    code = (
        "import brainsurgery_jax as bs\nfrom brainsurgery_jax.op import OPS\n"
        f"try: bs.register({str(tmp_path / 'bad.py')!r})\nexcept bs.PlanError: print(len(dict(OPS)) == len(OPS) > 90)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out == "True\n"


def test_a_second_op_of_one_name_is_refused_and_the_first_stays():
    registry, first, second = Registry[SinkOp](), ASSERTS["norm"], ASSERTS["norm"]
    registry.add(first)
    with pytest.raises(NameTaken, match="two ops are called 'norm'"):
        registry.add(second)
    assert dict(registry) == {"norm": first}


@pytest.mark.parametrize("how", ["import interrupted", "OPS['see']"])
def test_a_module_of_ops_whose_import_was_interrupted_is_imported_anew(how: str, tmp_path: Path):
    """As by Ctrl-C at a prompt, after it registered some of its ops."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\nfrom brainsurgery_jax.op import sink\nsink('look')(lambda view: None)\n"
        "if not hasattr(sys, 'tried'):\n    sys.tried = True\n    raise KeyboardInterrupt\n"
        "sink('see')(lambda view: None)\n"
    )
    code = (
        "from brainsurgery_jax.op import OPS\nOPS.announce('interrupted', ['look', 'see'])\n"
        f"try: {how}\nexcept KeyboardInterrupt: print(OPS['look'].name, OPS['see'].name)"
    )
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    assert subprocess.run(words, check=True, capture_output=True, text=True, env=environment).stdout == "look see\n"
