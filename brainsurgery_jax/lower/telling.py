"""The logs of a session: the impact of each step (`preview`), and a line for each tensor (`verbose`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from brainsurgery_jax.lower.program import Effect, flatten, log
from brainsurgery_jax.lower.state import State
from brainsurgery_jax.plan.model import PlanData, Step
from brainsurgery_jax.protocol import (
    AddAlias,
    Bind,
    Drop,
    DropAlias,
    Edit,
    Expand,
    Inline,
    MakeTokenizer,
    Move,
    MoveAll,
    Plant,
    Publish,
    RenameAlias,
    SetConfig,
    TakeTokenizer,
)
from brainsurgery_jax.wording import list_changes

MOST_NAMES = 8
MOST_SOURCES = 2


def impact(effects: Sequence[Effect], most: int | None = MOST_NAMES) -> str:
    """The changes of names by steps: for each kind of change how many, and the first ones, sorted."""
    every = tuple(flatten(effects))
    words = ("changed", "created", "deleted", "configured")
    names = {word: sorted({name for effect in every for name in getattr(effect, word)}) for word in words}
    return list_changes(names, most) or "no tensor changes"


def preview(before: State, after: State, step: Step, plan: PlanData) -> State:
    """The state after a step, with a line on its impact before the reports of the step itself."""
    done = len(before.effects)
    new = after.effects[len(before.effects) :]
    line = f"preview {done + 1}/{len(plan.steps)} {_name(step)}: {impact(new)}"
    checks = (*before.checks, log(step, line), *after.checks[len(before.checks) :])
    return after.with_checks(checks)


def session_line(state: State) -> str:
    """A line with the numbers of names that all steps changed, created and deleted."""
    every = tuple(flatten(state.effects))
    sizes = ((word, len({n for e in every for n in getattr(e, word)})) for word in ("changed", "created", "deleted"))
    return "preview, all steps: " + ", ".join(f"{word} {size:,}" for word, size in sizes)


def _name(step: Step) -> str:
    return "" if step.op is None else step.op.name


class Lines:
    """The log lines of one step: `note` takes each edit with the names that the op fetched for it."""

    def __init__(self, step: Step, *, dry_run: bool):
        self.step, self.head = step, f"{'dry-run ' if dry_run else ''}{_name(step)}: "
        self.items: list[tuple[list[str], list[str]]] = []  # what was read, what was written
        self.others: list[str] = []

    def note(self, edit: Edit, fetched: list[str]) -> None:
        """Add the line of an edit."""
        match edit:
            case Bind(name=name):
                self._item(fetched, [name])
            case Drop(name=name):
                if not any(name in read and written for read, written in self.items):
                    self.items.append(([], [name]))
            case Move(name=name, to_name=to):
                self._item([name], [to])
            case MoveAll(names=names, to_names=targets):
                for name, to in zip(names, targets, strict=True):
                    self._item([name], [to])
            case Plant(name=name, to_name=to):
                self.items.append(([name], [to]))
            case AddAlias(alias, path=path):
                self.others.append(f"add {alias}" if path is None else f"{path} -> alias {alias}")
            case DropAlias(alias):
                self.others.append(f"remove {alias}")
            case RenameAlias(alias, to):
                self.others.append(f"rename {alias} -> {to}")
            case SetConfig(alias):
                self.others.append(f"config of {alias}")
            case TakeTokenizer(alias, source):
                self.others.append(f"tokenizer of {source} -> {alias}")
            case MakeTokenizer(alias):
                self.others.append(f"new tokenizer -> {alias}")
            case Publish(path=path, alias=alias, names=names):
                self.others.append(f"{alias if names is None else '::'.join((alias, *names))} -> {path}")
            case Inline(plans):
                self.others.append(f"{sum(len(p.steps) for p in plans)} steps")
            case Expand(steps):
                self.others.append(f"{len(steps)} steps")
            case _:
                pass

    def _item(self, read: list[str], written: list[str]) -> None:
        if read or not self.items:
            self.items.append((read, written))
        else:
            self.items[-1][1].extend(written)

    def __iter__(self) -> Iterator[str]:
        for text in (*self.others, *(self._show(*item) for item in self.items)):
            yield self.head + text

    def _show(self, read: list[str], written: list[str]) -> str:
        sources = [name for name in dict.fromkeys(read) if name not in written]
        if not read and (path := self.step.checkpoint) is not None:
            sources = [path]
        if not sources or not written:
            return ", ".join(written or sources)
        told = ", ".join(sources) if len(sources) <= MOST_SOURCES else f"{len(sources)} tensors"
        return f"{told} -> {', '.join(written)}"
