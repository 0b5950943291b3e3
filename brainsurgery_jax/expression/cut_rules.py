"""Along which axes the operands of an operation are cut where its result is: each part of the result is then made of
the same part of the operands alone. From shapes only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from brainsurgery_jax.expression.program import Node
from brainsurgery_jax.numerics.equations import read_equation

Shapes = Sequence[tuple[int, ...]]
Axes = tuple[int | None, ...]
"""For each operand the axis that is cut, or None: all of it is needed for every part."""

Rule = Callable[[Node, Shapes, int], Axes | None]
"""What a cut of the result along an axis means for the operands; None: the result cannot be cut there."""


def elementwise(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """Each element by itself: axes are matched from the last one on; what is repeated along one is not cut."""
    from_last = len(node.aval.shape) - axis
    return tuple(None if len(s) < from_last or s[len(s) - from_last] == 1 else len(s) - from_last for s in shapes)


def reduction(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """Every axis that is not reduced. (What else is an operand, as the share of a quantile, is a number.)"""
    reduced = node.params["axes"]
    if any(shapes[1:]):
        return None
    kept = [a for a in range(len(shapes[0])) if node.params["keepdims"] or a not in reduced]
    return None if kept[axis] in reduced else (kept[axis], *(None for _ in shapes[1:]))


def normalize(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """Every axis but those along which the sum is one."""
    return None if axis in node.params["axes"] else (axis,)


def product(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """Rows of the first, columns of the second, and leading axes of both."""
    x, y = shapes
    if not x or not y:  # of a number
        return elementwise(node, shapes, axis)
    rank = len(node.aval.shape)
    columns = len(y) > 1
    rows_at = rank - (2 if columns else 1) if len(x) > 1 else None
    if columns and axis == rank - 1:
        return None, len(y) - 1
    if axis == rows_at:
        return len(x) - 2, None
    from_inner = rank - (len(x) > 1) - columns - axis  # of a leading axis, counted from the last one
    places = [len(s) - 2 - from_inner for s in shapes]
    return tuple(None if p < 0 or s[p] == 1 else p for p, s in zip(places, shapes, strict=True))


def dot(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """As a product, of matrices and vectors alone."""
    return None if max(map(len, shapes)) > 2 and all(shapes) else product(node, shapes, axis)


def outer(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """The axes of the vectors of `outer` that make `axis` of its result."""
    return (0, None) if axis == 0 else (None, 0)


def transpose(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """The axis of the operand that becomes `axis`."""
    return (node.params["order"][axis],)


def reshape(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """An axis with as many elements before it: a part of either is the same run of elements."""
    before, after = shapes[0], node.aval.shape
    outside = prod(after[:axis])
    places = (a for a, n in enumerate(before) if n > 1 and prod(before[:a]) == outside)
    return (place,) if (place := next(places, None)) is not None else None


def concat(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """The same axis of every operand, unless they are joined along it."""
    return None if axis == node.params["axis"] else tuple(axis for _ in shapes)


def stack(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """The axis of every operand that becomes `axis`, unless it is the new one."""
    new = node.params["axis"]
    assert new is not None
    return None if axis == new else tuple(axis - (axis > new) for _ in shapes)


def repeat(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """Also the axis along which each entry is repeated."""
    known = len(shapes[0]) == 1 or (node.params["axis"] is not None and shapes[0])
    return (axis,) if known else None


def roll(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """The same axis, unless what leaves it at one end comes in at the other."""
    rolled = node.params["along"]
    return None if rolled is None or axis in rolled else (axis,)


def kron(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """The axis of the first: each of its entries makes as many of the result as the second has there."""
    x, _ = shapes
    own = axis - (len(node.aval.shape) - len(x))
    return None if own < 0 else (own, None)


def einsum(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """The axes with the letter of this one."""
    equation = read_equation(node.params["equation"])
    assert equation is not None
    letter = equation.result[axis]
    if any(term.count(letter) > 1 for term in equation.terms):
        return None
    return tuple(term.index(letter) if letter in term else None for term in equation.terms)


def flip(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """The same axis, unless it is reversed."""
    return None if axis in node.params["axes"] else (axis,)


def triangle(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """Leading axes: in a matrix each row has an end of its own."""
    return (axis,) if axis < len(node.aval.shape) - 2 else None


def item(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """Axes that are taken whole."""
    source = made = 0
    for part in node.params["parts"]:
        if part is None:
            if made == axis:
                return None
            made += 1
            continue
        if isinstance(part, tuple):
            if made == axis:
                return (source,) if part == (0, shapes[0][source], 1) else None
            made += 1
        source += 1
    return None


def take(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """Axes of the indices, and those of the table that are not looked up along."""
    _, indices = shapes
    along = node.params["axis"]
    if along is None:
        return None, axis
    if along <= axis < along + len(indices):
        return None, axis - along
    return (axis if axis < along else axis - len(indices) + 1), None


def none(node: Node, shapes: Shapes, axis: int) -> Axes | None:
    """No axis at all."""
    return None
