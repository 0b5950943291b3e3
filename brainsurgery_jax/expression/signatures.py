"""How a function of an expression is called, and which of its arguments are parameters of the operation rather than
operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from brainsurgery_jax.expression.program import Static

if TYPE_CHECKING:
    from brainsurgery_jax._lazy import jax

Keywords = Mapping[str, object]
StaticRule = Callable[[Keywords, Sequence[object], int], Static]
"""The parameters of a call, spelled in one way, of its keywords, its arguments, and the rank of the first tensor."""

MANY = 99
AXES = ("axis", "keepdims")


def without_parameters(keywords: Keywords, args: Sequence[object], rank: int) -> Static:
    """Of a function of tensors alone."""
    return ()


class Pick(NamedTuple):
    """One of several results that lie side by side along the last axis of one: entries `start` to `stop`, transposed,
    or entry `start` alone where there is no `stop`."""

    start: int
    stop: int | None
    transposed: bool = False


class Function(NamedTuple):
    """A function: how a call of it is written, and what gives the shape and dtype of its result.

    `tensors`: how many arguments stand without a name, at least and at most; `lists`: there may be lists among them.
    `keywords`: the names of the others. `elementwise`: it treats each element by itself. `operands`: how many arguments
    are tensors, the others parameters; None: all. `own`: operands are computed on in their own dtype, whatever that of
    the result. `reduces`: it leaves out the axes that it goes over. `text`: the first argument is text in quotes.
    `widest`: its result is of the dtype in which the expression computes. `picks`: how its several results lie in one,
    of the shapes of its arguments. `limits`: it asks for the largest number that its operand can be in the dtype in
    which that is stored.
    """

    usage: str
    fn: Callable[..., jax.Array]
    tensors: tuple[int, int] = (1, 1)
    keywords: tuple[str, ...] = ()
    elementwise: bool = False
    lists: bool = False
    static: StaticRule = without_parameters
    operands: int | None = None
    own: bool = False
    reduces: bool = False
    text: bool = False
    widest: bool = False
    picks: Callable[..., tuple[Pick, ...]] | None = None
    limits: bool = False


# --- Rules ------------------------------------------------------------------------------------------------------------


def reduce_axes(keywords: Keywords, args: Sequence[object], rank: int) -> Static:
    """The axes that a reduction goes over, and whether they are kept."""
    return ("axes", axes_of(keywords.get("axis"), rank)), ("keepdims", bool(keywords.get("keepdims", False)))


def reduce_axis(keywords: Keywords, args: Sequence[object], rank: int) -> Static:
    """The axis that is looked along (None: all elements in row-major order), and whether it is kept."""
    return ("axis", axis_of(keywords.get("axis"), rank)), ("keepdims", bool(keywords.get("keepdims", False)))


def along(default: int | None, more: int = 0) -> StaticRule:
    """One axis, of a result with so many axes more than the first tensor."""
    return lambda keywords, args, rank: (("axis", axis_of(keywords.get("axis", default), rank + more)),)


def along_axes(default: int | None) -> StaticRule:
    """One axis or several; None: all."""
    return lambda keywords, args, rank: (("axes", axes_of(keywords.get("axis", default), rank)),)


def order_axes(keywords: Keywords, args: Sequence[object], rank: int) -> Static:
    """The new order of the axes."""
    order = args[1] if len(args) > 1 else tuple(reversed(range(rank)))
    return (("order", tuple(a % rank for a in whole_numbers(order))),)


def repeat_axes(keywords: Keywords, args: Sequence[object], rank: int) -> Static:
    """How often, and along which axis."""
    return ("times", args[1]), ("axis", axis_of(keywords.get("axis"), rank))


def count_axes(keywords: Keywords, args: Sequence[object], rank: int) -> Static:
    """Whole numbers, or a list of them."""
    return (("counts", tuple(flat(args))),)


def axis_of(axis: object, rank: int) -> int | None:
    """An axis that a function is called with, counted from 0; None: the function works on all elements."""
    assert axis is None or isinstance(axis, int)
    return None if axis is None else axis % max(1, rank)


def axes_of(axis: object, rank: int) -> tuple[int, ...]:
    """The axes that a function is called with, counted from 0; all of them for None."""
    if axis is None:
        return tuple(range(rank))
    return tuple(sorted(a % max(1, rank) for a in whole_numbers(axis)))


def need_elements(name: str, shape: Sequence[int], axis: object) -> None:
    """Raise ValueError where a function that picks one of the elements along an axis, or along several, has none, or
    the tensor no such axis."""
    rank = len(shape)
    if (missing := next((a for a in whole_numbers(axis) if not -rank <= a < rank), None)) is not None:
        raise ValueError(f"axis {missing} is out of bounds for array of dimension {rank}")
    if 0 in (shape[a] for a in axes_of(axis, rank)):
        raise ValueError(f"there are no elements to take the {name} of")


def whole_numbers(x: object) -> tuple[int, ...]:
    """What JAX took for one whole number or several."""
    parts = x if isinstance(x, tuple) else (x,)
    return tuple(part for part in parts if isinstance(part, int))


def flat(args: Sequence[object]) -> Iterator[object]:
    """Arguments, those in lists too."""
    for a in args:
        if isinstance(a, tuple):
            yield from a
        else:
            yield a
