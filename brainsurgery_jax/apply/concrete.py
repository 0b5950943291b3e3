"""Values of concrete leaves, each computed where its leaves live, and none looked at that nothing is computed of.

What the host holds (numpy arrays, arrays on one CPU device) is computed block by block with the engine's own evaluator,
so that the bits are those of `run`. What lives on accelerators, on several devices or in pinned memory is computed
there (`placed.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

from brainsurgery_jax._lazy import Array, Sharding, jax, np
from brainsurgery_jax.apply.applied import Applied
from brainsurgery_jax.apply.homes import can_fetch, duplicate, fetch, home_of, is_placed, placed_nodes, send
from brainsurgery_jax.apply.labels import asserts_of, guard_label
from brainsurgery_jax.apply.listening import Show
from brainsurgery_jax.apply.placed import Placed
from brainsurgery_jax.apply.traced import guards, roots_of
from brainsurgery_jax.engine.compute.blas import one_thread
from brainsurgery_jax.engine.compute.devices import accelerators
from brainsurgery_jax.engine.compute.evaluate import Evaluator
from brainsurgery_jax.engine.compute.folds import answer
from brainsurgery_jax.engine.compute.operands import key_of_box
from brainsurgery_jax.engine.plan.schedule import Asked, Written, schedule
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.graph.expr import Expr, asked_of, walk
from brainsurgery_jax.index.boxes import Box
from brainsurgery_jax.lower.fold import diagnose_assert
from brainsurgery_jax.lower.program import Check
from brainsurgery_jax.protocol import (
    Known,
    Pending,
    PendingReport,
    Verdict,
    settle,
)

RootT = TypeVar("RootT", Asked, Written)
T = TypeVar("T")
Result = tuple[Mapping[str, object], Mapping[str, object]]

WHOLE = "Leave the step out, or give it tensors of which each process has all: `jax.device_put` with `P()` as the spec."


def concrete(applied: Applied, checks: str, show: Show, *, donate: bool = False, held: Sequence[object] = ()) -> Result:
    """Leaves by name, and verdicts by label; `show` gets the reports. `donate`: leaves may be overwritten, but for
    those that are `held` elsewhere.

    Raises PlanError (a failed assert) or StoreError (a file).
    """
    with _now(), one_thread():
        asserts = asserts_of(applied.plan, applied.state.checks)
        wanted = [c for c in applied.state.checks if checks != "skip" or all(c is not a for a in asserts.values())]
        asked = [e for c in wanted for q in c.questions for e in asked_of(q)]
        roots = [*applied.names.values(), *asked]
        values = Leaves(applied.given, list(applied.names.values()), asked, donate=donate, held=held)
        verdicts = _judge(wanted, values, show, raises=checks == "raise")
        made = _name(applied, values)
        values.placed.accept()
        _verify_unchanged(roots)
        found = {label: _scalar(verdicts[id(check)]) for label, check in asserts.items() if id(check) in verdicts}
        for call in guards(roots_of(applied, asserts)):  # those that were not accepted have raised by now
            found[guard_label(applied.plan, call)] = _scalar(True)
        if donate:
            _free(applied.given.values(), [*made.values(), *held])
    return made, found


def _now() -> AbstractContextManager[None]:
    """A context that computes now, even under an outer trace that has nothing to do with our leaves.

    Outside of traces it is none: constants of compiled code would be sent to the device one by one.
    """
    traced = isinstance(jax.device_put(np.zeros(())), jax.core.Tracer)
    return jax.ensure_compile_time_eval() if traced else nullcontext()


def _scalar(holds: bool) -> jax.Array:
    return jax.device_put(np.asarray(holds))


def numbers(exprs: Iterable[Expr], given: Mapping[Expr, Array]) -> dict[Expr, int]:
    """The values of integer scalars that a step needs before it can be lowered."""
    wanted = list(exprs)
    with _now():
        found = dict(Leaves(given, wanted, []).values(wanted))
        return {e: int(fetch(value).reshape(-1)[0]) for e, value in found.items()}


class Leaves:
    """Values of nodes and answers to questions, from the host or from devices.

    `roots`: nodes whose values are returned; `asked`: nodes that questions are about, each as often as it is asked.
    `donate`: leaves may be overwritten, but for those that are `held` elsewhere.
    """

    def __init__(
        self,
        given: Mapping[Expr, Array],
        roots: Sequence[Expr],
        asked: Sequence[Expr],
        *,
        donate: bool = False,
        held: Sequence[object] = (),
    ):
        self.given = given
        self.nodes = placed_nodes([*roots, *asked], given)
        counts = Counter(map(id, (*given.values(), *held)))
        twice = (e for e, leaf in given.items() if counts[id(leaf)] > 1)
        distinct = dict.fromkeys(roots)
        kept = frozenset([*distinct, *twice, *self._read_on_host([*roots, *asked])])
        self.placed = Placed(given, self.nodes, [*distinct, *asked], kept, self._on_host, spend=donate)

    def values(self, exprs: Iterable[Expr]) -> Iterator[tuple[Expr, Array]]:
        """The values of different nodes: numpy arrays from the host first, then arrays on devices."""
        wanted = list(exprs)
        mine = (Written(0, "", e) for e in wanted if e not in self.nodes)
        yield from ((root.expr, value) for root, value in self._serve(mine, lambda root, by: by.whole(root.expr)))
        yield from ((e, self.placed.of(e)) for e in wanted if e in self.nodes)

    def answers(self, questions: Iterable[Pending]) -> Iterator[tuple[Pending, object]]:
        """The answers to questions about tensors that the host holds or computes."""
        asked = map(Asked, questions)
        yield from ((root.question, found) for root, found in self._serve(asked, lambda r, by: answer(r.question, by)))

    def arrays(self, question: Pending) -> dict[Expr, Array]:
        """The tensors that a question is about, as arrays where they are."""
        return {e: self.placed.of(e) for e in asked_of(question)}

    def is_about_devices(self, question: Pending) -> bool:
        """Whether it is about tensors that live or are computed on devices."""
        return not self.nodes.isdisjoint(asked_of(question))

    @cached_property
    def everywhere(self) -> Sharding | None:
        """A copy of a tensor on each of the devices of the leaf that is on the most; None: on the default device."""
        return home_of(list(self.given.values())).everywhere

    def _read_on_host(self, roots: Sequence[Expr]) -> Iterator[Expr]:
        """Nodes that the host reads, at a time that devices know nothing of."""
        for e in walk(roots):
            if e not in self.nodes:
                yield from e.srcs
        yield from (e for e in roots if e not in self.nodes)

    def _on_host(self, e: Expr) -> Array:
        return next(value for _, value in self.values([e]))

    def _serve(self, wanted: Iterable[RootT], compute: Callable[[RootT, Evaluator], T]) -> Iterator[tuple[RootT, T]]:
        """Each root with what `compute` makes of it when all that it needs whole is there; what nothing needs any more
        is dropped."""
        roots = list(wanted)
        evaluator = Evaluator(_host(self.given, [e for root in roots for e in root.exprs]), accelerators())
        for task in schedule(roots):
            served: Any = evaluator.serve(task)
            while True:
                # Compiled code gets blocks of what the host holds as numpy arrays: no transfer that a guard is about.
                with jax.transfer_guard("allow"):
                    if (root := next(served, None)) is None:
                        break
                    made = compute(root, evaluator)
                yield root, made


def _host(given: Mapping[Expr, Array], roots: Iterable[Expr]) -> dict[Expr, Array]:
    """The leaves below the roots, as numpy arrays in the machine's byte order."""
    return {e: _native(given[e]) for e in walk(roots) if e.is_given}


def _native(leaf: Array) -> np.ndarray:
    array = np.asarray(leaf)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


# --- Checks -----------------------------------------------------------------------------------------------------------


def _judge(checks: Sequence[Check], leaves: Leaves, show: Show, *, raises: bool) -> dict[int, bool]:
    """Hand over reports and find verdicts, in the order of the plan."""
    questions = [q for c in checks for q in c.questions]
    answers = dict(leaves.answers(q for q in questions if not leaves.is_about_devices(q)))
    out = {}
    for check in checks:
        match check.says:
            case PendingReport() as report:
                known = {q: answers[q] if q in answers else _fetch_answer(check, q, leaves) for q in check.questions}
                show(report.document(known))
            case verdict:
                found = _decide(check, verdict, answers, leaves, explain=raises)
                if raises and not found.holds:
                    raise PlanError([diagnose_assert(check.step, found)])
                out[id(check)] = found.holds
    return out


def _decide(
    check: Check, verdict: Verdict, answers: Mapping[Pending, object], leaves: Leaves, *, explain: bool
) -> Known:
    """What becomes of an assert. Of tensors on devices it is decided there, and `explain`ed by what is then fetched."""
    known = {q: q.judge(answers[q]) for q in check.questions if q in answers}
    others = [q for q in check.questions if q not in answers]
    traced = [q for q in others if q.reduction.traced is not None]
    known |= {q: q.judge(_fetch_answer(check, q, leaves)) for q in others if q not in set(traced)}
    arrays = {q: leaves.arrays(q) for q in traced}
    holds = dict(zip(traced, leaves.placed.ask(traced, arrays), strict=True))
    settled = settle(verdict, known | {q: Known(held) for q, held in holds.items()})
    if explain and settled is not None and not settled.holds:
        settled = settle(verdict, known | {q: Known(True) if holds[q] else _explain(q, arrays[q]) for q in traced})
    assert settled is not None
    return settled


def _explain(question: Pending, arrays: Mapping[Expr, Array]) -> Known:
    """What is wrong with tensors of which something does not hold."""
    if not all(map(can_fetch, arrays.values())):
        names = ", ".join(f"'{e.name}'" for e in walk(arrays) if e.is_given)
        return Known(False, f"it does not hold of {names}: spread over processes, so where is not known to any of them")
    return question.judge(answer(question, Fetched({e: fetch(x) for e, x in arrays.items()})))


def _fetch_answer(check: Check, question: Pending, leaves: Leaves) -> object:
    """The answer to a question that only the host can give: its tensors are fetched."""
    arrays = leaves.arrays(question)
    if not all(map(can_fetch, arrays.values())):
        text = f"{check.step.label}: needs values of tensors that span processes, of which each has a part"
        raise PlanError([Diagnostic("apply-devices", text, check.step.span, WHOLE)])
    return answer(question, Fetched({e: fetch(x) for e, x in arrays.items()}))


class Fetched:
    """Makes boxes and flat ranges of arrays that are on the host."""

    def __init__(self, arrays: Mapping[Expr, Array]):
        self.arrays = arrays

    def box(self, e: Expr, box: Box) -> Array:
        """A box of a tensor."""
        return self.arrays[e][key_of_box(box)]

    def blocks(self, roots: Sequence[Expr], start: int, stop: int) -> Iterator[Array]:
        """Elements `start:stop` of each tensor, flat."""
        yield from (self.arrays[e].reshape(-1)[start:stop] for e in roots)


# --- Leaves -----------------------------------------------------------------------------------------------------------


def _name(applied: Applied, leaves: Leaves) -> dict[str, Array]:
    """The leaves by name. A leaf that nothing changed is the object that came in, its second name a copy of it."""
    names: dict[Expr, str] = {}
    for name, e in applied.names.items():
        names.setdefault(e, name)
    came = applied.came
    made = {e: applied.given[e] for e in names if e.is_given}
    for e, value in leaves.values(e for e in names if not e.is_given):
        made[e] = _place(e, value, came.get(names[e]), leaves)
    # No two names share one array, so that the tree can be donated.
    return {name: made[e] if names[e] == name else duplicate(made[e]) for name, e in applied.names.items()}


def _place(e: Expr, value: Array, old: object, leaves: Leaves) -> jax.Array:
    """A computed value where the leaf is that it replaces, if the caller chose that place; else where its operands are.

    An array that is computed of leaves in the memory of the host goes back there.
    """
    if isinstance(old, jax.Array) and (old.committed or is_placed(old)) and old.shape == value.shape:
        return jax.device_put(value, old.sharding) if isinstance(value, jax.Array) else send(value, old.sharding)
    if not isinstance(value, jax.Array):
        return send(value, _place_of(e, leaves))
    kind = leaves.placed.memory.get(e)
    return value if kind in (None, value.sharding.memory_kind) else _with_memory(value, kind)


def _with_memory(value: jax.Array, kind: str) -> jax.Array:
    return jax.device_put(value, value.sharding.with_memory_kind(kind))


def _place_of(e: Expr, leaves: Leaves) -> Sharding | None:
    """The device of the first leaf that a value is computed of and that the caller put somewhere; of one that no leaf
    is below, those of the tree. None: the default device."""
    below = [leaves.given[s] for s in walk([e]) if s.is_given]
    if not below:
        return leaves.everywhere
    return next((x.sharding for x in below if isinstance(x, jax.Array) and x.committed and not is_placed(x)), None)


def _free(came: Iterable[object], made: Iterable[object]) -> None:
    """Delete the arrays that came and do not go back."""
    returned = set(map(id, made))
    for leaf in came:
        if isinstance(leaf, jax.Array) and id(leaf) not in returned and not leaf.is_deleted():
            leaf.delete()


def _verify_unchanged(roots: Iterable[Expr]) -> None:
    for source in dict.fromkeys(e.source for e in walk(roots) if e.is_leaf):
        source.verify_unchanged()
