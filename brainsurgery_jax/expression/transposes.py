"""Reductions of transposed tensors as reductions of the tensors as they lie, whose blocks are runs of a file.

A reduction over some axes of `f(x.T, y.T)`, where `f` treats each element by itself, is one over other axes of
`f(x, y)`. Only its small result is transposed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.expression import cut_rules
from brainsurgery_jax.expression.functions import REDUCTIONS
from brainsurgery_jax.expression.operations import OPERATIONS
from brainsurgery_jax.expression.program import At, Computation, Node, excerpt

Order = tuple[int, ...]

SMALL = 1 << 18
"""Bytes of a tensor that is transposed to lie as the others do."""


def reduce_as_it_lies(program: Computation, least: int) -> Computation:
    """A program whose reductions of more than `least` bytes go over transposed tensors as they lie."""
    nodes = program.nodes
    orders = {n: order for n, node in enumerate(nodes) if (order := _order_of(nodes, node, least)) is not None}
    if not orders:
        return program
    made = _Rewritten(nodes)
    for number in range(len(nodes)):
        made.reduce(number, orders[number]) if number in orders else made.keep(number)
    return excerpt(made.nodes, len(made.nodes) - 1, ())


def _order_of(nodes: Sequence[Node], node: Node, least: int) -> Order | None:
    """The order of the axes in which the operand of a reduction is transposed, if it is that and large."""
    if node.op not in REDUCTIONS or len(node.sources) != 1 or nodes[node.sources[0]].aval.nbytes <= least:
        return None
    orders = _orders(nodes, node.sources[0])
    return orders.pop() if orders is not None and len(orders) == 1 else None


def _orders(nodes: Sequence[Node], number: int) -> set[Order] | None:
    """The orders in which tensors are transposed below an elementwise expression; None where it is of others too."""
    node = nodes[number]
    if node.is_transpose:
        return {node.params["order"]}
    if not node.aval.shape or (_is_settled(node) and node.aval.nbytes <= SMALL):
        return set()
    if _is_settled(node):
        return None
    found = [_orders(nodes, source) for source in node.sources]
    if None in found or any(len(nodes[n].aval.shape) not in (0, len(node.aval.shape)) for n in node.sources):
        return None
    return {order for orders in found if orders is not None for order in orders}


def _is_settled(node: Node) -> bool:
    """Whether a node is no operation that treats each element by itself."""
    return node.is_leaf or not node.sources or OPERATIONS[node.op].cut is not cut_rules.elementwise


class _Rewritten:
    """The nodes of a program that is written anew; `places`: where its old ones are."""

    def __init__(self, old: Sequence[Node]) -> None:
        self.old, self.nodes = old, list[Node]()
        self.places: dict[int, int] = {}

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def keep(self, number: int) -> None:
        """A node as it is."""
        self.places[number] = self.add(_with_sources(self.old[number], self.places))

    def reduce(self, number: int, order: Order) -> None:
        """A reduction of what lies before it is transposed."""
        node = self.old[number]
        (source,) = node.sources
        axes = tuple(sorted(order[axis] for axis in node.params["axes"]))
        keepdims, rank = node.params["keepdims"], len(order)
        left = [at for at in range(rank) if keepdims or at not in axes]
        wanted = [order[at] for at in range(rank) if keepdims or order[at] not in axes]
        back = tuple(left.index(at) for at in wanted)
        shape = [0] * len(back)
        for at, size in zip(back, node.aval.shape, strict=True):
            shape[at] = size
        own = {source: self.lie(source, order, {})}
        static = tuple((key, axes if key == "axes" else value) for key, value in node.static)
        made = _with_sources(node, own)._replace(aval=Aval(tuple(shape), node.aval.dtype), static=static)
        place = self.add(made)
        if back != tuple(range(len(back))):
            place = self.add(Node("transpose", (At(place),), node.aval, node.aval.dtype, (("order", back),)))
        self.places[number] = place

    def lie(self, number: int, order: Order, known: dict[int, int]) -> int:
        """The place of a node as it is before it is transposed."""
        if number not in known:
            known[number] = self._lie(number, order, known)
        return known[number]

    def _lie(self, number: int, order: Order, known: dict[int, int]) -> int:
        node = self.old[number]
        if node.is_transpose:
            return self.places[node.sources[0]]
        if not node.aval.shape:
            return self.places[number]
        inverse = tuple(order.index(at) for at in range(len(order)))
        aval = Aval(tuple(node.aval.shape[at] for at in inverse), node.aval.dtype)
        if _is_settled(node):
            operands = (At(self.places[number]),)
            return self.add(Node("transpose", operands, aval, aval.dtype, (("order", inverse),)))
        own = {source: self.lie(source, order, known) for source in node.sources}
        return self.add(_with_sources(node, own)._replace(aval=aval))


def _with_sources(node: Node, places: Mapping[int, int]) -> Node:
    return node._replace(operands=tuple(At(places[x.number]) if isinstance(x, At) else x for x in node.operands))
