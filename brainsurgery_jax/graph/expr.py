"""Expressions: immutable, interned nodes that say how a tensor comes about.

Interning makes common work shared by construction: the same op on the same inputs with the same parameters is one node,
so both factors of a low-rank pair hang on one SVD. Equality is identity, hashing is free, and every walk is iterative,
so that long chains neither overflow the stack nor take exponential time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from enum import StrEnum
from math import copysign
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from brainsurgery_jax.dtypes import Aval, DType, opaque_hint, opaque_message
from brainsurgery_jax.errors import Refusal, Span
from brainsurgery_jax.graph.infer import Numbers, Static, infer
from brainsurgery_jax.op import Kernel, Passes
from brainsurgery_jax.protocol import Pending

if TYPE_CHECKING:
    import numpy as np

    from brainsurgery_jax.codes import Block, Codes
    from brainsurgery_jax.index.moves import Moves
    from brainsurgery_jax.index.parts import Cuts


class NodeKind(StrEnum):
    """The kinds of nodes.

    - `LEAF`: tensor `name` of checkpoint `source`
    - `GIVEN`: leaf `name` of a pytree that the caller holds, under alias `source`
    - `CONST`: a small array that the plan spells out
    - `CALL`: `kernel` applied to `srcs` with `static` and `numbers` parameters; `avals` has one entry per result
    - `PICK`: result number `index` of a call with several results
    - `POISON`: stands for what a failed step would have created
    """

    LEAF = "leaf"
    GIVEN = "given"
    CONST = "const"
    CALL = "call"
    PICK = "pick"
    POISON = "poison"


LEAF, POISON = NodeKind.LEAF, NodeKind.POISON
"""For loops over 90,000 tensors: a name of the module is found faster than a property is called."""


class Expr:
    """A node of the graph. Its `kind` says which of the other fields mean something."""

    __slots__ = (
        "aval", "avals", "id", "index", "kernel", "kind", "moves", "name", "numbers", "paired", "provisional", "source",
        "span", "srcs", "static", "value",
    )  # fmt: skip

    kind: NodeKind
    id: int
    aval: Aval
    avals: tuple[Aval, ...]
    srcs: tuple[Expr, ...]
    kernel: Kernel | None
    moves: Moves | None
    static: tuple[tuple[str, Any], ...]
    numbers: tuple[tuple[str, float], ...]
    index: int
    source: Any
    name: str
    value: np.ndarray | None
    span: Span | None
    provisional: bool
    paired: Paired | None

    @property
    def is_leaf(self) -> bool:
        """Whether it is a tensor of a checkpoint."""
        return self.kind is NodeKind.LEAF

    @property
    def is_given(self) -> bool:
        """Whether it is a leaf of a pytree that the caller holds."""
        return self.kind is NodeKind.GIVEN

    @property
    def is_call(self) -> bool:
        """Whether a kernel computes it."""
        return self.kind is NodeKind.CALL

    @property
    def is_pick(self) -> bool:
        """Whether it is one of the results of a call."""
        return self.kind is NodeKind.PICK

    @property
    def is_const(self) -> bool:
        """Whether it is an array that the plan spells out."""
        return self.kind is NodeKind.CONST

    @property
    def is_poison(self) -> bool:
        """Whether it stands for what a failed step would have created."""
        return self.kind is NodeKind.POISON

    def __repr__(self) -> str:
        what = self.kernel.name if self.kernel else self.name or self.kind
        return f"<{what} {self.aval} #{self.id}>"


class Bound(int):
    """Stands for a number that only data can tell, and bounds it: what is made with it is provisional."""


class Paired(NamedTuple):
    """Codes of a quantized weight that the plan makes, or a part of them: what it was called first. Of codes: what they
    are, the nodes of their parts by name, and how many rows and columns share a scale, if the plan says so."""

    name: str
    codes: Codes | None = None
    parts: Mapping[str, Expr] = MappingProxyType({})
    block: Block | None = None


class Rule(NamedTuple):
    """What a recipe makes of operands of some shapes and dtypes. `avals` None: the first operand itself."""

    avals: tuple[Aval, ...] | None
    moves: Moves | None


class Recipe:
    """A kernel with its parameters. Interned like expressions, and it remembers its rules: of 20,000 tensors few have a
    shape and dtype of their own."""

    __slots__ = ("kernel", "numbers", "provisional", "rules", "static")

    def __init__(self, kernel: Kernel, static: Static, numbers: Numbers, provisional: bool):
        self.kernel, self.static, self.numbers, self.provisional = kernel, static, numbers, provisional
        self.rules: dict[tuple[Aval, ...], Rule] = {}


COMPUTED = ("float", "integer", "bool", "complex")
"""What references call the kinds of dtypes that can be computed on."""
MAX_BYTES = 1 << 60  # of a tensor: far beyond any disk, and so far below 2**63 that no size or place overflows


def _rule(recipe: Recipe, avals: tuple[Aval, ...]) -> Rule:
    kernel, params = recipe.kernel, dict(recipe.static + recipe.numbers)
    for aval in avals:
        if aval.dtype.is_opaque and kernel.moves is None:
            kinds = () if aval.dtype.kind == "packed" else COMPUTED  # packed floats are of kind float, like those meant
            raise Refusal("dtype-opaque", opaque_message(aval.dtype), hint=opaque_hint(aval.dtype), kinds=kinds)
    if kernel.noop is not None and kernel.noop(avals, params):
        return Rule(None, None)
    moves = kernel.moves(avals, params) if kernel.moves else None
    made = infer(kernel, avals, recipe.static, recipe.numbers, moves)
    if (large := next((aval for aval in made if aval.nbytes > MAX_BYTES), None)) is not None:
        hint = "Correct the numbers that it is made with: a width, a shape, a count."
        raise Refusal("tensor-too-large", f"the result would be {large}, more than any disk can hold", hint=hint)
    return Rule(made, moves)


class Graph:
    """Makes expressions, each only once. One graph serves one run (or session); nothing in it is ever changed,
    except that codes and scales that a step made are noted as such (`pair`)."""

    def __init__(self) -> None:
        self._nodes: dict[Hashable, Expr] = {}  # all but leaves
        self._leaves: dict[int, dict[str, Expr]] = {}  # by source and name, without a key of their own for each
        self._made = 0  # nodes
        self._recipes: dict[Hashable, Recipe] = {}
        self.span: Span | None = None  # of the step at work, kept in new nodes to say later where a value came from

    def fork(self) -> Graph:
        """A graph that knows all of these expressions, and keeps new ones to itself."""
        twin = Graph()
        twin._nodes, twin._recipes, twin._made = dict(self._nodes), dict(self._recipes), self._made
        twin._leaves = {source: dict(leaves) for source, leaves in self._leaves.items()}
        return twin

    def _node(
        self,
        key: Hashable,
        kind: NodeKind,
        avals: tuple[Aval, ...],
        srcs: tuple[Expr, ...] = (),
        recipe: Recipe | None = None,
    ) -> Expr:
        """A new node; the fields that only nodes of its kind have are set by the caller."""
        e = Expr()
        e.kind, e.id, e.aval, e.avals, e.srcs, e.span = kind, self._made, avals[0], avals, srcs, self.span
        e.moves, e.index, e.name, e.source, e.value, e.paired = None, 0, "", None, None, None
        if recipe is None:
            e.kernel, e.static, e.numbers = None, (), ()
        else:
            e.kernel, e.static, e.numbers = recipe.kernel, recipe.static, recipe.numbers
        e.provisional = (recipe is not None and recipe.provisional) or any([s.provisional for s in srcs])
        self._nodes[key] = e
        self._made += 1
        return e

    def leaf(self, source: Any, name: str, aval: Aval) -> Expr:
        """A tensor of an open checkpoint (`source` is compared by identity)."""
        leaves = self._leaves.get(id(source))
        if leaves is None:
            leaves = self._leaves[id(source)] = {}
        if (known := leaves.get(name)) is not None:
            return known
        e = leaves[name] = Expr()  # as in `_node`, which takes twice as long: there may be 90,000 of them
        e.kind, e.id, e.aval, e.avals, e.srcs, e.span = LEAF, self._made, aval, (aval,), (), self.span
        self._made += 1
        e.moves, e.index, e.name, e.source, e.value, e.paired = None, 0, name, source, None, None
        e.kernel, e.static, e.numbers, e.provisional = None, (), (), False
        return e

    def placeholder(self, alias: str, name: str, aval: Aval) -> Expr:
        """A leaf of a pytree that will be given when the program is applied."""
        key = ("given", alias, name)
        if (known := self._nodes.get(key)) is not None:
            return known
        e = self._node(key, NodeKind.GIVEN, (aval,))
        e.source, e.name = alias, name
        return e

    def const(self, value: np.ndarray, dtype: DType) -> Expr:
        """A small array spelled out by the plan."""
        key = ("const", dtype, value.shape, value.tobytes())
        if (known := self._nodes.get(key)) is not None:
            return known
        e = self._node(key, NodeKind.CONST, (Aval(value.shape, dtype),))
        e.value = value
        return e

    def poison(self) -> Expr:
        """What a failed step would have made: everything made of it is poison too, silently."""
        key = ("poison",)
        return self._nodes.get(key) or self._node(
            key, NodeKind.POISON, (Aval((), DType("unknown", "?", "", 0, None, "other")),)
        )

    def recipe(self, kernel: Kernel, params: Mapping[str, Any]) -> Recipe:
        """A kernel with its parameters, each only once: a step makes one for all the tensors that it matches."""
        numbers = tuple((k, v) for k, v in params.items() if k in kernel.numbers and v is not None)
        static = tuple((k, v) for k, v in params.items() if k not in kernel.numbers or v is None)
        provisional = any(isinstance(v, Bound) for v in params.values())
        signs = tuple(copysign(1, v) for _, v in numbers if isinstance(v, float))  # 0.0 and -0.0 are equal
        key = (kernel, static, numbers, signs, provisional)
        if (known := self._recipes.get(key)) is None:
            known = self._recipes[key] = Recipe(kernel, static, numbers, provisional)
        return known

    def call(self, kernel: Kernel, srcs: tuple[Expr, ...], params: Mapping[str, Any]) -> Expr:
        """`kernel` on `srcs`: a node with one or several results, its shapes inferred. Raises `Refusal`."""
        return self.apply(self.recipe(kernel, params), srcs)

    def apply(self, recipe: Recipe, srcs: tuple[Expr, ...]) -> Expr:
        """The same for a recipe."""
        key = (recipe, srcs)
        if (known := self._nodes.get(key)) is not None:
            return known
        avals = tuple([s.aval for s in srcs])
        if (rule := recipe.rules.get(avals)) is None:
            if any(s.is_poison for s in srcs):
                return self.poison()
            rule = recipe.rules[avals] = _rule(recipe, avals)
        if rule.avals is None:
            return srcs[0]
        e = self._node(key, NodeKind.CALL, rule.avals, srcs, recipe)
        e.moves = rule.moves
        return e

    def pick(self, call: Expr, index: int) -> Expr:
        """Result number `index` of a call."""
        if call.is_poison:
            return call
        key = ("pick", call, index)
        if (known := self._nodes.get(key)) is not None:
            return known
        e = self._node(key, NodeKind.PICK, (call.avals[index],), (call,))
        e.index = index
        return e


def pair(e: Expr, codes: Codes, parts: Mapping[str, Expr], block: Block | None) -> None:
    """Keep in mind which scales belong to codes that are computed. The first names count: a node that was made before
    has the same scales."""
    for name, part in parts.items():
        if not part.is_leaf and not part.is_given:
            part.paired = part.paired or Paired(name)
    if e.paired is None or e.paired.codes is None:
        e.paired = Paired(codes.name, codes, parts, block)


def asked_of(question: Pending) -> tuple[Expr, ...]:
    """The nodes that a question is about, which ops know by a narrower protocol."""
    return cast("tuple[Expr, ...]", question.exprs)


def walk(roots: Iterable[Expr], stop: Callable[[Expr], bool] | None = None) -> Iterator[Expr]:
    """Every node below the roots once, operands before what uses them, without recursion; not those below nodes to
    `stop` at."""
    seen: set[Expr] = set()
    for root in roots:
        if root in seen:
            continue
        if stop is None and not any([src.srcs for src in root.srcs]):  # as are most roots of most plans
            for node in (*root.srcs, root):
                if node not in seen:
                    seen.add(node)
                    yield node
            continue
        stack: list[tuple[Expr, bool]] = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                yield node
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                if stop is None or not stop(node):
                    stack.extend((s, False) for s in reversed(node.srcs) if s not in seen)


def operand_avals(e: Expr) -> tuple[Aval, ...]:
    """Shapes and dtypes of what a node is made of."""
    return tuple(s.aval for s in e.srcs)


def is_whole(e: Expr) -> bool:
    """Whether a node's value is computed as one piece and kept, not streamed: contractions, factorizations, and
    the small values of folds."""
    kernel = e.kernel
    streamed = kernel is None or kernel.elementwise or e.moves is not None or kernel.blocks or kernel.parts is not None
    return e.is_call and not streamed


def passes_of(e: Expr) -> Passes | None:
    """The passes over its operands that compute a node; None for what is not computed so."""
    if e.kernel is None or e.kernel.fold is None:
        return None
    return e.kernel.fold(tuple(s.aval for s in e.srcs), dict(e.static))


def is_fold(e: Expr) -> bool:
    """Whether a node is a small value that is computed by going over its operands block by block."""
    return e.kernel is not None and e.kernel.fold is not None


def cuts_of(e: Expr) -> Cuts | None:
    """Along which axes a node is made in parts, each of the same part of its operands; None if it is not."""
    if e.kernel is None or e.kernel.parts is None:
        return None
    return e.kernel.parts(tuple(s.aval for s in e.srcs), dict(e.static))


def runs_on_numpy(e: Expr) -> bool:
    """Whether a call runs on numpy arrays as fast as compiled for the CPU."""
    kernel = e.kernel
    return kernel is not None and kernel.host is not None and kernel.host(tuple(s.aval for s in e.srcs), dict(e.static))


def runs_on_devices(e: Expr) -> bool:
    """Whether a call may be computed by accelerators: the kernel says so, and no number needs more than float32."""
    kernel = e.kernel
    if kernel is None or kernel.device is None or is_fold(e):
        return False
    single = all(a.dtype.bits <= 32 for a in (*operand_avals(e), *e.avals))
    return single and kernel.device(operand_avals(e), dict(e.static))
