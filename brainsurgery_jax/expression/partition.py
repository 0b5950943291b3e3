"""How a program is computed in parts: along which axes of its result every operation acts independently, what is
computed whole before, and how large a part may be. A pure function of the program, so of shapes and dtypes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import gcd, prod
from typing import NamedTuple

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.expression.liveness import peak
from brainsurgery_jax.expression.on_the_way import nbytes
from brainsurgery_jax.expression.operations import OPERATIONS
from brainsurgery_jax.expression.program import At, Computation, Node, below, excerpt, leaf
from brainsurgery_jax.index.boxes import Box, box_shape, contiguous_from
from brainsurgery_jax.index.parts import AxisCut, Cuts, operand_box, parts

Shape = tuple[int, ...]
Axes = tuple[int | None, ...]

PART = 8 << 20
"""Bytes that a part takes at most, if it can be made small enough: operands, result, and what is made on the way."""

PRODUCTS = 32 << 20
"""The same with a matrix product, whose other matrix is gone through again for every part."""

CHEAP = 1 << 16
"""Elements that are made again for every part rather than kept."""

AGAIN = 1 << 18
"""Bytes of an operand that is read again for every part rather than kept."""

RUN = 1 << 16
"""Bytes that lie together, at least, in an operand of which a part is read from a file."""


class Partition(NamedTuple):
    """A program that makes one part of a result, and where its operands come from.

    `kept`: programs that are computed whole before, of operands of the original. Operand number `i` of `program` is
    operand `sources[i]` of the original or, if that is negative, `kept[-1 - sources[i]]`.
    """

    program: Computation
    kept: tuple[Computation, ...]
    sources: tuple[int, ...]
    cuts: Cuts


@lru_cache(maxsize=4096)
def partition(program: Computation) -> Partition | None:
    """How a program is computed in parts; None if it is computed as a whole."""
    for axis, size in enumerate(program.aval.shape):
        if size > 1 and (first := _cut_along(program, axis)) is not None:
            made = _with_step(first.program, (first.cut,))
            if made[0].step == made[0].units:
                return None
            return _connect(program, first, *_cut_further(first.program, made, axis))
    return None


def part_shapes(program: Computation, cuts: Cuts, units: Sequence[int]) -> list[Shape]:
    """The shape of each node in a part with so many units of each cut."""
    shapes = [list(node.aval.shape) for node in program.nodes]
    for cut, count in zip(cuts, units, strict=True):
        for shape, axis in zip(shapes, node_axes(program, cut.axis), strict=True):
            if axis is not None:
                shape[axis] = shape[axis] // cut.units * count
    return [tuple(shape) for shape in shapes]


@lru_cache(maxsize=4096)
def node_axes(program: Computation, axis: int) -> Axes:
    """The axis along which each node is cut where the result is cut along `axis`; None: all of it is in every part."""
    found: dict[int, int | None] = {len(program.nodes) - 1: axis}
    for number in range(len(program.nodes) - 1, -1, -1):
        if (own := found.get(number)) is not None:
            rule = _rule(program.nodes, number, own)
            assert rule is not None, "a program that was cut"
            for x, along in zip(program.nodes[number].operands, rule, strict=True):
                if isinstance(x, At):
                    found[x.number] = along
    return tuple(found.get(number) for number in range(len(program.nodes)))


def _rule(nodes: Sequence[Node], number: int, axis: int) -> Axes | None:
    node = nodes[number]
    if node.is_leaf:
        return ()
    shapes = [nodes[x.number].aval.shape if isinstance(x, At) else () for x in node.operands]
    return OPERATIONS[node.op].cut(node, shapes, axis)


# --- Along one axis ---------------------------------------------------------------------------------------------------


class Use(NamedTuple):
    """A node that is an operand of the parts: along which axis it is cut, or None for all of it."""

    number: int
    axis: int | None


class Along(NamedTuple):
    """A program that makes parts along one axis: its operands, by the nodes of the original that they are."""

    program: Computation
    uses: tuple[Use, ...]
    cut: AxisCut


def _cut_along(program: Computation, axis: int) -> Along | None:
    """The program of parts along an axis of the result, if it has any.

    From the result on, each node is cut as its uses need it. Where an operation cannot be cut, where a node is needed
    along two axes or whole, its value is an operand.
    """
    nodes, inside, uses = program.nodes, dict[int, int | None](), dict[Use, None]()
    wanted: dict[int, set[int | None]] = {len(nodes) - 1: {axis}}
    for number in range(len(nodes) - 1, -1, -1):
        if number not in wanted:
            continue
        rule = _inside(nodes, number, wanted[number])
        if rule is None:
            uses.update((Use(number, a), None) for a in sorted(wanted[number], key=str))
            continue
        (inside[number],) = wanted[number]
        for x, along in zip(nodes[number].operands, rule, strict=True):
            if isinstance(x, At):
                wanted.setdefault(x.number, set()).add(along)
    if len(nodes) - 1 not in inside:
        return None
    sizes = [nodes[n].aval.shape[a] for n, a in (*inside.items(), *uses) if a is not None]
    units = gcd(*sizes)
    ordered = tuple(sorted(uses, key=lambda use: (use.number, str(use.axis))))
    made = _rebuilt(nodes, inside, ordered)
    return Along(made, ordered, AxisCut(axis, units, units, tuple(use.axis for use in ordered))) if units > 1 else None


def _inside(nodes: Sequence[Node], number: int, wanted: set[int | None]) -> Axes | None:
    """How the operands of a node are cut, if it is computed part by part; else None."""
    if nodes[number].is_leaf or len(wanted) > 1:
        return None
    (axis,) = wanted
    if axis is not None:
        return _rule(nodes, number, axis)
    cheap = sum(prod(nodes[n].aval.shape) for n in below(nodes, [number])) <= CHEAP
    return (None,) * len(nodes[number].operands) if cheap else None


def _rebuilt(nodes: Sequence[Node], inside: Mapping[int, int | None], uses: Sequence[Use]) -> Computation:
    """The nodes that are computed part by part, on operands in the order of `uses`."""
    made = [leaf(at, nodes[use.number].aval) for at, use in enumerate(uses)]
    places = {use: at for at, use in enumerate(uses)}
    own: dict[int, int] = {}
    for number in sorted(inside):
        node, axis = nodes[number], inside[number]
        rule = (None,) * len(node.operands) if axis is None else _rule(nodes, number, axis)
        assert rule is not None
        operands = tuple(
            At(own[x.number] if x.number in own else places[Use(x.number, along)]) if isinstance(x, At) else x
            for x, along in zip(node.operands, rule, strict=True)
        )
        own[number] = len(made)
        made.append(node._replace(operands=operands))
    return Computation(tuple(made))


# --- How large a part is ----------------------------------------------------------------------------------------------


def _with_step(program: Computation, cuts: Cuts) -> Cuts:
    """Cuts, the last of them in steps as large as they may be."""
    *others, last = cuts
    low, high, most = 1, last.units, _most(program)
    while low < high:
        middle = (low + high + 1) // 2
        if part_bytes(program, (*others, last._replace(step=middle))) <= most:
            low = middle
        else:
            high = middle - 1
    return (*others, last._replace(step=low))


def _most(program: Computation) -> int:
    return PRODUCTS if any(not node.is_leaf and OPERATIONS[node.op].contracts for node in program.nodes) else PART


def part_bytes(program: Computation, cuts: Cuts) -> int:
    """Bytes that a part takes: of operands what is cut, the result, and what is made on the way."""
    shapes = part_shapes(program, cuts, [cut.step for cut in cuts])
    leaves = [n for n, node in enumerate(program.nodes) if node.is_leaf and shapes[n] != node.aval.shape]
    return _making(program, shapes) + sum(nbytes(shapes[n], program.nodes[n].aval.dtype) for n in leaves)


def making_bytes(program: Computation, cuts: Cuts) -> int:
    """The same where operands are looked at where they are."""
    return _making(program, part_shapes(program, cuts, [cut.step for cut in cuts]))


def _making(program: Computation, shapes: Sequence[Shape]) -> int:
    return peak(program, shapes) + nbytes(shapes[-1], program.aval.dtype)


def _cut_further(program: Computation, cuts: Cuts, after: int) -> tuple[Computation, tuple[int, ...], Cuts]:
    """Parts that are still too large, cut along another axis too, if nothing has to be kept for that.

    Also gives the operand of the program before that each operand is.
    """
    same = tuple(range(len(cuts[0].operands)))
    if cuts[0].step > 1 or part_bytes(program, cuts) <= _most(program):
        return program, same, cuts
    for axis in range(after + 1, len(program.aval.shape)):
        again = _cut_along(program, axis) if program.aval.shape[axis] > 1 else None
        if again is None or any(not program.nodes[use.number].is_leaf for use in again.uses):
            continue
        operands = tuple(program.nodes[use.number].params["index"] for use in again.uses)
        first = cuts[0]._replace(operands=tuple(cuts[0].operands[i] for i in operands))
        made = _with_step(again.program, (first, again.cut))
        if all(_is_read_well(again.program, made, at) for at in range(len(operands))):
            return again.program, operands, made
    return program, same, cuts


# --- Where operands come from -----------------------------------------------------------------------------------------


def _connect(
    original: Computation, along: Along, program: Computation, operands: Sequence[int], cuts: Cuts
) -> Partition:
    """A partition whose operands are those of the original, where they can be read part by part, or what is kept."""
    kept: dict[Computation, int] = {}
    sources = []
    for at, operand in enumerate(operands):
        number = along.uses[operand].number
        node = original.nodes[number]
        if node.is_leaf and _is_read_well(program, cuts, at):
            sources.append(node.params["index"])
        else:
            whole = excerpt(original.nodes, number, ())
            sources.append(-1 - kept.setdefault(whole, len(kept)))
    return Partition(program, tuple(kept), tuple(sources), cuts)


def _is_read_well(program: Computation, cuts: Cuts, operand: int) -> bool:
    """Whether the part of an operand can be read from a file for each part of the result: it lies in one run, or in
    long ones, or is all of a small operand."""
    aval = next(n.aval for n in program.nodes if n.is_leaf and n.params["index"] == operand)
    if all(cut.operands[operand] is None for cut in cuts):
        return aval.nbytes <= AGAIN
    first = next(parts(program.aval.shape, cuts))
    return _lies_well(aval, operand_box(program.aval.shape, cuts, first, operand, aval.shape))


def is_written_well(cut: Partition) -> bool:
    """Whether the parts of a result can be written one by one: each is one run, or long ones."""
    return _lies_well(cut.program.aval, next(parts(cut.program.aval.shape, cut.cuts)))


def _lies_well(aval: Aval, box: Box) -> bool:
    run = contiguous_from(aval.shape, box)
    return run == 0 or prod(box_shape(box)[run:]) * max(1, aval.dtype.bits // 8) >= RUN
