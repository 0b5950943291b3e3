"""Values of concrete leaves: block by block with the engine's own evaluator, so that the bits are those of `run`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from brainsurgery_jax._lazy import jax, jnp, np
from brainsurgery_jax.apply.applied import Applied
from brainsurgery_jax.apply.labels import asserts_of, guard_label
from brainsurgery_jax.apply.listening import Show
from brainsurgery_jax.apply.traced import Values, guards, roots_of
from brainsurgery_jax.engine.compute.blas import one_thread
from brainsurgery_jax.engine.compute.devices import accelerators
from brainsurgery_jax.engine.compute.evaluate import Evaluator
from brainsurgery_jax.engine.compute.folds import INTEGER, answer
from brainsurgery_jax.engine.plan.folds import question_of
from brainsurgery_jax.engine.plan.schedule import Asked, Written, schedule
from brainsurgery_jax.errors import PlanError
from brainsurgery_jax.graph.expr import Expr, asked_of, walk
from brainsurgery_jax.lower.fold import diagnose_assert
from brainsurgery_jax.lower.program import Check
from brainsurgery_jax.protocol import Pending, PendingReport, settle

Result = tuple[dict[str, Any], dict[str, Any]]


def concrete(applied: Applied, checks: str, show: Show) -> Result:
    """Leaves by name, and verdicts by label; `show` gets the reports.

    Raises PlanError (a failed assert) or StoreError (a file).
    """
    # Under an outer trace that has nothing to do with our leaves, we still compute now.
    with jax.ensure_compile_time_eval(), one_thread():
        asserts = asserts_of(applied.plan, applied.state.checks)
        wanted = [c for c in applied.state.checks if checks != "skip" or all(c is not a for a in asserts.values())]
        roots = [*applied.names.values(), *(e for c in wanted for q in c.questions for e in asked_of(q))]
        leaves = host(applied.given, roots)
        verdicts = _judge(wanted, leaves, show, raises=checks == "raise")
        values = _values(applied, leaves)
        _verify_unchanged(roots)
        found = {label: jnp.asarray(verdicts[id(check)]) for label, check in asserts.items() if id(check) in verdicts}
        for call in guards(roots_of(applied, asserts)):  # those that were not accepted have raised by now
            found[guard_label(applied.plan, call)] = jnp.asarray(True)
    return values, found


def numbers(exprs: Iterable[Expr], given: Mapping[Expr, Any]) -> dict[Expr, int]:
    """The values of integer scalars that a step needs before it can be lowered."""
    questions = {e: question_of((e,), INTEGER) for e in exprs}
    with jax.ensure_compile_time_eval():
        answers = _answers(list(questions.values()), host(given, list(questions)))
    return {e: answers[q] for e, q in questions.items()}


def host(given: Mapping[Expr, Any], roots: Sequence[Expr]) -> dict[Expr, Any]:
    """The leaves that anything is computed of, as numpy arrays in the machine's byte order."""
    used = (e for e in walk(r for r in roots if not r.is_given) if e.is_given)
    asked = (r for r in roots if r.is_given)
    return {e: _native(given[e]) for e in dict.fromkeys((*used, *asked)) if e.aval.dtype.numpy is not None}


def _native(leaf: Any) -> Any:
    array = np.asarray(leaf)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


# --- Checks -----------------------------------------------------------------------------------------------------------


def _judge(checks: Sequence[Check], leaves: Mapping[Expr, Any], show: Show, *, raises: bool) -> dict[int, bool]:
    """Hand over reports and find verdicts, in the order of the plan."""
    answers = _answers([q for c in checks for q in c.questions], leaves)
    out = {}
    for check in checks:
        match check.says:
            case PendingReport() as report:
                show(report.document(answers))
            case verdict:
                known = settle(verdict, answers)
                assert known is not None
                if raises and not known.holds:
                    raise PlanError([diagnose_assert(check.step, known)])
                out[id(check)] = known.holds
    return out


def _answers(questions: Sequence[Pending], leaves: Mapping[Expr, Any]) -> dict[Pending, Any]:
    served = _serve([Asked(q) for q in questions], leaves)
    return {root.question: answer(root.question, evaluator) for root, evaluator in served if isinstance(root, Asked)}


def _serve(roots: Sequence[Asked | Written], leaves: Mapping[Expr, Any]) -> Iterator[tuple[Any, Evaluator]]:
    """Each root when all that it needs whole is there; what nothing needs any more is dropped."""
    evaluator = Evaluator(leaves, accelerators())
    for task in schedule(roots):
        yield from ((root, evaluator) for root in evaluator.served(task))


# --- Leaves -----------------------------------------------------------------------------------------------------------


def _values(applied: Applied, leaves: Mapping[Expr, Any]) -> dict[str, Any]:
    """The leaves by name. A leaf that nothing changed is the object that came in, its second name a copy of it."""
    made = _compute(list(applied.names.values()), applied.given, leaves)
    came = {e.name: leaf for e, leaf in applied.given.items() if e.source == applied.alias}
    out: dict[str, Any] = {}
    seen: set[Expr] = set()
    for name, e in applied.names.items():
        value = made[e] if e.is_given else _place(made[e], came.get(name))
        # No two names share one array, so that the tree can be donated.
        out[name] = jnp.array(value, copy=True) if e in seen else value
        seen.add(e)
    return out


def _compute(roots: Sequence[Expr], given: Mapping[Expr, Any], leaves: Mapping[Expr, Any]) -> dict[Expr, Any]:
    """The values of the roots. Opaque ones are moved by JAX; the engine's evaluator has numpy arrays only."""
    moved = Values(given)
    made = {e: moved.of(e) for e in roots if e.is_given or e.aval.dtype.numpy is None}
    todo = [Written(0, "", e) for e in dict.fromkeys(roots) if e not in made]
    return made | {root.expr: jnp.array(evaluator.whole(root.expr)) for root, evaluator in _serve(todo, leaves)}


def _place(value: Any, old: Any) -> Any:
    """A computed value where the leaf was that it replaces, if the caller chose that place."""
    if isinstance(old, jax.Array) and old.committed and old.shape == value.shape:
        return jax.device_put(value, old.sharding)
    return value


def _verify_unchanged(roots: Iterable[Expr]) -> None:
    for source in dict.fromkeys(e.source for e in walk(roots) if e.is_leaf):
        source.verify_unchanged()
