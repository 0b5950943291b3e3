"""Where the elements of a rearranged tensor come from, and whether codes and their scales were rearranged alike."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from brainsurgery_jax.codes import Block, CodeFormat, Grid, find_grid
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.graph.expr import Expr, Graph, walk
from brainsurgery_jax.index.boxes import strides
from brainsurgery_jax.index.moves import Concat, Moves
from brainsurgery_jax.store.base import TensorInfo

Position = tuple[int, ...]

MOST_ALONG = 128
"""So many scales are looked at along each axis, and as many as leaves, if these are more."""


class Waypoint(NamedTuple):
    """A node of a rearrangement: how it moves elements of which other nodes, by their numbers, of these shapes; without
    moves a leaf. `ends`: of a concatenation, where its parts end, since there may be thousands."""

    moves: Moves | None
    srcs: tuple[int, ...]
    avals: tuple[Aval, ...]
    aval: Aval
    ends: tuple[int, ...] = ()


class Trail(NamedTuple):
    """How a tensor is rearranged from leaves. `nodes`, operands first, knows no names: tensors of other layers that
    were rearranged alike have the same. `leaves`: by the numbers of nodes."""

    nodes: tuple[Waypoint, ...]
    leaves: dict[int, Expr]

    @property
    def is_whole(self) -> bool:
        """Whether every leaf is there with as many elements as it has."""
        return self.nodes[-1].aval.size == sum(leaf.aval.size for leaf in self.leaves.values())


def is_start(expr: Expr) -> bool:
    """Whether a node is followed no further: a leaf, or codes or scales that the plan made."""
    return expr.is_leaf or expr.is_given or expr.paired is not None


def trail_of(expr: Expr, *, filled: bool = False) -> Trail | None:
    """How a tensor is rearranged from leaves of checkpoints and pytrees, and from codes and scales that the plan made;
    None if something is computed on the way. `filled`: constants of the plan, such as those of `pad`, are leaves, too.
    """
    if is_start(expr):
        return Trail((Waypoint(None, (), (), expr.aval),), {0: expr})
    if expr.moves is None:
        return None
    numbers, nodes, leaves = dict[Expr, int](), list[Waypoint](), dict[int, Expr]()
    for node in walk([expr], stop=is_start):
        numbers[node], start = len(nodes), is_start(node) or (filled and node.is_const)
        if start:
            leaves[len(nodes)] = node
        elif not node.is_call or node.moves is None:
            return None
        moves, srcs = (None, ()) if start else (node.moves, node.srcs)
        avals = tuple(src.aval for src in srcs)
        ends = tuple(accumulate(aval.shape[moves.axis] for aval in avals)) if isinstance(moves, Concat) else ()
        nodes.append(Waypoint(moves, tuple(numbers[src] for src in srcs), avals, node.aval, ends))
    return Trail(tuple(nodes), leaves)


def leaves_of(expr: Expr) -> Iterable[Expr]:
    """The leaves that a tensor is rearranged from; none if something is computed on the way."""
    if is_start(expr):
        return (expr,)
    trail = trail_of(expr, filled=True) if expr.moves is not None else None
    return () if trail is None else trail.leaves.values()


class LeavesBeside(Mapping[str, Expr]):
    """The tensors of the checkpoint of a leaf, as leaves."""

    def __init__(self, leaf: Expr, graph: Graph):
        self._source, self._graph = leaf.source, graph
        self._tensors: Mapping[str, TensorInfo] = leaf.source.header.tensors

    def __getitem__(self, name: str) -> Expr:
        return self._graph.leaf(self._source, name, self._tensors[name].aval)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors


def origin(nodes: tuple[Waypoint, ...], position: Position) -> tuple[int, Position]:
    """The number of the leaf that an element comes from, and its position there."""
    number = len(nodes) - 1
    while (moves := (at := nodes[number]).moves) is not None:
        src = 0
        if moves.flat_only:
            position = _unravel(_ravel(position, at.aval.shape), at.avals[0].shape)
        elif isinstance(moves, Concat):
            axis = moves.axis
            src = bisect_right(at.ends, position[axis])
            position = (*position[:axis], position[axis] - (at.ends[src - 1] if src else 0), *position[axis + 1 :])
        else:
            part = moves.parts(at.avals, tuple((p, p + 1, 1) for p in position))[-1]  # the last one lies above others
            src, position = part.src, tuple(start for start, _, _ in part.box)
        number = at.srcs[src]
    return number, position


def _ravel(position: Position, shape: tuple[int, ...]) -> int:
    return sum(p * stride for p, stride in zip(position, strides(shape), strict=True))


def _unravel(flat: int, shape: tuple[int, ...]) -> Position:
    made = list[int]()
    for stride in strides(shape):
        place, flat = divmod(flat, stride)
        made.append(place)
    return tuple(made)


# --- Codes and scales -------------------------------------------------------------------------------------------------


class Sharing(NamedTuple):
    """Which scale belongs to an element of codes: scales have the shape `grid` when they are broadcast, and `each` so
    many elements share one along each axis."""

    grid: Grid
    each: Grid
    shape: Grid

    def scale_of(self, position: Position) -> Position:
        """The position of the scale of an element."""
        places = zip(position, self.grid, self.each, strict=True)
        return _unravel(_ravel(tuple(p // each if n > 1 else 0 for p, n, each in places), self.grid), self.shape)


class Crossing(NamedTuple):
    """An element of codes whose scale is not the one beside it: where it and its scale come from, and where the scale
    that is beside it does. Leaves by the numbers of nodes."""

    at: Position
    code: tuple[int, Position]
    own: Position
    found: tuple[int, Position]


class Pairs(NamedTuple):
    """What was found of codes and scales that were rearranged: the leaves of scales that stand beside leaves of codes,
    and the first element with a scale of another place of its leaf."""

    leaves: tuple[tuple[int, int], ...]
    crossing: Crossing | None


def sharing(format: CodeFormat, codes: Aval, scales: Aval, usual: Block) -> Sharing | None:
    """How codes share scales; None if that is not known from shapes."""
    match format:
        case CodeFormat.MXFP4:
            if codes.shape[:-1] != scales.shape:
                return None
            return Sharing((*scales.shape, 1), (1,) * len(codes.shape), scales.shape)
        case CodeFormat.SCALED | CodeFormat.ROWS:
            found = find_grid(codes.shape, scales.shape, None, usual)
            if found is None:
                return None
            grid, block = found
            return Sharing(grid, (*(1 for _ in codes.shape[:-2]), *block), scales.shape)
        case CodeFormat.PACKED | CodeFormat.PACKED_ROWS | CodeFormat.TABLE:
            return None


@lru_cache(maxsize=1024)
def follow(format: CodeFormat, codes: tuple[Waypoint, ...], scales: tuple[Waypoint, ...], usual: Block) -> Pairs | None:
    """Which leaves of scales stand beside which leaves of codes, and the first element whose scale is that of another
    place. None if it is not known how codes share scales."""
    beside = sharing(format, codes[-1].aval, scales[-1].aval, usual)
    if beside is None or codes[-1].aval.size == 0:
        return None
    pairs = dict[tuple[int, int], Sharing | None]()
    crossing: Crossing | None = None
    most = max(MOST_ALONG, sum(node.moves is None for node in codes))
    for at in _places(codes[-1].aval.shape, beside, most):
        code, found = origin(codes, at), origin(scales, beside.scale_of(at))
        pair = code[0], found[0]
        if pair not in pairs:
            pairs[pair] = sharing(format, codes[code[0]].aval, scales[found[0]].aval, usual)
        own = pairs[pair]
        if crossing is None and own is not None and own.scale_of(code[1]) != found[1]:
            crossing = Crossing(at, code, own.scale_of(code[1]), found)
    return Pairs(tuple(pairs), crossing)


def _places(shape: Grid, beside: Sharing, most: int) -> Iterator[Position]:
    """The elements that are looked at: the first and the last of blocks along each axis in turn, at the beginning and
    the end of the others. Moves act on one axis at a time, so that these tell of all."""
    ends = (0,) * len(shape), tuple(size - 1 for size in shape)
    for axis, size in enumerate(shape):
        count, each = beside.grid[axis], beside.each[axis] if beside.grid[axis] > 1 else size
        step = -(-count // most) * each
        along = dict.fromkeys(p for a in range(0, size, step) for p in (a, min(a + each, size) - 1))
        yield from dict.fromkeys((*end[:axis], p, *end[axis + 1 :]) for p in along for end in ends)
