"""The kernels of `compute`: expressions over whole tensors, parts of them, or their elements."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TypedDict

from brainsurgery_jax._lazy import Array, Flag, Num, np
from brainsurgery_jax.dtypes import Aval, DType, to_numpy
from brainsurgery_jax.expression.evaluate import evaluate
from brainsurgery_jax.expression.folds import passes_of
from brainsurgery_jax.expression.liveness import peak
from brainsurgery_jax.expression.on_the_way import nbytes
from brainsurgery_jax.expression.partition import Partition, making_bytes, part_shapes, partition
from brainsurgery_jax.expression.program import Computation
from brainsurgery_jax.expression.ranges import reasons
from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.index.parts import Cuts, operand_box, parts
from brainsurgery_jax.numerics.math import on_host
from brainsurgery_jax.numerics.rounding import cast_to
from brainsurgery_jax.op import Avals, Params, Passes, kernel


class ProgramParams(TypedDict):
    """The expression that a kernel of `compute` evaluates."""

    program: Computation


class PartParams(ProgramParams):
    """The same, on parts of operands."""

    cuts: Cuts


class WidenParams(TypedDict):
    """The dtype of the computation."""

    dtype: DType


def _result(avals: Avals, params: ProgramParams) -> tuple[Aval, ...]:
    return (params["program"].aval,)


def _refusal(params: ProgramParams) -> str:
    return reasons(params["program"])


def _on_numpy(avals: Avals, params: Params) -> bool:
    return True


def _workspace(avals: Avals, params: ProgramParams) -> int:
    """Bytes besides operands and result: of what is kept and of one part, or of all if it is not cut. Of what is an
    operand itself less than none: the result takes no place of its own."""
    program = params["program"]
    if len(program.nodes) == 1:
        return -program.aval.nbytes
    if (cut := partition(program)) is None:
        return peak(program)
    kept = held = 0
    for before in cut.kept:
        made = before.aval.nbytes + _workspace((), {"program": before})
        kept, held = max(kept, held + made), held + (before.aval.nbytes if len(before.nodes) > 1 else 0)
    return max(kept, held + making_bytes(cut.program, cut.cuts))


_formula = partial(kernel, "compute", host=_on_numpy, guarded=True, refusal=_refusal)
"""A kernel that evaluates an expression, with the facts that all such kernels share."""


@_formula(result=_result, workspace=_workspace)
def whole(*xs: Num[Array, "..."], program: Computation) -> tuple[Array, Flag]:
    """An expression over whole tensors of any shapes."""
    cut = partition(program)
    if cut is None or not all(map(on_host, xs)):
        return evaluate(program, xs)
    return _in_parts(program.aval, cut, xs)


def _in_parts(aval: Aval, cut: Partition, xs: Sequence[Array]) -> tuple[Array, Flag]:
    """A result on numpy arrays, computed part by part, so that intermediate arrays stay in the cache."""
    made = [whole(*xs, program=before) for before in cut.kept]
    accepted = all(fits for _, fits in made)
    operands = [xs[at] if at >= 0 else made[-1 - at][0] for at in cut.sources]
    out = np.empty(aval.shape, to_numpy(aval.dtype))
    for box in parts(aval.shape, cut.cuts):
        boxes = [operand_box(aval.shape, cut.cuts, box, at, x.shape) for at, x in enumerate(operands)]
        own = [np.asarray(x[_slices(b)]) for x, b in zip(operands, boxes, strict=True)]
        value, fits = _part_of(own, cut.program, cut.cuts)
        out[_slices(box)] = value
        accepted &= bool(fits)
    return out, np.bool_(accepted)


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*span) for span in box)


def _part_workspace(avals: Avals, params: PartParams) -> int:
    """Bytes besides operands and result, where `avals` are those of parts."""
    program, cuts = params["program"], params["cuts"]
    return _part_peak(program, cuts, tuple(_units(program, cuts, [a.shape for a in avals])))


@lru_cache(maxsize=4096)
def _part_peak(program: Computation, cuts: Cuts, units: tuple[int, ...]) -> int:
    return peak(program, part_shapes(program, cuts, units))


@_formula(result=_result, workspace=_part_workspace, parts=lambda avals, params: params["cuts"])
def part(*xs: Num[Array, "..."], program: Computation, cuts: Cuts) -> tuple[Array, Flag]:
    """An expression over the same part of every operand that is cut."""
    return _part_of(xs, program, cuts)


def _part_of(xs: Sequence[Array], program: Computation, cuts: Cuts) -> tuple[Array, Flag]:
    return evaluate(program, xs, part_shapes(program, cuts, _units(program, cuts, [x.shape for x in xs])))


def _units(program: Computation, cuts: Cuts, shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """The number of units along each cut of a part whose operands have these shapes."""
    full = {node.params["index"]: node.aval.shape for node in program.nodes if node.is_leaf}
    found = []
    for cut in cuts:
        at, axis = next((i, a) for i, a in enumerate(cut.operands) if a is not None)
        found.append(shapes[at][axis] * cut.units // full[at][axis])
    return found


def _passes(avals: Avals, params: ProgramParams) -> Passes:
    return passes_of(params["program"], avals[0].shape)


@kernel("compute", result=_result, host=_on_numpy, fold=_passes)
def fold_tensor(x: Num[Array, "..."], *, program: Computation) -> Array:
    """A reduction of a streamed tensor, or of what a program makes of each of its elements."""
    return evaluate(program, [x])[0]


def _same_shape(avals: Avals, params: ProgramParams) -> tuple[Aval, ...]:
    return (Aval(avals[0].shape, params["program"].aval.dtype),)


def _piece_workspace(avals: Avals, params: ProgramParams) -> int:
    """Bytes for a piece: what is made on the way, a result on its way, and twice as much again that is freed late."""
    program = params["program"]
    return peak(program, [avals[0].shape] * len(program.nodes)) + 3 * nbytes(avals[0].shape, program.aval.dtype)


@_formula(result=_same_shape, workspace=_piece_workspace, elementwise=True)
def by_element(*xs: Num[Array, "..."], program: Computation) -> tuple[Array, Flag]:
    """An expression that treats each element by itself, over tensors of one shape and dtype: it runs in blocks."""
    return evaluate(program, xs)


def _widen_result(avals: Avals, params: WidenParams) -> Avals:
    return (Aval(avals[0].shape, params["dtype"]),)


@kernel("compute", result=_widen_result, elementwise=True, host=_on_numpy)
def widen_float(x: Num[Array, "..."], *, dtype: DType) -> Array:
    """A float in the dtype of the computation."""
    return cast_to(x, dtype)[0]
