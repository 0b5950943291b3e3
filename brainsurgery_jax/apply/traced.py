"""Values of traced and of abstract leaves: kernels called on whole arrays, and verdicts as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any

from brainsurgery_jax._lazy import Array, jax, jnp
from brainsurgery_jax.apply.applied import Applied
from brainsurgery_jax.apply.gradients import with_wide_gradient
from brainsurgery_jax.apply.labels import asserts_of, guard_label, verdict_in
from brainsurgery_jax.apply.listening import Show
from brainsurgery_jax.apply.meshes import Function, ask_traced, call_traced, place_as
from brainsurgery_jax.dtypes import Aval
from brainsurgery_jax.engine.compute.kernels import call_block, compiled, numbers_of, single_numbers_of
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.graph.expr import Expr, asked_of, runs_on_devices, walk
from brainsurgery_jax.lower.program import Check
from brainsurgery_jax.op import Kernel, Static
from brainsurgery_jax.protocol import Every, Joint, Known, Negated, PartVerdict, Pending, PendingReport, Some, Verdict

Result = tuple[Mapping[str, object], Mapping[str, object]]

RETURNED = 'Use checks="return" to get the verdicts as arrays, or checks="skip" to leave them out.'


class Values:
    """Values of nodes, each made once; what guarded kernels say of their inputs collects in `accepted`.

    `narrow`: the caller's configuration has no 64-bit types.
    """

    def __init__(self, given: Mapping[Expr, Array], *, narrow: bool = False):
        self.narrow = narrow
        self.made: dict[Expr, Any] = dict(given)
        self.accepted: dict[Expr, jax.Array] = {}

    def of(self, root: Expr) -> Any:
        """The value of a node."""
        for e in walk([root]):
            if e not in self.made:
                self.made[e] = self._make(e)
        return self.made[root]

    def _make(self, e: Expr) -> Any:
        if e.is_const:
            return jnp.asarray(e.value)
        if e.is_leaf:
            return e.source.read(e.name)
        if e.is_pick:
            return self.made[e.srcs[0]][e.index]
        assert e.kernel is not None, e
        if e.kernel.blocks:
            return _from_blocks(e)
        call, operands = compiled(e.kernel, e.static), [self.made[s] for s in e.srcs]
        if self.narrow:
            call = with_wide_gradient(call, e)
        result = call_traced(e, _by_platform(e, call), operands, numbers_of(e))
        if e.kernel.guarded:
            result, self.accepted[e] = result
        return result


def _by_platform(e: Expr, call: Function) -> Function:
    """The function of a call; where accelerators have a ladder of their own, theirs on all platforms but the CPU."""
    if e.kernel is None or e.kernel.within is None or not runs_on_devices(e):
        return call
    other, single = compiled(e.kernel.within, e.static), single_numbers_of(e)

    def choose(operands: list[Array], numbers: Mapping[str, object]) -> Any:
        return jax.lax.platform_dependent(
            operands, cpu=lambda xs: call(xs, numbers), default=lambda xs: other(xs, single)
        )

    return choose


def _from_blocks(e: Expr) -> jax.Array:
    """A tensor made from nothing, its blocks one after another."""
    first = call_block(e, 0)
    rest = [call_block(e, number) for number in range(1, -(-e.aval.size // first.size))]
    return jnp.concatenate([first, *rest])[: e.aval.size].reshape(e.aval.shape)


def guards(roots: Iterable[Expr]) -> list[Expr]:
    """The calls below the roots whose kernels may refuse values of these dtypes."""
    return [e for e in walk(roots) if e.kernel is not None and e.kernel.guarded and _may_refuse(*_signature(e))]


def _signature(e: Expr) -> tuple[Kernel, tuple[Aval, ...], Static, tuple[str, ...]]:
    assert e.kernel is not None
    return e.kernel, tuple(s.aval for s in e.srcs), e.static, tuple(name for name, _ in e.numbers)


@lru_cache(maxsize=4096)
def _may_refuse(kernel: Kernel, avals: tuple[Aval, ...], static: Static, numbers: tuple[str, ...]) -> bool:
    """Whether a guarded kernel's verdict depends on its inputs at all: scaling floats, say, is always accepted."""
    xs = [jax.ShapeDtypeStruct(a.shape, jnp.dtype(a.dtype.numpy)) for a in avals]
    ns = {name: jax.ShapeDtypeStruct((), jnp.float64) for name in numbers}
    jaxpr = jax.make_jaxpr(lambda xs, ns: kernel.fn(*xs, **dict(static), **ns)[-1])(xs, ns).jaxpr
    needed = set(_variables(jaxpr.outvars))
    for equation in reversed(jaxpr.eqns):
        if needed & set(equation.outvars):
            needed |= set(_variables(equation.invars))
    return bool(needed & set(jaxpr.invars))


def _variables(atoms: Iterable[Any]) -> Iterator[Any]:
    return (a for a in atoms if not hasattr(a, "val"))  # literals have a value


# --- Checks -----------------------------------------------------------------------------------------------------------


def verdict_of(verdict: Verdict, values: Values) -> jax.Array:
    """A verdict as a boolean scalar."""
    match verdict:
        case Known(holds):
            return jnp.asarray(holds)
        case Pending(_, reduction):
            assert reduction.traced is not None
            return jnp.asarray(ask_traced(reduction.traced, [values.of(e) for e in asked_of(verdict)]))
        case Joint():  # _refuse_untraceable lets none pass: its questions have no traced form
            raise AssertionError(verdict)
        case PartVerdict(part):
            return verdict_of(part, values)
        case Negated(part):
            return ~verdict_of(part, values)
        case Every(parts):
            return reduce(jnp.logical_and, (verdict_of(p, values) for p in parts), jnp.asarray(True))
        case Some(parts):
            return reduce(jnp.logical_or, (verdict_of(p, values) for p in parts), jnp.asarray(False))


def _report(checks: Sequence[Check], show: Show) -> None:
    """Hand over the reports that need no values. Raises PlanError for reports that do."""
    bad = [c for c in checks if isinstance(c.says, PendingReport) and c.says.pending]
    if bad:
        hint = "Use `verbosity: shape`, leave the step out, or apply the plan outside of `jax.jit`."
        raise PlanError(_diagnostics(bad, "cannot print values while JAX traces", hint))
    for check in checks:
        if isinstance(check.says, PendingReport):
            show(check.says.document({}))


def _diagnostics(checks: Iterable[Check], text: str, hint: str) -> list[Diagnostic]:
    names = [(c.step.label, c.step.span) for c in checks]
    return [Diagnostic("apply-values", f"{name}: {text}", span, hint) for name, span in names]


def _refuse_raising(asserts: Iterable[Check], refusing: Iterable[Expr]) -> None:
    """Under a trace nothing can be raised for what values turn out to be."""
    found = _diagnostics(asserts, "an assert on values cannot stop a traced function", RETURNED)
    seen = set()
    for e in refusing:
        assert e.kernel is not None
        if (key := (e.kernel.name, e.span)) not in seen:
            seen.add(key)
            why = e.kernel.why_refused(dict(e.static))
            text = f"{e.kernel.name}: cannot stop a traced function for values that it refuses ({why})"
            found.append(Diagnostic("apply-values", text, e.span, RETURNED))
    if found:
        raise PlanError(found)


def _refuse_untraceable(asserts: Mapping[str, Check]) -> None:
    if bad := [c for c in asserts.values() if any(q.reduction.traced is None for q in c.questions)]:
        hint = 'Use checks="skip", or apply the plan outside of `jax.jit`.'
        raise PlanError(_diagnostics(bad, "this assert has no form that JAX can trace", hint))


# --- Results ----------------------------------------------------------------------------------------------------------


def trace(applied: Applied, checks: str, show: Show, *, narrow: bool) -> Result:
    """Leaves by name and verdicts by label, as traced values; `show` gets the reports, at trace time. `narrow`: see
    `Values`."""
    asserts = asserts_of(applied.plan, applied.state.checks)
    refusing = guards(roots_of(applied, asserts if checks == "return" else {}))
    if checks == "raise":
        _refuse_raising(asserts.values(), refusing)
    if checks == "return":
        _refuse_untraceable(asserts)
    _report(applied.state.checks, show)
    values = Values(applied.given, narrow=narrow)
    came = applied.came
    leaves = {name: place_as(values.of(e), came.get(name)) for name, e in applied.names.items()}
    if checks != "return":
        return leaves, {}
    found = {label: verdict_of(verdict_in(c), values) for label, c in asserts.items()}
    for e in refusing:
        label = guard_label(applied.plan, e)
        found[label] = jnp.logical_and(found.get(label, True), values.accepted[e])
    return leaves, found


def roots_of(applied: Applied, asserts: Mapping[str, Check]) -> list[Expr]:
    """What the result and the asserts are made of."""
    asked = (q for c in asserts.values() for q in c.questions)
    return [*applied.names.values(), *(e for q in asked for e in asked_of(q))]


def abstract(applied: Applied, checks: str, show: Show) -> Result:
    """Leaves by name and verdicts by label, as shapes and dtypes; `show` gets the reports that need no values."""
    asserts = asserts_of(applied.plan, applied.state.checks)
    _report([c for c in applied.state.checks if not isinstance(c.says, PendingReport) or not c.says.pending], show)
    labels = [*asserts, *(guard_label(applied.plan, e) for e in guards(roots_of(applied, asserts)))]
    return (
        {name: _abstract(e, applied.given) for name, e in applied.names.items()},
        {label: jax.ShapeDtypeStruct((), jnp.bool_) for label in labels},
    )


def _abstract(e: Expr, given: Mapping[Expr, Any]) -> object:
    if e.is_given:
        return given[e]
    if e.aval.dtype.numpy is None:  # only moved, so it still has the dtype of the leaf that it is made of
        return jax.ShapeDtypeStruct(e.aval.shape, next(given[s].dtype for s in walk([e]) if s.is_given))
    return jax.ShapeDtypeStruct(e.aval.shape, jnp.dtype(e.aval.dtype.numpy))
