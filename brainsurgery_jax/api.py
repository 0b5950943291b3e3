"""The verbs: load, check, explain, run, apply. All that front ends and libraries call."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Unpack

import brainsurgery_jax.ops  # noqa: F401  (says which ops there are)
from brainsurgery_jax import plugins
from brainsurgery_jax.documents import Document
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.listening import Heard, stops_told
from brainsurgery_jax.lower import Answer, Demand, Program, lower, start
from brainsurgery_jax.lower.kinds import literal_hints
from brainsurgery_jax.plan.declarations import Variable
from brainsurgery_jax.plan.model import PlanData, in_order
from brainsurgery_jax.plan.overrides import is_plan_file, read_plan_files
from brainsurgery_jax.plan.parse import parse
from brainsurgery_jax.plan.python_data import plain_data, read_item
from brainsurgery_jax.plan.source import Map, Node, by_path, compose, dump_yaml, get
from brainsurgery_jax.plan.variables import find_unfilled, with_variables
from brainsurgery_jax.rendering.notebook import HtmlTable, as_html, show_in_treescope
from brainsurgery_jax.rendering.text import as_text
from brainsurgery_jax.results import Explanation, Report, name_of
from brainsurgery_jax.run_options import RunKeywords, RunOptions, choose_publications, refuse_links
from brainsurgery_jax.wording import counted
from brainsurgery_jax.world import Files

if TYPE_CHECKING:
    from brainsurgery_jax.engine.events import StopSignal
    from brainsurgery_jax.engine.run.budget import Budget
    from brainsurgery_jax.engine.run.resume import Resumption
    from brainsurgery_jax.graph.expr import Expr
    from brainsurgery_jax.provenance.recording import Recording


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan, ready to be checked, explained, run, or applied to pytrees. Made by `load`. `variables`: its `vars`;
    `files`: those that it was read from; `document`: its text, with the variables filled."""

    data: PlanData
    problems: tuple[Diagnostic, ...] = ()
    variables: Node | None = None
    files: tuple[str, ...] = ()
    document: Map | None = field(default=None, compare=False, repr=False)

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The mistakes that the plan's text alone tells."""
        return tuple(d for d in self.problems if d.severity == "error")

    def __eq__(self, other: object) -> bool:
        """Whether two plans were read from the same data in the same places. `0.0` and `-0.0` are not, nor `1` and
        `true`: what Python calls equal may give other results."""
        if not isinstance(other, Plan):
            return NotImplemented
        mine, theirs = ((p.data, p.problems, p.variables, p.files) for p in (self, other))
        return mine == theirs and self.data.written == other.data.written

    def __hash__(self) -> int:
        """Equal plans have equal hashes, so that a plan can be a static argument of `jax.jit`."""
        places = tuple(step.span for step in self.data.steps)
        return hash((self.data.inputs, places, self.data.written, self.data.seed, self.files))

    def __repr__(self) -> str:
        inputs, steps, outputs = map(len, (self.data.inputs, self.data.steps, self.data.outputs))
        return f"<Plan: {counted(inputs, 'input')}, {counted(steps, 'step')}, {counted(outputs, 'output')}>"

    __treescope_repr__ = show_in_treescope

    def _repr_html_(self) -> str:
        """What a notebook shows: inputs, steps and outputs."""
        rows = [*(("input", i.alias, i.path) for i in self.data.inputs),
                *(("step", name_of(s), "" if s.span is None else str(s.span)) for s in self.data.steps),
                *(("output", o.alias or "", o.path) for o in self.data.outputs)]  # fmt: skip
        return as_html(repr(self)[1:-1], (), HtmlTable(("", "name", "path or place"), rows))

    def check(self, *, overwrite: bool = False) -> None:
        """Check the plan against the headers of its checkpoints. No tensor is read.

        **Arguments**: with `overwrite` an existing destination is not an error.
        **Returns** None.
        **Raises** PlanError with every mistake, in the order of the plan.
        **Example**:

        >>> bs.load("plan.yaml").check()
        """
        if found := _errors(check(self, Files(overwrite=overwrite))):
            raise PlanError(found)

    def explain(self) -> Explanation:
        """Describe what a run would do. See `brainsurgery_jax.explain`.

        **Returns** an `Explanation`: effects of the steps, bytes copied and computed, projected memory.
        **Raises** PlanError for a plan that cannot run.
        **Example**:

        >>> bs.load("plan.yaml").explain().bytes_copied
        16
        """
        return explain(self)

    def run(self, *, world: Files | None = None, **options: Unpack[RunKeywords]) -> Report:
        """Check the plan, execute it, and publish its outputs.

        **Arguments**: those of `brainsurgery_jax.run`.
        **Returns** a `Report`.
        **Raises** PlanError or StoreError; then nothing was published.
        **Example**:

        >>> bs.load("plan.yaml", by=2).run(overwrite=True).published
        (('out.safetensors', 144, 3),)
        """
        return run(self, world=world, **options)

    def apply(
        self,
        tree: Any = None,
        /,
        *,
        like: Any = None,
        checks: Literal["raise", "return", "skip"] = "raise",
        listen: Callable[[Document], None] | None = None,
        donate: bool = False,
        missing: Literal["error", "keep"] = "error",
        extra: Literal["error", "ignore"] = "error",
        **trees: Any,
    ) -> Any:
        """Apply the plan to pytrees as a pure function, also inside `jax.jit`, `grad`, `vmap` and `scan`.

        Leaves are named by their key paths, joined with dots. Outputs and `save` steps are not executed. What differs
        between concrete, abstract and traced leaves is described in `brainsurgery_jax.apply`.

        **Arguments**: `tree` is bound to the plan's first input (alias `model` for a plan without inputs), `trees` to
        inputs by alias. `like` is a pytree whose structure the result takes. `checks` selects what happens to asserts
        on values: "raise" an error, "return" them as booleans beside the tree, or "skip" them. `listen` gets the report
        of each step that has one. `donate`: concrete arrays of the trees may be overwritten, and those that do not
        come back are deleted. A leaf of `like` that the plan does not make is an error, or with `missing="keep"` kept;
        what the plan makes beside them is an error, or with `extra="ignore"` left out. What was kept or left out is
        logged, and `listen` gets the list of what was taken. Streams of random numbers in `like` stay as they are.
        **Returns** the tree of the alias that the plan's first output would write; with `checks="return"` the pair
        `(tree, {label: verdict})`.
        **Raises** PlanError for a mistake in the plan or a failed assert, StoreError for a file that cannot be read.
        **Example**:

        >>> import jax.numpy as jnp
        >>> plan = bs.load({"transforms": [{"scale_": {"target": "w", "by": 2}}]})
        >>> plan.apply({"w": jnp.ones(2)})
        {'w': Array([2., 2.], dtype=float32)}
        """
        from brainsurgery_jax.apply import Filling, apply

        filling = Filling(missing, extra, listen)
        return apply(self, tree, like=like, checks=checks, trees=trees, donate=donate, filling=filling)


def load(*items: Any, **variables: Any) -> Plan:
    """Load a plan from YAML files, recipes, mappings and `path=value` overrides.

    **Arguments**: `items` are merged in order, overrides last. `"recipe:NAME"` is a plan of the package. Keywords set
    the plan's variables: `load("plan.yaml", rank=16)` fills `${vars.rank}`.
    **Returns** a `Plan`. Mistakes in its steps wait for `check`, so that all are reported at once.
    **Raises** PlanError for what is not a plan at all, or a file that cannot be read.
    **Example**:

    >>> bs.load("plan.yaml", "output=elsewhere.safetensors", by=2)
    <Plan: 1 input, 1 step, 1 output>
    """
    texts = [i if isinstance(i, Map) else _compose(i) if isinstance(i, Mapping) else read_item(i) for i in items]
    if variables:
        texts.append(_compose({"vars": variables}, "keyword ", below="vars."))
    files = tuple(text for text in texts if isinstance(text, str) and is_plan_file(text))
    merged = read_plan_files(texts)
    plan = parse_document(merged.root, merged.variables, merged.declared)
    return replace(plan, problems=(*merged.notes, *plan.problems), files=files)


def _compose(mapping: Mapping[str, Any], head: str = "", below: str = "") -> Map:
    root = by_path(compose(dump_yaml(plain_data(mapping, head, below)), "the mapping"), head, below)
    assert isinstance(root, Map)
    return root


def parse_document(root: Map, replaced: Collection[str] = (), declared: Mapping[str, Variable] = {}) -> Plan:
    """The plan of a composed document. `replaced`, `declared`: see `with_variables`."""
    filled, problems = with_variables(root, replaced=replaced, declared=declared)
    unfilled = find_unfilled(filled) if problems else ()
    plan, more = parse(filled, frozenset((*(d.span for d in problems if d.span), *unfilled)))
    return Plan(plan, (*problems, *more), get(root, "vars"), document=filled)


def expect_plan(given: object, verb: str) -> None:
    """Raises TypeError for what a verb was given in place of a plan, with the call that is right."""
    if not isinstance(given, Plan):
        shown = repr(given) if isinstance(given, str | os.PathLike) else "..."
        raise TypeError(f"{verb} takes a plan, got a {type(given).__name__}. Load it: bs.{verb}(bs.load({shown})).")


def check(plan: Plan, world: Files | None = None) -> tuple[Diagnostic, ...]:
    """Check a plan against the headers of its checkpoints. No tensor is read, and no JAX backend starts.

    **Arguments**: the plan, and the files that it sees (default: those on disk).
    **Returns** every diagnostic, errors and notes, in the order of the plan; none for a plan that is right.
    **Raises** nothing for a mistake in the plan: `Plan.check` does.
    **Example**:

    >>> bs.check(bs.load("plan.yaml"))
    ()
    >>> [mistake.code for mistake in bs.check(bs.load("plan.yaml", "transforms[0].scale_.target=nothing"))]
    ['no-match']
    """
    expect_plan(plan, "check")
    return lower_plan(plan, world).diagnostics


def lower_plan(plan: Plan, world: Files | None = None) -> Program:
    """The program of a plan, whether right or wrong; every diagnostic is in it. Reads headers only."""
    with closing(world or Files()) as files:
        files.also_reads(*plan.files)
        program = _lower(plan, files)
    return program._replace(diagnostics=in_order(plan.data, (*plan.problems, *program.diagnostics)))


def _lower(plan: Plan, files: Files) -> Program:
    return lower(start(plan.data, files), plan.data, files)


def explain(plan: Plan, world: Files | None = None, *, memory: int | str | None = None) -> Explanation:
    """Describe what a run of a plan would do on this machine. Reads headers only.

    **Arguments**: the plan, and the files that it sees (default: those on disk). `memory` is the budget, as for
    `run`.
    **Returns** an `Explanation`: effects of the steps, bytes copied and computed, projected memory, items of work.
    **Raises** PlanError with every mistake of a plan that cannot run.
    **Example**:

    >>> explanation = bs.explain(bs.load("plan.yaml"))
    >>> explanation.bytes_copied, explanation.bytes_computed
    (16, 128)
    >>> [type(item.work).__name__ for item in explanation.items]
    ['Stream', 'Copy']
    """
    expect_plan(plan, "explain")
    from brainsurgery_jax.engine.plan.planner import plan_roots
    from brainsurgery_jax.engine.plan.projection import count_copied, projection, refusal_of
    from brainsurgery_jax.engine.plan.schedule import exprs_of, roots_of
    from brainsurgery_jax.engine.run.budget import default_budget
    from brainsurgery_jax.engine.run.execute import count_tasks, equip
    from brainsurgery_jax.engine.run.staging import cut, held_at_end

    # Nothing is written, so what is there is not in the way.
    with closing(world or Files(overwrite=True)) as files:
        files.also_reads(*plan.files)
        program = _lower(plan, files)
        if errors := in_order(plan.data, (*plan.errors, *program.errors)):
            raise PlanError(errors)
        budget, roots = default_budget(host_bytes=memory), list(roots_of(program))
        _, machine = equip(exprs_of(roots), budget)
        items = plan_roots(roots, machine)
        copied, cuts = count_copied(items), tuple(map(cut, program.publications))
        computed = sum(p.nbytes for p in program.publications) - copied
        needed = projection(items, machine, held_at_end(program.publications))
        return Explanation(
            program, copied, computed, count_tasks(roots, items), *needed, budget.threads, cuts, machine, items,
            refusal_of(items, machine, needed.largest),
        )  # fmt: skip


def run(plan: Plan, *, world: Files | None = None, **options: Unpack[RunKeywords]) -> Report:
    """Check a plan, execute it, publish its outputs.

    **Arguments**: the plan, and the files that it sees (default: those on disk). `listen` gets the engine's events as
    they happen; `overwrite` lets outputs replace existing files; `durable` flushes files to disk before publishing;
    `dry_run` checks and reports, and writes nothing; of several outputs `only` names the one to write; `memory` is the
    budget, a number of bytes or a text such as "5GB" (default: a quarter of the available memory); `devices` is the
    number of accelerators to use ("cpu": none), or which (`engine.devices.Accelerators`); `flags` are on from the
    start, as the op `set` turns them on; `look` is called with each complete output before any is published, and may
    raise; `lock` writes the lock of each output (a path: that of the only output there; `sha256`: with the SHA-256 of
    its files in it; by default only folders carry one, without digests, and with `lock=False` none), `locked` names
    those that the run must agree with; `resume` keeps a journal, and goes on with a run that was interrupted;
    `hard_links` lets files of outputs that are as an input has them be hard links to these; `distributed` tells which
    process of a run over several this is (`engine.run.joining.ProcessAddress`); `stop` is a `threading.Event` that
    stops the run between two items of its work once it is set.
    **Returns** a `Report`: what the steps reported, and what was published as (path, bytes, tensors).
    **Raises** PlanError (a mistake, a failed assert), StoreError (input or output) or Stopped: then nothing was
    published. What stops it from outside (KeyboardInterrupt) carries a note of what was published.
    **Example**:

    >>> bs.run(bs.load("plan.yaml"), overwrite=True).published
    (('out.safetensors', 144, 3),)
    """
    expect_plan(plan, "run")
    return run_with(plan, RunOptions(**options), world)


def run_with(plan: Plan, options: RunOptions, world: Files | None = None) -> Report:
    """Check a plan, execute it, publish its outputs. See `run`."""
    from brainsurgery_jax.engine.events import NEVER
    from brainsurgery_jax.engine.run.agreement import agree, share_machine
    from brainsurgery_jax.engine.run.execute import execute
    from brainsurgery_jax.engine.run.joining import find_hosts
    from brainsurgery_jax.engine.run.staging import Handling, refuse_to_share
    from brainsurgery_jax.engine.run.visible import share_devices

    heard = Heard(options.listen)
    refuse_links(options)
    files = world or Files(overwrite=options.overwrite or options.dry_run)  # a dry run has nothing in its way
    stop = options.stop or NEVER
    with closing(files), stops_told(heard.published), find_hosts(options.distributed, heard.tell) as hosts:
        files.also_reads(*plan.files)
        share_devices(hosts, options.devices)
        budget = share_machine(hosts, options.budget())
        recording = _recording(plan, options, budget)
        if recording is not None:
            files.watch = recording.watch_source
        begun, answer = start(plan.data, files, options.flags), _answer(plan, files, budget, stop)
        program = lower(begun, plan.data, files, answer, None if recording is None else recording.origins)
        if plan.errors or program.errors:  # notes of the same plan may explain them
            raise PlanError(in_order(plan.data, (*plan.errors, *program.diagnostics)))
        program = program._replace(publications=choose_publications(program.publications, options))
        if hosts.count > 1:
            refuse_to_share(program.publications)
            agree(hosts, "run", _identity(plan, program, files, options, shared=True))
        resumption = _resumption(plan, program, files, options, hosts.number)
        handling = Handling(resumption or files.commit, look=options.look)
        if recording is not None:
            recording.begin(program, {i.alias: files.open(i.path) for i in plan.data.inputs})
            handling = recording.handle(resumption or files.commit, options.look)
        with literal_hints(program.effects, plan.data.default_alias):
            handling = handling._replace(resumption=resumption, hard_links=options.hard_links)
            execute(program, budget, heard.tell, handling, stop, hosts)
    steps = tuple(e.step.summary for e in program.effects)
    notes = (*(d for d in program.diagnostics if d.severity == "note"), *heard.noted.values())
    said = tuple(map(as_text, heard.reports))
    dry_run = options.dry_run or program.flags.dry_run
    return Report(said, tuple(heard.published), steps, dry_run, notes, tuple(heard.reports), hosts.number)


def _recording(plan: Plan, options: RunOptions, budget: Budget) -> Recording | None:
    """The record of a run that writes a lock or must agree with one. Raises StoreError for a lock that is none."""
    headers_only = not options.lock and not options.locked
    if headers_only and (options.dry_run or options.lock is False):
        return None
    from brainsurgery_jax.provenance.lock import read_complete
    from brainsurgery_jax.provenance.recording import HEADERS_ONLY, Recording, Wish

    places = [options.locked] if isinstance(options.locked, str) else options.locked or ()
    expected = {place: read_complete(place) for place in places}
    wish = Wish(bool(options.lock), options.lock_path, options.sha256, expected, folders=options.lock is not False)
    return Recording(plan.data, plan.document, HEADERS_ONLY if headers_only else wish, budget)


def _resumption(plan: Plan, program: Program, files: Files, options: RunOptions, process: int) -> Resumption | None:
    """What a run goes on with that can be resumed. Raises StoreError if what was interrupted was another run."""
    if not options.resume or not program.publications:
        return None
    from brainsurgery_jax.engine.run.resume import Resumption

    head = _identity(plan, program, files, options)
    return Resumption(files.commit, [p.path for p in program.publications], head, process)


def _identity(
    plan: Plan, program: Program, files: Files, options: RunOptions, *, shared: bool = False
) -> dict[str, str]:
    """What must be the same for a run that goes on with another, or (`shared`) takes a part in it on another host."""
    from brainsurgery_jax.provenance.identity import identity_of

    sources = files.sources
    return identity_of(plan.data, plan.document, program, sources, plugins.files(), options.devices, shared=shared)


def _answer(plan: Plan, files: Files, budget: Budget, stop: StopSignal) -> Answer:
    """Computes the numbers that steps need; none for a plan with mistakes, which is checked once, at the first."""
    has_mistakes = cache(lambda: bool(plan.errors or _errors(check(plan, files.twin()))))

    def answer(demand: Demand) -> Mapping[Expr, int]:
        from brainsurgery_jax.engine.run.execute import numbers

        if _errors(demand.state.diagnostics) or has_mistakes():
            return {}
        return numbers(demand.exprs, budget, stop)

    return answer


def _errors(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    return [d for d in found if d.severity == "error"]


__all__: Sequence[str] = ("Explanation", "Plan", "Report", "check", "explain", "load", "run")
