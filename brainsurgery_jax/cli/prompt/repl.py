"""`repl` and `run -i`: a plan is taken as far as it goes, then steps come from the prompt, or from a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import typer

from brainsurgery_jax import api
from brainsurgery_jax.cli import plans, show
from brainsurgery_jax.cli.progress import watching
from brainsurgery_jax.cli.prompt.screen import Screen, reply_data
from brainsurgery_jax.completion.partial import is_open
from brainsurgery_jax.desk import Desk, Reply, impact, is_unfinished
from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.plan import pages
from brainsurgery_jax.plan.source import dump_yaml
from brainsurgery_jax.rendering.data import as_json_line, command_error_data
from brainsurgery_jax.session import Session
from brainsurgery_jax.store.address import is_remote, parse_address, split_alias
from brainsurgery_jax.world import Files


def repl(items: Sequence[str], choices: plans.Choices) -> None:
    """Take the steps of a plan, then those that are typed or piped in, then write the outputs. Raises PlanError or
    StoreError for what is wrong with the plan, and for what is piped in; at a prompt one tries again."""
    for option in choices.lost:
        show.remark(f"note: --{option} is accepted but has no effect", "yellow")
    plan = api.load(*_gather_inputs(items))
    plans.refuse_summary(plan, choices)
    with closing(plans.files_of(choices.overwrite, choices.shard_size)) as world:
        _check(plan, world)
        session = Session.begin_with(plan, world, plans.options_of(choices))
        talks = is_talking() and not choices.json
        front = None if choices.json else Screen()
        desk = Desk(
            _advance(session, plan, choices), quiet=choices.quiet, talks=talks or choices.json,
            asks=talks or choices.json, front=front, fold=pages.unfolded if choices.json else show.hanging,
        )  # fmt: skip
        _converse(desk, choices)
        if choices.summarize:
            dry_run = choices.dry_run or desk.session.state.flags.dry_run
            plans.summarize(_summary(desk.session, resolve=choices.resolve), choices, dry_run=dry_run)


def _converse(desk: Desk, choices: plans.Choices) -> None:
    if desk.session.state.stopped:
        _refuse(desk.leave())
    elif choices.json:
        take_json_lines(desk, sys.stdin)
    elif desk.talks:
        from brainsurgery_jax.cli.prompt.terminal import converse

        _warn_of_outputs(desk.session)
        converse(desk)
    else:
        take_lines(desk, sys.stdin)


def _gather_inputs(items: Sequence[str]) -> list[str | dict[str, list[str]]]:
    """The items of a plan; checkpoints among them become its inputs."""
    checkpoints = [i for i in items if _is_checkpoint(i)]
    rest = [i for i in items if i not in checkpoints]
    if not checkpoints:
        return list(rest)
    if any(i.lower().endswith((".yaml", ".yml")) for i in rest):
        raise typer.BadParameter("name either plans or checkpoints; a plan lists its own inputs", param_hint="PLAN")
    aliased = checkpoints if len(checkpoints) == 1 else [_with_alias(c) for c in checkpoints]
    return [{"inputs": aliased}, *rest]


def _is_checkpoint(item: str) -> bool:
    path = parse_address(split_alias(item)[1]).path
    return is_remote(path) or (os.path.exists(path) and not item.lower().endswith((".yaml", ".yml")))


def _with_alias(item: str) -> str:
    """A checkpoint under an alias: the one given, else the name of its file or folder."""
    alias, address = split_alias(item)
    return f"{alias or Path(parse_address(address).path).resolve().name.partition('.')[0]}::{address}"


def _check(plan: api.Plan, world: Files) -> None:
    """Raise PlanError with every mistake of a plan's steps. What they make may change yet, so outputs wait."""
    if plan.data.steps:
        known = tuple(d for d in plan.problems if d.code != "vars-unused")
        steps = replace(plan, data=replace(plan.data, outputs=()), problems=known)
        if found := [d for d in api.check(steps, world.twin()) if d.severity == "error"]:
            raise PlanError(found)


def _advance(session: Session, plan: api.Plan, choices: plans.Choices) -> Session:
    """The session after the plan's own steps."""
    if not plan.data.steps:
        return session
    outcome = session.step(*plan.data.steps)
    own = outcome.effects
    for at, effect in enumerate(own if choices.preview and not choices.json else (), 1):
        name = effect.step.op.name if effect.step.op else ""
        show.remark(f"preview {at}/{len(own)} {name}: {impact([effect]) or 'no tensor changes'}")
    if choices.json:
        return outcome.run()
    with watching(quiet=choices.quiet, verbose=False) as listen:
        return outcome.run(listen)


def _warn_of_outputs(session: Session) -> None:
    """Say early what will stand in the way of the outputs, whatever is typed."""
    try:
        session.finish()
    except PlanError as bad:
        show.diagnostics(replace(d, severity="note") for d in bad.diagnostics if d.code.startswith("io-output"))


def take_lines(desk: Desk, lines: Iterable[str], file: str = "<stdin>") -> None:
    """Take steps and commands from lines, each when it is whole; then write the outputs. A line with a `#` at its start
    is skipped. Raises PlanError or StoreError at the first that is wrong."""
    for first, text in _texts(lines):
        if _refuse(desk.take(text, first, file)).next == "end":
            return
    _refuse(desk.leave())


def _refuse(reply: Reply) -> Reply:
    """The reply. Raises the error that is in it."""
    if reply.error is not None:
        raise reply.error
    return reply


def take_json_lines(desk: Desk, lines: Iterable[str]) -> None:
    """Take one JSON object a line, `{"take": TEXT}`, `{"confirm": true}` or `{"leave": true}`, and print a reply for
    each as one line. A line with a `#` at its start is skipped. The end of input writes the outputs."""
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        reply = _answer(desk, line)
        show.result(as_json_line(**(reply if isinstance(reply, dict) else reply_data(reply))))
        if isinstance(reply, Reply) and reply.next == "end":
            return
    desk.asks = False  # nobody is there to be warned
    last = desk.leave()
    show.result(as_json_line(**reply_data(last)))
    if last.error is not None:
        raise typer.Exit(3 if isinstance(last.error, StoreError) else show.exit_code(last.error.diagnostics))


def _answer(desk: Desk, line: str) -> Reply | dict[str, object]:
    """What comes of a request; of one that is none, what is wrong with it."""
    try:
        match json.loads(line):
            case {"take": str(text)}:
                return desk.take(text)
            case {"confirm": bool(go)}:
                return desk.confirm(go)
            case {"leave": True}:
                return desk.leave()
    except json.JSONDecodeError:
        pass
    hint = 'One object a line: {"take": "undo"}, {"confirm": true} or {"leave": true}.'
    return {"ok": False, "diagnostics": [command_error_data("request", "this is not a request", hint)]}


def is_talking() -> bool:
    """Whether somebody sits at both ends of the conversation."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _texts(lines: Iterable[str]) -> Iterable[tuple[int, str]]:
    """Steps and commands as they stand in lines, with the number of their first line. A block goes on while lines are
    indented, or are items as its first line is, or a bracket is open."""
    block: list[str] = []
    first = 1
    for number, line in enumerate((line.rstrip("\r\n") for line in lines), 1):
        if block and not _goes_on(block, line):
            yield first, "\n".join(block)
            block = []
        if block:
            block.append(line)
        elif line.strip() and not line.lstrip().startswith("#"):
            if is_unfinished(line):
                block, first = [line], number
            else:
                yield number, line
    if block:
        yield first, "\n".join(block)


def _goes_on(block: Sequence[str], line: str) -> bool:
    if is_open("\n".join(block)):
        return True
    return bool(line.strip()) and (line[0] in " \t]})" or (line.startswith("- ") and block[0].startswith("- ")))


def _summary(session: Session, *, resolve: bool) -> str:
    """The steps that stand, as a plan; with `resolve` one that reads and writes what this session did."""
    plan = session.to_plan(everything=True)
    return dump_yaml(plan if resolve else {"transforms": plan["transforms"]})
