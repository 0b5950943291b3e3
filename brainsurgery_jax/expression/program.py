"""An expression as a list of operations with known shapes and dtypes: what is planned with, and what is run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict, cast

from brainsurgery_jax.dtypes import Aval, DType

Static = tuple[tuple[str, object], ...]

IndexPart = int | tuple[int, int, int] | None
"""What an index says of an axis: a place, `(start, stop, step)` as `range` takes them, or None for a new axis."""


class NodeParams(TypedDict):
    """The parameters of nodes that are no tensors; each operation has some of them."""

    index: int
    axis: int | None
    axes: tuple[int, ...]
    keepdims: bool
    order: tuple[int, ...]
    parts: tuple[IndexPart, ...]
    counts: tuple[int, ...]
    times: int
    k: int
    count: int
    span: tuple[float, float, int]
    largest: float | None
    shift: int | tuple[int, ...]
    along: tuple[int, ...] | None
    equation: str
    overflow: str | None


class At(NamedTuple):
    """The result of another node, by its number."""

    number: int


class Literal(NamedTuple):
    """A number of the expression. The text tells 0.0 from -0.0, and 1 from 1.0 and True, which are equal."""

    value: bool | int | float
    text: str

    @staticmethod
    def of(value: bool | int | float) -> Literal:
        return Literal(value, repr(value))


Operand = At | Literal


class Node(NamedTuple):
    """One operation: its operands, what they are cast to (`work`), and the shape and dtype of its result.

    `leaf` is an operand of the whole program, number `index`.
    """

    op: str
    operands: tuple[Operand, ...]
    aval: Aval
    work: DType
    static: Static = ()

    @property
    def is_leaf(self) -> bool:
        """Whether it is an operand of the whole program."""
        return self.op == "leaf"

    @property
    def is_transpose(self) -> bool:
        """Whether it only reorders axes."""
        return self.op == "transpose"

    @property
    def params(self) -> NodeParams:
        """The parameters that are no tensors, by name."""
        return cast(NodeParams, dict(self.static))

    @property
    def sources(self) -> tuple[int, ...]:
        """The numbers of the nodes that it is made of."""
        return tuple(x.number for x in self.operands if isinstance(x, At))


class Computation(NamedTuple):
    """Nodes, each after its operands; the last one is the result."""

    nodes: tuple[Node, ...]

    @property
    def aval(self) -> Aval:
        return self.nodes[-1].aval

    def uses(self) -> list[int]:
        """How often each node is an operand."""
        counts = [0] * len(self.nodes)
        for node in self.nodes:
            for number in node.sources:
                counts[number] += 1
        return counts


def leaf(index: int, aval: Aval) -> Node:
    """A node that stands for operand number `index`."""
    return Node("leaf", (), aval, aval.dtype, (("index", index),))


def append_operation(program: Computation, op: str, aval: Aval, static: Static) -> Computation:
    """A program with one more operation on its result."""
    last = At(len(program.nodes) - 1)
    return Computation((*program.nodes, Node(op, (last,), aval, program.aval.dtype, static)))


def round_result(program: Computation, dtype: DType, overflow: str | None) -> Computation:
    """A program whose result is rounded to a dtype."""
    if program.aval.dtype == dtype and overflow is None:
        return program
    return append_operation(program, "cast", Aval(program.aval.shape, dtype), (("overflow", overflow),))


def below(nodes: Sequence[Node], roots: Iterable[int], stop: Iterable[int] = ()) -> list[int]:
    """The numbers of the nodes that roots are made of, themselves included, in order; not beyond those of `stop`."""
    ends, wanted = set(stop), set(roots)
    for number in range(len(nodes) - 1, -1, -1):
        if number in wanted and number not in ends:
            wanted.update(nodes[number].sources)
    return sorted(wanted)


def excerpt(nodes: Sequence[Node], root: int, replaced: Sequence[int]) -> Computation:
    """The program of one node, in which other nodes are operands: number `replaced[i]` is leaf `i`."""
    place: dict[int, int] = {}
    made: list[Node] = []
    for number in below(nodes, [root], replaced):
        node = nodes[number]
        if number in replaced:
            made.append(leaf(replaced.index(number), node.aval))
        else:
            operands = tuple(At(place[x.number]) if isinstance(x, At) else x for x in node.operands)
            made.append(node._replace(operands=operands))
        place[number] = len(made) - 1
    return Computation(tuple(made))
