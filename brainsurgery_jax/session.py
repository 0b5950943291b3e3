"""An interactive session as a value: a checkpoint's state after some steps, and the states before them.

Nothing is changed in place: a step yields another session, a step that fails yields none, and to undo is to go back to
the value before. Lowering tells what a step does; only what must be known at once is computed: text, asserts, numbers
that shapes depend on, and checkpoints that a `save` writes, which are published at the end of their step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, NamedTuple, Unpack

from brainsurgery_jax import api
from brainsurgery_jax.errors import Diagnostic, PlanError
from brainsurgery_jax.graph.expr import Expr
from brainsurgery_jax.listening import stops_told
from brainsurgery_jax.lower import Demand, Effect, Program, Publication, State, lower_step, start
from brainsurgery_jax.lower.fold import ask_output
from brainsurgery_jax.lower.kinds import literal_hints
from brainsurgery_jax.lower.outputs import inside, publications
from brainsurgery_jax.lower.program import flatten
from brainsurgery_jax.op import SinkOp
from brainsurgery_jax.plan.model import Input, PlanData, Step
from brainsurgery_jax.plan.parse import parse_step
from brainsurgery_jax.plan.source import Map, Node, Scalar, get
from brainsurgery_jax.plan.typed import nodes
from brainsurgery_jax.plan.variables import with_variables
from brainsurgery_jax.preview import Preview, matches_of
from brainsurgery_jax.protocol import PendingReport
from brainsurgery_jax.run_options import RunKeywords, RunOptions
from brainsurgery_jax.world import Files


class StepOutcome(NamedTuple):
    """A step that is understood and not carried out yet: the session after it, what it does to the names, and what must
    be computed for it."""

    session: Session
    effects: tuple[Effect, ...]
    program: Program

    def run(self, listen: Callable[[Any], None] | None = None) -> Session:
        """Compute and publish what the step asks for; the session after it. Raises PlanError (a failed assert) or
        StoreError: then nothing was published, and the session before the step is as good as ever."""
        if self.program.checks or self.program.publications:
            from brainsurgery_jax.engine.events import NEVER, Published, ignore
            from brainsurgery_jax.engine.run.execute import execute

            published: list[tuple[str, int, int]] = []

            def tell(event: Any) -> None:
                if isinstance(event, Published):
                    published.append((event.path, event.nbytes, event.tensors))
                (listen or ignore)(event)

            default = self.session.state.default_alias
            with stops_told(published), literal_hints(self.program.effects, default):
                options = self.session.options
                execute(self.program, options.budget(), tell, stop=options.stop or NEVER)
            self.session.world.settle()
        return self.session


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """The state after `steps`, on top of the inputs, seed and outputs of `plan`. Made by `begin`.

    `before` is the session before the last step, `after` the one that an undo left. `options` are those of each step.
    """

    plan: PlanData
    state: State
    world: Files
    variables: Node | None = None
    options: RunOptions = field(default_factory=RunOptions)
    steps: tuple[Step, ...] = ()
    only_told: frozenset[int] = frozenset()
    """Positions of the steps that changed nothing and only printed."""
    before: Session | None = None
    after: Session | None = None

    def __repr__(self) -> str:
        return f"<Session: {len(self.state.spaces)} aliases, {len(self.steps)} steps>"

    @classmethod
    def begin(cls, plan: api.Plan | None = None, world: Files | None = None, **options: Unpack[RunKeywords]) -> Session:
        """Begin a session: open the inputs of a plan. Its own steps are not taken: `session.step(*plan.data.steps)`.

        **Arguments**: a plan (default: one without inputs), and the files that it sees (default: those on disk).
        `options` are the keywords of `run`, for every step; the op `set` turns `dry_run` off again.
        **Returns** the session before the first step.
        **Raises** PlanError for an input that cannot be opened.
        **Example**:

        >>> bs.Session.begin(bs.load("plan.yaml"))
        <Session: 1 aliases, 0 steps>
        """
        return cls.begin_with(plan or api.Plan(PlanData()), world, RunOptions(**options))

    @classmethod
    def begin_with(cls, plan: api.Plan, world: Files | None, options: RunOptions) -> Session:
        """The session before the steps of a plan. See `begin`."""
        files = world or Files(overwrite=options.overwrite)
        files.also_reads(*plan.files)
        data = replace(plan.data, steps=())
        flags = options.flags._replace(dry_run=options.dry_run or options.flags.dry_run)
        state = start(data, files, flags)
        if found := (*(d for d in plan.errors if d.code != "vars-unused"), *_errors(state.diagnostics)):
            raise PlanError(found)
        return cls(data, state, files, plan.variables, options)

    def close(self) -> None:
        """Close the checkpoints that this session, and all before it, opened.

        **Returns** None.
        **Raises** nothing.
        **Example**:

        >>> bs.Session.begin().close()
        """
        self.world.close()

    # --- text

    def parse(self, text: str) -> tuple[Step, ...]:
        """Parse steps as they are typed at the prompt.

        **Arguments**: steps in YAML, or one step a line in the short form.
        **Returns** the steps, ready for `step`.
        **Raises** PlanError for text that spells no steps.
        **Example**:

        >>> session = bs.Session.begin(bs.load("plan.yaml"))
        >>> [step.op.name for step in session.parse("delete: {target: bias}")]
        ['delete']
        """
        return tuple(self.understand(node) for node in nodes(text))

    def understand(self, node: Node) -> Step:
        """The step that a node spells, as things stand in this session. Raises PlanError."""
        step, problems = self._read(node)
        if problems:
            raise PlanError(problems)
        return step

    def _read(self, node: Node) -> tuple[Step, tuple[Diagnostic, ...]]:
        filled, unfilled = self._fill_variables(node)
        if unfilled:
            return Step(None, {}, node.span), unfilled
        step, problems = parse_step(filled, self.state.default_alias, tuple(self.state.spaces))
        return step, problems if self.state.spaces else _without_checkpoint(problems)

    def _fill_variables(self, node: Node) -> tuple[Node, tuple[Diagnostic, ...]]:
        """A node with the plan's variables filled in."""
        entries = (("vars", self.variables), ("step", node))
        root = Map(tuple((Scalar(k, k, node.span), v) for k, v in entries if v is not None), node.span)
        filled, problems = with_variables(root)
        return get(filled, "step") or node, tuple(d for d in problems if d.code != "vars-unused")

    # --- steps

    def step(self, *steps: Step) -> StepOutcome:
        """Take steps, all or none of them. Reads headers; computes only the numbers that shapes depend on.

        **Arguments**: steps, as `parse` returns them.
        **Returns** a `StepOutcome`: the effects on names, and the session after them. Its `run` computes what the
        steps report, and publishes what they save.
        **Raises** PlanError for a step that cannot run; this session is unchanged.
        **Example**:

        >>> session = bs.Session.begin(bs.load("plan.yaml"))
        >>> outcome = session.step(*session.parse("delete: {target: bias}"))
        >>> outcome.effects[0].deleted
        ('model::bias',)
        >>> outcome.run()
        <Session: 1 aliases, 1 steps>
        """
        last = self
        for step in steps:
            last = last._next(step)
        old, new = self.state, last.state
        made = tuple(p for p in new.publications if not any(p is q for q in old.publications))
        for p in made:
            self._refuse_open(p)
        notes = new.diagnostics[len(old.diagnostics) :]
        program = Program(new.checks[len(old.checks) :], self._force(made), (), notes)
        return StepOutcome(last, new.effects[len(old.effects) :], program)

    def _next(self, step: Step) -> Session:
        state = lower_step(self.state, step, self.world, self._answer)
        if found := _errors(state.diagnostics[len(self.state.diagnostics) :]):
            raise PlanError(found)
        if (entry := self._first_input(state)) is not None:
            plan = replace(self.plan, inputs=(entry,))
            state = replace(state, default_alias=entry.alias, written=self.state.written)
            return replace(self, plan=plan, state=state, before=self, after=None)
        told = {len(self.steps)} if _only_tells(step, self.state, state) else set()
        return replace(
            self, state=state, steps=(*self.steps, step), only_told=self.only_told | told, before=self, after=None
        )

    def _answer(self, demand: Demand) -> Mapping[Expr, int]:
        """The numbers that a step needs, computed now."""
        from brainsurgery_jax.engine.events import NEVER
        from brainsurgery_jax.engine.run.execute import numbers

        return numbers(demand.exprs, self.options.budget(), self.options.stop or NEVER)

    def _first_input(self, after: State) -> Input | None:
        """The checkpoint that a session without any opened just now: from then on it is the plan's input, so that
        references need no alias."""
        if self.state.spaces or self.steps or len(after.spaces) != 1 or after.flags.dry_run:
            return None
        ((alias, space),) = after.spaces.items()
        alone = len(after.effects) - len(self.state.effects) == 1 and not after.effects[-1].inner
        origin = space.extras.origin
        return Input(alias, origin, after.effects[-1].step.span) if alone and origin else None

    def _force(self, made: Sequence[Publication]) -> tuple[Publication, ...]:
        return tuple(p._replace(overwrite=True) if self.world.overwrite else p for p in made)

    def _refuse_open(self, p: Publication) -> None:
        """Refuse to replace a checkpoint that later steps still read."""
        for path in self.world.open_keys:
            if inside(self.world.key(p.path), path):
                message = f"save: '{p.path}' is or holds a checkpoint that this session reads"
                hint = "Save to another path. The plan's output may replace an input: it is written at the very end."
                raise PlanError([Diagnostic("output-inside", message, p.span, hint)])

    def undo(self) -> Session:
        """Undo the last step. Files that it saved stay.

        **Returns** the session before the step; this one if there was none.
        **Raises** nothing.
        **Example**:

        >>> session = bs.Session.begin(bs.load("plan.yaml"))
        >>> session.step(*session.parse("delete: {target: bias}")).session.undo()
        <Session: 1 aliases, 0 steps>
        """
        return self if self.before is None else replace(self.before, after=self)

    def redo(self) -> Session:
        """Redo the step that the last `undo` left. Nothing is computed or saved again.

        **Returns** the session after the step; this one if nothing was undone.
        **Raises** nothing.
        **Example**:

        >>> session = bs.Session.begin(bs.load("plan.yaml"))
        >>> session.step(*session.parse("delete: {target: bias}")).session.undo().redo()
        <Session: 1 aliases, 1 steps>
        """
        return self if self.after is None else self.after

    def finish(self) -> StepOutcome:
        """Prepare the outputs of the plan.

        **Returns** a `StepOutcome`; its `run` writes and publishes them.
        **Raises** PlanError for an output that cannot be written.
        **Example**:

        >>> session = bs.Session.begin(bs.load("plan.yaml", "output=finished.safetensors"))
        >>> session.finish().run()
        <Session: 1 aliases, 0 steps>
        >>> len(bs.open("finished.safetensors"))
        3
        """
        self.world.settle()
        state = reduce(lambda before, output: ask_output(before, output, self.world), self.plan.outputs, self.state)
        made, problems = publications(state, self.plan, self.world)
        problems = (*state.diagnostics[len(self.state.diagnostics) :], *problems)
        if found := _errors(problems):
            raise PlanError(found)
        own = tuple(p for p in made if not any(p is q for q in self.state.publications))
        checks = state.checks[len(self.state.checks) :]
        return StepOutcome(self, (), Program(checks, self._force(own), (), problems))

    # --- looking

    def to_plan(self, *, everything: bool = False) -> dict[str, Any]:
        """Export the session as a plan.

        **Arguments**: `everything` includes steps that only printed.
        **Returns** plain data of a plan that reproduces the session: inputs, seed, steps, outputs.
        **Raises** nothing.
        **Example**:

        >>> session = bs.Session.begin(bs.load("plan.yaml"))
        >>> session.step(*session.parse("delete: {target: bias}")).session.to_plan()["transforms"]
        [{'delete': {'target': 'bias'}}]
        """
        whole: dict[str, Any] = {}
        if self.plan.inputs:
            whole["inputs"] = [f"{i.alias}::{i.path}" for i in self.plan.inputs]
        if self.plan.seed:
            whole["seed"] = self.plan.seed
        whole["transforms"] = [s.text for at, s in enumerate(self.steps) if everything or at not in self.only_told]
        outputs = [o.plain() for o in self.plan.outputs]
        if outputs:
            whole |= {"output": outputs[0]} if len(outputs) == 1 else {"outputs": outputs}
        return whole

    def preview(self, text: str) -> Preview:
        """Preview the steps of a text from headers alone. Nothing is computed, opened or kept.

        **Arguments**: text as for `parse`.
        **Returns** a `Preview`: names that are matched, created, changed and deleted, and mistakes.
        **Raises** nothing: a mistake is in `problems`.
        **Example**:

        >>> session = bs.Session.begin(bs.load("plan.yaml"))
        >>> session.preview("delete: {target: bias}").deleted
        ('model::bias',)
        """
        try:
            found = nodes(text)
        except PlanError as bad:
            return Preview(problems=bad.diagnostics)
        world, state, matches = self.world.glance(), self.state, []
        problems: list[Diagnostic] = []
        for node in found:
            step, wrong = self._read(node)
            problems += wrong
            matches += matches_of(step, state)
            if step.op is not None:
                state = lower_step(state, step, world)
        old = self.state
        effects = tuple(flatten(state.effects[len(old.effects) :]))
        created, changed, deleted, configured = (
            tuple(name for e in effects for name in getattr(e, word))
            for word in ("created", "changed", "deleted", "configured")
        )
        if world.unopened:
            return Preview(tuple(matches), opens=tuple(world.unopened))
        problems += _errors(state.diagnostics[len(old.diagnostics) :])
        writes = tuple(p.path for p in state.publications[len(old.publications) :])
        return Preview(tuple(matches), created, changed, deleted, configured, tuple(problems), writes=writes)


def _without_checkpoint(problems: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """The mistakes of a step, where there is no checkpoint yet that names without an alias could be in."""
    others = [d for d in problems if d.code != "ref-no-alias"]
    if len(others) == len(problems):
        return tuple(problems)
    first = next(d for d in problems if d.code == "ref-no-alias")
    told = "there is no checkpoint yet that this could be about"
    return (*others, replace(first, message=told, hint="Open one first: `load: model.safetensors`."))


def _errors(found: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    return tuple(d for d in found if d.severity == "error")


def _only_tells(step: Step, before: State, after: State) -> bool:
    """Whether a step printed something and did nothing else."""
    said = after.checks[len(before.checks) :]
    if isinstance(step.op, SinkOp):
        return any(isinstance(check.says, PendingReport) and not check.logged for check in said)
    same = after.flags == before.flags and len(after.publications) == len(before.publications)
    return bool(said) and same and _contents(after) == _contents(before)


def _contents(state: State) -> dict[str, Any]:
    """What the aliases hold."""
    return {alias: (space.names, space.extras) for alias, space in state.spaces.items()}
