"""Values on the devices where the leaves live: calls on whole arrays, one compiled function for each.

An operand that lives elsewhere (a numpy array, a value computed on the host, an array on other devices) is sent to the
devices of the call, which are those of the operand on the most devices. XLA's partitioner derives what each device
does. Nothing is fetched but scalars: whether a guarded kernel accepts its input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from brainsurgery_jax._lazy import Array, NamedSharding, Sharding, jax
from brainsurgery_jax.apply.homes import Home, bring, can_reach, fetch, home_of, send
from brainsurgery_jax.apply.meshes import shardings_of_results, tree_of_results
from brainsurgery_jax.engine.compute.donation import Donated, Parts, join, split
from brainsurgery_jax.engine.compute.kernels import numbers_of, precise, pure, refusal_of
from brainsurgery_jax.engine.compute.ladder import attempt, climb, rungs_of
from brainsurgery_jax.errors import Diagnostic, PlanError, Span
from brainsurgery_jax.graph.expr import Expr, asked_of, walk
from brainsurgery_jax.op import Kernel, Outcome, Rung, Static
from brainsurgery_jax.protocol import Pending

if TYPE_CHECKING:
    import numpy as np

    Places = Sequence[NamedSharding] | None
    """Where the results of a call are put; None: nowhere in particular."""

ELSEWHERE = "Put both on the devices of one mesh first: `jax.device_put(leaf, sharding)`."


class Placed:
    """Values of nodes on devices, each made once and dropped after its last use.

    `given`: the leaves; `nodes`: what is computed here; `roots`: all that will be asked for, each as often as it stands
    there; `kept`: nodes whose arrays nothing may overwrite; `spend`: whether leaves may be overwritten; `on_host`:
    computes a node that needs no devices.
    """

    def __init__(
        self,
        given: Mapping[Expr, Array],
        nodes: frozenset[Expr],
        roots: Sequence[Expr],
        kept: frozenset[Expr],
        on_host: Callable[[Expr], Array],
        *,
        spend: bool = False,
    ):
        self.given, self.nodes, self.kept, self.on_host, self.spend = given, nodes, kept, on_host, spend
        self.memory: dict[Expr, str | None] = {}
        self._made: dict[Expr, Any] = {}
        self._guards: list[tuple[Expr, jax.Array]] = []
        self._numbers: dict[tuple[str, Sharding | None], jax.Array] = {}
        self._uses = Counter(s for e in walk(roots) if e in nodes for s in dict.fromkeys(e.srcs))
        self._uses.update(roots)

    def of(self, root: Expr) -> Array:
        """The value of a node that is asked for; the last time that it is, it is dropped here."""
        for e in self._unmade(root):
            self._made[e] = self._make(e) if e in self.nodes else self.on_host(e)
        return self._take(root)

    def ask(self, questions: Sequence[Pending], arrays: Mapping[Pending, Mapping[Expr, Array]]) -> list[bool]:
        """Whether each of these holds of its arrays, on the devices; checks that are alike share compiled code."""
        if not questions:
            return []
        home = home_of([x for q in questions for x in arrays[q].values()])
        with home.context:
            verdicts = []
            for q in questions:
                assert q.reduction.traced is not None
                xs = [self._bring(arrays[q][e], home, None) for e in asked_of(q)]
                verdicts.append(_compile_check(q.reduction.traced, home.everywhere, home.is_explicit)(*xs))
            return list(map(bool, map(fetch, verdicts)))

    def accept(self) -> None:
        """Fetch what guarded kernels say of their inputs. Raises PlanError for the first that is refused."""
        for e, accepted in self._guards:
            if not fetch(accepted):
                raise PlanError([refusal_of(e)])
        self._guards.clear()

    def _unmade(self, root: Expr) -> Iterator[Expr]:
        """The nodes below a root that are to be made now, operands first."""
        stack, seen = [(root, False)], set[Expr]()
        while stack:
            e, ready = stack.pop()
            if ready:
                yield e
            elif not (e in seen or e in self._made or e.is_given):
                seen.add(e)
                stack.append((e, True))
                stack.extend((s, False) for s in (reversed(e.srcs) if e in self.nodes else ()))

    def _value(self, e: Expr) -> Any:
        return self._made[e] if e in self._made else self.given[e]

    def _take(self, e: Expr) -> Any:
        value = self._value(e)
        self._uses[e] -= 1
        if self._uses[e] <= 0:
            self._made.pop(e, None)
        return value

    def _make(self, e: Expr) -> Any:
        if e.is_leaf:
            return e.source.read(e.name)
        if e.is_pick:
            self.memory[e] = self.memory[e.srcs[0]]
            return self._take(e.srcs[0])[e.index]
        operands = [self._value(s) for s in e.srcs]
        home = home_of(operands)
        self.memory[e] = next((self.memory[s] for s in e.srcs if s in self.memory), home.sharding.memory_kind)
        arrays = [self._bring(x, home, e.span) for x in operands]
        results = _shardings(e, arrays, home)
        given = self._gifts(e, operands, arrays, results)
        for s in dict.fromkeys(e.srcs):
            self._take(s)
        del operands
        with home.context:
            return self._call(e, arrays, home, results, given)

    def _call(self, e: Expr, arrays: list[jax.Array], home: Home, results: Places, given: Donated) -> Any:
        assert e.kernel is not None
        numbers = {name: self._number(value, home) for name, value in numbers_of(e).items()}
        if e.kernel.rungs is not None:
            return _climb(e, arrays, numbers, results, home)
        places = None if results is None else tree_of_results(e, results, home.everywhere)
        value = _compiled(e.kernel, e.static, places, home.is_explicit)(*split(arrays, given), numbers)
        if e.kernel.guarded:
            value, accepted = value
            self._guards.append((e, accepted))
        return value

    def _gifts(self, e: Expr, operands: Sequence[Array], arrays: Sequence[jax.Array], results: Places) -> Donated:
        """The position of an operand that the result may take the place of: it is alike, and this is its last use."""
        if len(e.avals) > 1 or len(set(e.srcs)) < len(e.srcs):
            return frozenset()
        for at, s in enumerate(e.srcs):
            alike = s.aval == e.aval and (results is None or arrays[at].sharding == results[0])
            own = s in self._made or self.spend or not isinstance(operands[at], jax.Array)
            if alike and own and s not in self.kept and self._uses[s] <= 1:
                return frozenset([at])
        return frozenset()

    def _number(self, value: np.float64, home: Home) -> jax.Array:
        key = float(value).hex(), home.everywhere
        if key not in self._numbers:
            self._numbers[key] = send(value, home.everywhere)
        return self._numbers[key]

    def _bring(self, x: Array, home: Home, span: Span | None) -> jax.Array:
        if isinstance(x, jax.Array) and not can_reach(x, home):
            text = "the operands live on different devices, and those of one span processes"
            raise PlanError([Diagnostic("apply-devices", text, span, ELSEWHERE)])
        return bring(x, home)


# --- Calls ------------------------------------------------------------------------------------------------------------


def _shardings(e: Expr, arrays: Sequence[jax.Array], home: Home) -> Places:
    """Where the results of a call are put; None: nowhere in particular."""
    if home.mesh is None:
        return None
    return shardings_of_results(e, [_on_mesh(x.sharding, home) for x in arrays], home.mesh)


def _on_mesh(own: Sharding, home: Home) -> NamedSharding | None:
    """A sharding on the mesh of a home; None for any other."""
    return own if isinstance(own, jax.sharding.NamedSharding) and own.mesh == home.mesh else None


@lru_cache(maxsize=4096)
def _compiled(kernel: Kernel, static: Static, places: Any, explicit: bool) -> Callable[..., Any]:
    """A kernel on whole arrays: `f(given, kept, numbers)`, its results put at these places."""
    function = precise(pure(kernel, static))

    def of_parts(given: Parts, kept: Parts, numbers: Mapping[str, object]) -> Any:
        made = function(join(given, kept), numbers)
        return jax.lax.optimization_barrier(made)  # an operand that came back as it is would share its memory

    of_parts.__name__ = kernel.name
    if explicit:
        return jax.jit(jax.sharding.auto_axes(of_parts, out_sharding=places), donate_argnums=0)
    return jax.jit(of_parts, donate_argnums=0, out_shardings=places)


@lru_cache(maxsize=4096)
def _compile_check(holds: Callable[..., Any], place: Any, explicit: bool) -> Callable[..., Any]:
    """A check of arrays, its verdict known on each device."""
    if explicit:
        return jax.jit(jax.sharding.auto_axes(holds, out_sharding=place))
    return jax.jit(holds, out_shardings=place)


@lru_cache(maxsize=4096)
def _compiled_attempt(rung: Rung, place: Sharding | None, explicit: bool) -> Callable[..., Any]:
    """A rung of a call: `f(arrays, numbers, state)`. Whether it is accepted is known on every device."""
    function, chosen = precise(attempt(rung)), None  # by JAX
    if explicit:
        return jax.jit(jax.sharding.auto_axes(function, out_sharding=place))
    places = None if place is None else Outcome(chosen, place, chosen, chosen)  # type: ignore[arg-type]
    return jax.jit(function, out_shardings=places)


def _climb(e: Expr, arrays: list[jax.Array], numbers: Mapping[str, jax.Array], results: Places, home: Home) -> Any:
    """The results of the first way that accepts its own. Raises PlanError if none does."""

    def accept(rung: Rung, outcome: Outcome) -> Any:
        return outcome.value if fetch(outcome.accepted) else None

    def tried(rung: Rung, state: object) -> Outcome:
        return _compiled_attempt(rung, home.everywhere, home.is_explicit)(arrays, numbers, state)

    value = climb(rungs_of(e, home.platform), tried, accept)
    if value is None:
        raise PlanError([refusal_of(e)])
    if results is None:
        return value
    return jax.device_put(value, tuple(results) if len(e.avals) > 1 else results[0])
