"""What is known of an operation of an expression: what computes it, how it is cut, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

from brainsurgery_jax._lazy import Array, Flag
from brainsurgery_jax.expression import cut_rules as cut
from brainsurgery_jax.expression import on_the_way
from brainsurgery_jax.expression.program import Node
from brainsurgery_jax.expression.reductions import Compute, Shape

Guard = Callable[[ModuleType, Node, Shape, "Sequence[Array]"], "tuple[Array, Flag]"]
"""The same, with whether no operand is one that the operation cannot take."""


class Operation(NamedTuple):
    """An operation: what computes it, how cuts of its result pass to its operands, bytes that it takes on the way.

    `sealed`: it rounds. `uncast`: operands that are not cast to the dtype in which it computes. `guard`: computes it
    where some values stop it (`ranges.find_guarded`). `contracts`: it is a matrix product. How results lie in memory:
    `view`: it looks at the elements of its operand in another way, where numpy can, with `needs_order` only if these
    are in row-major order; `orders`: they are in row-major order whatever the operands are.
    """

    compute: Compute
    cut: cut.Rule = cut.elementwise
    on_the_way: on_the_way.Rule = on_the_way.nothing
    sealed: bool = True
    uncast: tuple[int, ...] = ()
    guard: Guard | None = None
    contracts: bool = False
    view: bool = False
    needs_order: bool = False
    orders: bool = False
