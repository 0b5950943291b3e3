"""Properties that every op has, run over the rows of `tests/ops_table.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

import brainsurgery_jax as bs
import brainsurgery_jax.ops  # says which ops there are
from brainsurgery_jax.dtypes import DType
from brainsurgery_jax.engine.compute.kernels import compiled, numbers_of
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.graph.expr import Expr, walk
from brainsurgery_jax.op import ASSERTS, OPS, element_role
from brainsurgery_jax.plan.source import dump_yaml
from tests.checkpoints import OPAQUE, SAVABLE, np_dtype, plan_of, problems, read, run_plan, same, write_raw
from tests.ops_table import ASSERTED, LOOKED_AT, ROWS, Asserted, Refused, Row, Tensors

pytestmark = pytest.mark.usefixtures("here")

EACH_ROW = pytest.mark.parametrize("row", ROWS, ids=str)
TYPED = [r for r in ROWS if r.dtypes]


def steps(row: Row, payload: Any = None) -> list[Any]:
    return [*row.before, {row.op: row.payload if payload is None else payload}]


def after(row: Row, tensors: Tensors) -> Tensors:
    """All tensors after the row's step, by its oracle."""
    return {name: x for name, x in (tensors | dict(row.changes(tensors))).items() if x is not None}


def assert_same(found: Tensors, wanted: Tensors, within: float = 0.0) -> None:
    assert set(found) == set(wanted)
    for name, x in wanted.items():
        assert (found[name].shape, found[name].dtype) == (x.shape, x.dtype), name
        if within:
            np.testing.assert_allclose(found[name], x, rtol=0, atol=within, err_msg=name)
        else:
            assert same(found[name], x), f"{name}: {found[name]} is not {x}"


def as_kind(x: np.ndarray, dtype: DType) -> np.ndarray:
    """A row's tensor in another dtype, by values that the dtype can hold."""
    if dtype.name == "float8_e8m0fnu":
        return np.exp2(np.abs(x) % 4).astype(np_dtype(dtype))
    return (np.abs(x) if dtype.kind == "uint" else x).astype(np_dtype(dtype))


# --- Values -----------------------------------------------------------------------------------------------------------


@EACH_ROW
def test_a_step_changes_what_numpy_says_and_nothing_else(row: Row, tmp_path: Path) -> None:
    assert_same(run_plan(tmp_path, row.tensors, steps(row)), after(row, row.tensors), row.within)


@EACH_ROW
def test_a_step_leaves_its_input_file_alone(row: Row, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, row.tensors, steps(row))
    source = Path(plan["inputs"][0].split("::")[1])
    before = source.read_bytes()
    bs.load(plan).run(durable=False)
    assert source.read_bytes() == before


@EACH_ROW
def test_what_is_written_has_the_shape_and_dtype_that_were_inferred(row: Row, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, row.tensors, steps(row))
    (inferred,) = [p for p in bs.load(plan).explain().program.publications if p.path == plan["output"]["path"]]
    bs.load(plan).run(durable=False)
    written = bs.open(plan["output"]["path"]).avals
    assert {name: e.aval for name, e in inferred.tensors.items()} == dict(written)


@pytest.mark.parametrize("row", [r for r in ROWS if r.said], ids=str)
def test_a_report_says_its_text(row: Row, tmp_path: Path) -> None:
    (said,) = bs.load(plan_of(tmp_path, row.tensors, steps(row))).run(durable=False).said
    assert re.search(row.said, said)


# --- Dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SAVABLE, ids=str)
@pytest.mark.parametrize("row", TYPED, ids=str)
def test_every_dtype_gives_the_oracles_bits_or_one_clear_refusal(row: Row, dtype: DType, tmp_path: Path) -> None:
    tensors = {name: as_kind(x, dtype) for name, x in row.tensors.items()}
    if dtype.kind in row.dtypes:
        assert_same(run_plan(tmp_path, tensors, steps(row)), after(row, tensors))
    else:
        assert [d.code for d in problems(tmp_path, tensors, steps(row))] == ["dtype-unsupported"]


WHOLE = {"copy", "move", "delete"}


@pytest.mark.parametrize("dtype", OPAQUE, ids=str)
@pytest.mark.parametrize("row", TYPED, ids=str)
def test_bytes_without_arithmetic_are_carried_whole_or_refused_from_the_header(
    row: Row, dtype: DType, tmp_path: Path
) -> None:
    header, data = {}, b""
    for name, x in row.tensors.items():
        nbytes = x.size * dtype.bits // 8
        span = [len(data), len(data) + nbytes]
        header[name] = {"dtype": dtype.tag, "shape": list(x.shape), "data_offsets": span}
        data += np.random.default_rng(len(data)).bytes(nbytes)
    packed = write_raw(tmp_path / "packed.safetensors", header, data)
    out = tmp_path / "out.safetensors"
    plan = bs.load({"inputs": [str(packed)], "transforms": steps(row), "output": str(out)})
    if row.op in WHOLE:
        plan.run(durable=False)
        kept = read(packed)
        assert {n: bytes(b) for n, b in read(out).items()} == {n: bytes(b) for n, b in after(row, kept).items()}
    else:
        assert [d.code for d in bs.check(plan)] in ([], ["dtype-opaque"])


# --- Slices -----------------------------------------------------------------------------------------------------------


def named(row: Row, key: str) -> list[str]:
    """The tensors that a key of a row's payload names."""
    found = row.payload.get(key, [])
    return list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else [found]


def sliceable() -> Iterator[Any]:
    """Each row with each of its keys that takes a slice."""
    for row in ROWS:
        for field in OPS[row.op].fields():
            role = field.role or element_role(field.annotation)
            if role is not None and role.slices and set(named(row, field.key)) & set(row.tensors):
                yield pytest.param(row, field.key, id=f"{row}-{field.key}")


def inside(x: np.ndarray) -> tuple[np.ndarray, str, tuple[Any, ...]]:
    """A larger tensor that holds `x` in a slice with an integer, steps and negative indices; the slice; numpy's key."""
    n, *rest = x.shape
    big = np.ones((3, 2 * n + 3, *rest), x.dtype)
    text, key = f"[-2, 1:{2 * n}:2]", (-2, slice(1, 2 * n, 2))
    big[key] = x
    return big, text, key


@pytest.mark.parametrize(("row", "key"), list(sliceable()))
def test_a_slice_may_stand_for_a_tensor(row: Row, key: str, tmp_path: Path) -> None:
    """Every tensor that the key names is put inside a larger one: the step must do the same with the slice."""
    given, listed = row.payload[key], named(row, key)
    hidden = {name: inside(row.tensors[name]) for name in dict.fromkeys(listed)}
    sliced: Any = [f"{n}::{hidden[n][1]}" for n in listed]
    if isinstance(given, dict):
        sliced = dict(zip(given, sliced, strict=True))
    payload = row.payload | {key: sliced[0] if isinstance(given, str) else sliced}
    changes = dict(row.changes(row.tensors))
    wanted = row.tensors | {name: big for name, (big, _, _) in hidden.items()}
    for name, value in changes.items():
        if name in hidden:
            wanted[name] = wanted[name].copy()
            wanted[name][hidden[name][2]] = value
        else:
            wanted[name] = np.asarray(value)
    tensors = row.tensors | {name: big for name, (big, _, _) in hidden.items()}
    assert_same(run_plan(tmp_path, tensors, steps(row, payload)), wanted, row.within)


# --- Refusals ---------------------------------------------------------------------------------------------------------


def each_refusal() -> Iterator[Any]:
    for row in ROWS:
        for number, refused in enumerate(row.refused):
            yield pytest.param(row, refused, id=f"{row}-{number}-{refused.code}")


@pytest.mark.parametrize(("row", "refused"), list(each_refusal()))
def test_a_wrong_call_gives_one_diagnostic_with_its_place(row: Row, refused: Refused, tmp_path: Path) -> None:
    found = problems(tmp_path, row.tensors | dict(refused.more), steps(row, refused.payload))
    (error,) = found
    assert re.fullmatch(refused.code, error.code)
    assert re.search(refused.match, error.message)
    assert error.span is not None and error.span.in_mapping


@pytest.mark.parametrize(("row", "refused"), list(each_refusal()))
def test_a_wrong_call_writes_nothing(row: Row, refused: Refused, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, row.tensors | dict(refused.more), steps(row, refused.payload))
    with pytest.raises(PlanError, match=refused.match):
        bs.load(plan).run(durable=False)
    folder = Path(plan["output"]["path"]).parent
    assert [p.name for p in folder.iterdir()] == ["model.safetensors"]
    assert not Path("saved.safetensors").exists()


# --- Kernels ----------------------------------------------------------------------------------------------------------


def calls(row: Row, tmp_path: Path) -> list[Expr]:
    """The kernel calls of a row's program."""
    program = bs.load(plan_of(tmp_path, row.tensors, steps(row))).explain().program
    roots = [e for p in program.publications for e in p.tensors.values()]
    return [e for e in walk(roots) if e.kernel is not None and not e.kernel.blocks]


def operands(e: Expr, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    wholes = (rng.integers(-9, 9, s.aval.shape).astype(np_dtype(s.aval.dtype)) for s in e.srcs)
    return [(x + rng.random()).astype(x.dtype) for x in wholes]


def leaves(result: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(result)]


@EACH_ROW
def test_a_compiled_kernel_gives_what_the_plain_function_gives(row: Row, tmp_path: Path) -> None:
    for e in calls(row, tmp_path):
        assert e.kernel is not None
        with jax.enable_x64(True):
            arrays = [jax.numpy.asarray(x, x.dtype) for x in operands(e)]
            plain = leaves(e.kernel.fn(*arrays, **dict(e.static), **numbers_of(e)))
            quick = leaves(compiled(e.kernel, e.static)(arrays, numbers_of(e)))
        for a, b in zip(plain, quick, strict=True):
            exact = e.kernel.elementwise or e.moves is not None
            assert same(a, b) if exact else np.allclose(a, b, rtol=0, atol=1e-5), e


@EACH_ROW
def test_a_batched_kernel_gives_what_one_after_the_other_gives(row: Row, tmp_path: Path) -> None:
    for e in calls(row, tmp_path):
        assert e.kernel is not None
        if not e.srcs:
            continue
        one, two = operands(e, 1), operands(e, 2)
        run = compiled(e.kernel, e.static)
        with jax.enable_x64(True):
            both = jax.vmap(lambda *xs, e=e, run=run: run(list(xs), numbers_of(e)))(
                *map(np.stack, zip(one, two, strict=True))
            )
            looped = [leaves(run(xs, numbers_of(e))) for xs in (one, two)]
        for batch, a, b in zip(leaves(both), *looped, strict=True):
            # XLA may add up the products of a batch in another order than those of one, depending on the processor.
            near = np.allclose(batch, np.stack([a, b]), rtol=0, atol=1e-6 * (1 + np.max(abs(a), initial=0)))
            sums = e.kernel.rungs is not None or e.kernel.name == "resample"
            assert near if sums else same(batch, np.stack([a, b])), e


# --- YAML, documentation, coverage ------------------------------------------------------------------------------------


@EACH_ROW
def test_a_step_survives_being_written_as_yaml(row: Row, tmp_path: Path) -> None:
    plan = {"inputs": ["model::m.safetensors"], "transforms": steps(row)}
    text = dump_yaml(plan)
    assert yaml.safe_load(text) == plan
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    assert [s.params for s in bs.load(str(file)).data.steps] == [s.params for s in bs.load(plan).data.steps]


@pytest.mark.parametrize("name", [*OPS, *(f"assert {name}" for name in ASSERTS)])
def test_the_example_in_the_documentation_is_a_step(name: str, tmp_path: Path) -> None:
    record = ASSERTS[name.removeprefix("assert ")] if name.startswith("assert ") else OPS[name]
    examples = re.findall(r"Example: `(.*)`$", record.doc, re.MULTILINE)
    assert examples
    for example in examples:
        aliases = ("model", "a", "b", "base", "tuned", "work") if re.search(r"::(?!\[)", example) else ("model",)
        inputs = [f"{alias}::x.safetensors" for alias in aliases]
        file = tmp_path / "plan.yaml"
        file.write_text(f"inputs: [{', '.join(inputs)}]\ntransforms:\n  - {example}\n")
        assert [str(p) for p in bs.load(str(file)).problems] == []


def test_every_op_has_a_row() -> None:
    assert set(OPS) == {row.op for row in ROWS}


def test_every_operator_of_assert_has_a_row() -> None:
    assert set(ASSERTS) == {row.operator for row in ASSERTED}


# --- Asserts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "payload"), [pytest.param(r, p, id=f"{r.operator}-{p}") for r in ASSERTED for p in r.holds]
)
def test_an_assert_that_holds_lets_the_plan_pass(row: Asserted, payload: Any, tmp_path: Path) -> None:
    assert_same(run_plan(tmp_path, LOOKED_AT, {"assert": {row.operator: payload}}), LOOKED_AT)


@pytest.mark.parametrize(
    ("row", "payload", "why"), [pytest.param(r, p, w, id=f"{r.operator}-{p}") for r in ASSERTED for p, w in r.fails]
)
def test_an_assert_that_does_not_hold_stops_the_run_and_says_why(
    row: Asserted, payload: Any, why: str, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, LOOKED_AT, {"assert": {row.operator: payload}})
    with pytest.raises(PlanError, match=why) as caught:
        bs.load(plan).run(durable=False)
    wanted = "no-match" if why.startswith(("no tensor", "no match")) and row.operator != "exists" else "assert-failed"
    assert [d.code for d in caught.value.diagnostics] == [wanted]
    assert not Path(plan["output"]["path"]).exists()


@pytest.mark.parametrize(
    ("row", "payload"), [pytest.param(r, p, id=f"{r.operator}-{p}") for r in ASSERTED for p, _ in r.fails]
)
def test_not_turns_a_failing_assert_into_one_that_holds(row: Asserted, payload: Any, tmp_path: Path) -> None:
    run_plan(tmp_path, LOOKED_AT, {"assert": {"not": {row.operator: payload}}})


@pytest.mark.parametrize(
    ("row", "payload", "match"), [pytest.param(r, p, m, id=f"{r.operator}-{p}") for r in ASSERTED for p, m in r.refused]
)
def test_a_mistake_in_an_assert_is_no_verdict(row: Asserted, payload: Any, match: str, tmp_path: Path) -> None:
    for operator in ({row.operator: payload}, {"not": {row.operator: payload}}):
        (error,) = problems(tmp_path, LOOKED_AT, {"assert": operator})
        assert re.search(match, str(error))
        assert error.code != "assert-failed"
