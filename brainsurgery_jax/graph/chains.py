"""Chains of moves as single nodes: what a thousand permutations of one tensor make is one permutation of it.

The engine goes over the nodes below each tensor that it writes. Where all tensors of a chain are written, this would
take quadratic time. The program itself keeps every node, since reports tell which steps made a tensor.
"""

from __future__ import annotations

from typing import NoReturn

from brainsurgery_jax._lazy import Array, Num
from brainsurgery_jax.graph.expr import Expr, Graph
from brainsurgery_jax.index.composing import compose_moves, keeps_all
from brainsurgery_jax.index.moves import Moves
from brainsurgery_jax.op import kernel


@kernel(
    moves=lambda avals, params: params["moves"],
    noop=lambda avals, params: keeps_all(params["moves"], avals[0].shape),
)
def move(x: Num[Array, "..."], *, moves: Moves) -> NoReturn:
    """The elements of `x` where `moves` put them."""
    raise AssertionError("elements are moved by their Moves, without JAX")


class Chains:
    """Shortens chains of moves, and remembers what each node became."""

    def __init__(self) -> None:
        self._graph = Graph()
        self._short: dict[Expr, Expr] = {}

    def shorten(self, e: Expr) -> Expr:
        """The same tensor by the fewest moves of the node below its chain, which stays as it is."""
        chain: list[Expr] = []
        while e not in self._short and e.moves is not None and len(e.srcs) == 1:
            chain.append(e)
            e = e.srcs[0]
        short = self._short.get(e, e)
        for node in reversed(chain):
            short = self._short[node] = self._put_over(short, node)
        return short

    def _put_over(self, below: Expr, node: Expr) -> Expr:
        """The moves of a node over what its operand became."""
        assert node.moves is not None
        both = None
        if below.moves is not None and len(below.srcs) == 1:
            both = compose_moves(below.moves, node.moves)
        if both is None and below is node.srcs[0]:
            return node
        self._graph.span = node.span
        src = below if both is None else below.srcs[0]
        return self._graph.call(move, (src,), {"moves": both or node.moves})
