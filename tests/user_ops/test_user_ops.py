"""Ops that somebody else wrote: registered from files and from installed packages, then like built-in ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest

import brainsurgery_jax as bs
from brainsurgery_jax import plugins
from brainsurgery_jax.op import ASSERTS, OPS
from brainsurgery_jax.plan.schema import plan_schema
from tests.checkpoints import normal, problems, run_plan

MY_OPS = Path(__file__).parent / "my_ops.py"
DOCS = Path(__file__).parents[2] / "docs" / "user-ops.md"

STEPS = [
    {"soft_cap_": {"target": ".*", "cap": 2}},
    {"reverse_axes": {"from": "w", "to": "v"}},
    {"assert": {"bounded": {"of": ".*", "by": 2}}},
]

SIMPLE = """
from brainsurgery_jax.op import Form, op

@op(Form("{name}", ("from",), ("to",), "new"), elementwise=True)
def {name}(x):
    '''{doc}'''
    return x
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    with plugins.scope():
        yield


def simple(name: str = "mine", doc: str = "Do nothing.") -> str:
    return SIMPLE.format(name=name, doc=doc)


def capped(x: np.ndarray) -> np.ndarray:
    return (2 * np.tanh(x.astype(np.float64) / 2)).astype(np.float32)


# --- What they do -----------------------------------------------------------------------------------------------------


def test_a_run_computes_rearranges_and_asserts_with_them(here: Path):
    bs.register(MY_OPS)
    x = 3 * normal((3, 5))
    got = run_plan(here, {"w": x}, STEPS)
    np.testing.assert_allclose(got["w"], capped(x), rtol=1e-6)
    np.testing.assert_array_equal(got["v"], got["w"].T)


def test_apply_gives_the_bits_of_run_and_jit_the_same_values(here: Path):
    bs.register(MY_OPS)
    x = 3 * normal((3, 5))
    plan = bs.load({"transforms": STEPS})
    ran, applied = run_plan(here, {"w": x}, STEPS), plan.apply({"w": x})
    traced, verdicts = jax.jit(lambda tree: plan.apply(tree, checks="return"))({"w": x})
    for name in ("w", "v"):
        np.testing.assert_array_equal(ran[name], applied[name])
        np.testing.assert_allclose(traced[name], ran[name], rtol=1e-6)
    assert all(bool(v) for v in jax.tree.leaves(verdicts))


def test_an_assert_of_ones_own_fails_with_its_own_words(here: Path):
    bs.register(MY_OPS)
    with pytest.raises(bs.PlanError, match=r"assert.bounded: 'w' exceeds 1 \[assert-failed\]"):
        run_plan(here, {"w": np.full(3, 2, np.float32)}, [{"assert": {"bounded": {"of": "w", "by": 1}}}])


def test_what_an_op_refuses_stands_at_the_key(here: Path):
    bs.register(MY_OPS)
    (found,) = problems(here, {"w": normal((2, 2))}, [{"soft_cap_": {"target": "w", "cap": -1}}])
    assert (found.code, found.hint) == ("my-cap", "Try 30.")
    assert found.message.startswith("soft_cap_.cap: expected a positive cap, got -1")


def test_every_dtype_of_a_float_keeps_it(here: Path):
    bs.register(MY_OPS)
    tensors = {name: normal((4, 4)).astype(name) for name in ("float16", "float32", "float64")}
    got = run_plan(here, tensors, [{"soft_cap_": {"target": ".*", "cap": 2}}])
    assert {name: x.dtype.name for name, x in got.items()} == {name: name for name in tensors}


def test_they_stand_in_the_schema():
    before = plan_schema()
    bs.register(MY_OPS)
    added = set(plan_schema()["$defs"]) - set(before["$defs"])
    assert added == {"op.soft_cap", "op.soft_cap_", "op.reverse_axes", "assert.bounded"}


def test_the_file_in_the_documentation_is_the_one_that_is_tested():
    assert f"```python\n{MY_OPS.read_text()}```" in DOCS.read_text()


def test_the_builder_in_the_documentation_combines_kernels(here: Path):
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "@build" in b)
    Path("built.py").write_text(block)
    bs.register("built.py")
    x = normal((4, 4))
    got = run_plan(here, {"w": x}, [{"symmetrise": {"from": "w", "to": "v", "share": 0.25}}])
    np.testing.assert_allclose(got["v"], 0.25 * x + 0.75 * x.T, rtol=1e-6, atol=1e-7)
    (found,) = problems(here, {"w": normal((2, 3))}, [{"symmetrise_": {"target": "w"}}])
    assert (found.code, found.hint) == ("my-square", "Match square matrices only.")


# --- Registering ------------------------------------------------------------------------------------------------------


def test_a_file_may_be_registered_twice():
    bs.register(MY_OPS)
    first = OPS["soft_cap"]
    bs.register(MY_OPS, str(MY_OPS))
    assert OPS["soft_cap"] is first


def test_a_file_that_has_changed_takes_the_place_of_what_it_was(here: Path):
    (here / "a.py").write_text(simple("one") + simple("two"))
    bs.register("a.py")
    (here / "a.py").write_text(simple("two", "Anew."))
    bs.register(here / "a.py")
    assert "one" not in OPS
    assert OPS["two"].doc == "Anew."


def test_a_change_that_is_wrong_leaves_what_there_was(here: Path):
    (here / "a.py").write_text(simple("one"))
    bs.register("a.py")
    first = OPS["one"]
    (here / "a.py").write_text(simple("one") + "1 / 0\n")
    with pytest.raises(bs.PlanError, match="ZeroDivisionError"):
        bs.register("a.py")
    assert OPS["one"] is first


def test_what_is_registered_in_a_scope_is_forgotten_behind_it():
    with plugins.scope():
        bs.register(MY_OPS)
        assert {"soft_cap", "reverse_axes"} <= set(OPS)
    assert not {"soft_cap", "reverse_axes"} & set(OPS)
    assert "bounded" not in ASSERTS
    assert "scale" in OPS


def test_all_files_that_are_wrong_are_told_and_the_others_count(here: Path):
    (here / "good.py").write_text(simple("good"))
    with pytest.raises(bs.PlanError, match=r"(?s)none\.py.*nine\.py"):
        bs.register("none.py", "good.py", "nine.py")
    assert "good" in OPS


WRONG = {
    "syntax": ("def f(:\n    pass\n", r"a\.py:1:7: this is no Python: invalid syntax \[ops-file\]"),
    "raises": ("import math\nmath.sqrt(-1)\n", r"a\.py:2:1: running this file raised ValueError: .* \[ops-file\]"),
    "missing module": ("import nowhere_at_all\n", r"a\.py:1:1: .* ModuleNotFoundError: No module named 'nowhere_at_"),
    "exits": ("import sys\nsys.exit(3)\n", r"a\.py:2:1: running this file raised SystemExit: 3"),
    "null byte": ("x = '\0'\n", r"a\.py.*null bytes"),
    "nothing": ("x = 1\n", r"a\.py: no op is registered in it \[ops-file\]\n    Decorate a function with"),
    "taken": (simple("scale"), r"a\.py:4:1: there is an op 'scale' already: a built-in one \[ops-file\]\n    Give"),
    "twice": (simple() + simple(), r"a\.py:11:1: there is an op 'mine' already: that of a\.py:4 \[ops-file\]"),
    "undocumented": (simple(doc=""), r"a\.py:4:1: the function of 'mine' has no docstring"),
    "tensors": (
        simple().replace("(x)", "(x, y)"),
        r"a\.py:4:1: the function takes 2 tensors, and its form 'mine' reads 1",
    ),
    "destination": (simple().replace('"new"', '"nwe"'), r"a\.py:4:1: the form 'mine' has the destination 'nwe'"),
    "annotation": (simple().replace("(x)", "(x, *, by: Nubmer)"), r"a\.py.*NameError: name 'Nubmer' is not defined"),
    "untyped key": (simple().replace("(x)", "(x, *, by: OPS)"), r"a\.py.*NameError: name 'OPS' is not defined"),
    "type": (
        "import threading\n" + simple().replace("(x)", "(x, *, by: threading.Thread)"),
        r"a\.py:5:1: the key 'by' has a type that no plan can spell",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_wrong_adds_nothing_and_says_where(here: Path, kind: str):
    text, message = WRONG[kind]
    (here / "a.py").write_text(text)
    before = set(OPS)
    with pytest.raises(bs.PlanError, match=message):
        bs.register("a.py")
    assert set(OPS) == before


def test_two_files_with_one_name_are_both_named(here: Path):
    for name in "ab":
        (here / f"{name}.py").write_text(simple())
    with pytest.raises(bs.PlanError, match=r"b\.py:4:1: there is an op 'mine' already: that of a\.py:4"):
        bs.register("a.py", "b.py")


def test_a_missing_file_is_told_with_the_nearest(here: Path):
    (here / "my_ops.py").write_text(simple())
    with pytest.raises(bs.PlanError, match=r"'my_op\.py' does not exist\. Did you mean 'my_ops\.py'\? \[ops-file\]"):
        bs.register("my_op.py")


@pytest.mark.parametrize("name", ["plan.yaml", "ops"])
def test_what_is_no_python_is_told(here: Path, name: str):
    with pytest.raises(bs.PlanError, match=f"'{name}' is no Python file"):
        bs.register(name)


def test_a_folder_is_told(here: Path):
    (here / "ops.py").mkdir()
    with pytest.raises(bs.PlanError, match=r"'ops\.py' cannot be read: Is a directory"):
        bs.register("ops.py")


# --- Installed packages -----------------------------------------------------------------------------------------------


@pytest.fixture
def installed(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package of ops, as a wheel would: a module, and a folder of metadata with an entry point."""
    monkeypatch.syspath_prepend(str(here))
    modules = set(sys.modules)

    def install(module: str, text: str) -> None:
        (here / f"{module}.py").write_text(text)
        info = here / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{module} = {module}\n")

    yield install
    for name in set(sys.modules) - modules:
        if name.startswith("shared_"):
            del sys.modules[name]


def test_a_plan_finds_the_op_of_an_installed_package(here: Path, installed):
    installed("shared_ops", simple("shared"))
    got = run_plan(here, {"w": normal((2, 2))}, [{"shared": {"from": "w", "to": "v"}}])
    np.testing.assert_array_equal(got["v"], normal((2, 2)))


def test_an_assert_of_an_installed_package_is_found(here: Path, installed):
    installed("shared_asserts", MY_OPS.read_text())
    assert not problems(here, {"w": normal((2, 2))}, [{"assert": {"not": {"bounded": {"of": "w", "by": 0}}}}])


def test_packages_are_not_looked_up_while_all_ops_are_known(here: Path, installed):
    installed("shared_ops", simple("shared"))
    run_plan(here, {"w": normal((2, 2))}, [{"delete": {"target": "none", "if_missing": "skip"}}])
    assert "shared_ops" not in sys.modules


def test_a_broken_package_is_told_where_an_op_is_unknown_and_hurts_nothing_else(here: Path, installed):
    installed("shared_broken", "raise RuntimeError('no luck')\n")
    (found,) = problems(here, {"w": normal((2, 2))}, [{"shared": {"from": "w", "to": "v"}}])
    assert found.code == "op-unknown"
    assert "the ops of 'shared_broken' are left out: running this file raised RuntimeError: no luck" in found.hint
    assert not problems(here, {"w": normal((2, 2))}, [{"scale_": {"target": "w", "by": 2}}])


def test_a_package_that_takes_a_built_in_name_is_left_out(here: Path, installed):
    installed("shared_greedy", simple("extra") + simple("scale"))
    (note,) = plugins.look_up()
    assert note.severity == "note"
    assert "there is an op 'scale' already: a built-in one" in note.message
    assert "extra" not in OPS


def test_a_package_that_was_imported_before_is_no_trouble(here: Path, installed):
    installed("shared_early", simple("early"))
    __import__("shared_early")
    assert plugins.look_up() == ()
    assert "early" in OPS


def test_the_control_op_in_the_documentation_works(here: Path):
    blocks = [b.partition("```")[0] for b in DOCS.read_text().split("```python\n")]
    (here / "strip.py").write_text(next(b for b in blocks if "@control" in b))
    bs.register("strip.py")
    got = run_plan(
        here, {"model.w": normal((2, 2)), "head": normal((3,))}, [{"strip": {"target": ".*", "prefix": "model."}}]
    )
    assert set(got) == {"w", "head"}


@pytest.mark.parametrize("row", [r for r in DOCS.read_text().splitlines() if r.startswith("| `brainsurgery_jax.")])
def test_everything_that_the_documentation_calls_public_is_there(row: str):
    module, names = (re.findall(r"`(\w[\w.]*)", cell) for cell in row.strip("| ").split(" | "))
    assert names
    for name in names:
        assert hasattr(import_module(module[0]), name)
