"""The changes of one step: its edits, applied to the draft one by one and recorded for its effect."""

from __future__ import annotations

from collections.abc import Iterable

from brainsurgery_jax.lower.program import Effect
from brainsurgery_jax.lower.view import StepView
from brainsurgery_jax.plan.model import Step
from brainsurgery_jax.protocol import (
    AddAlias,
    Bind,
    Drop,
    DropAlias,
    Edit,
    MakeTokenizer,
    Move,
    MoveAll,
    PairCodes,
    Plant,
    RenameAlias,
    SetConfig,
    TakeTokenizer,
)


class Changes:
    """Applies edits to a draft. Names are `alias::name`, in the order in which they changed.

    `written`: the aliases that this step or an earlier one wrote to. Moves wait for `move`.
    """

    def __init__(self, view: StepView, written: Iterable[str]) -> None:
        self.view, self.written = view, set(written)
        self._created: list[str] = []
        self._changed: list[str] = []
        self._deleted: list[str] = []
        self._configured: list[str] = []
        self._moves: list[MoveAll] = []

    def bind(self, edit: Bind) -> None:
        """Bind a name to a tensor. Raises Refusal, as `apply` does."""
        alias, name, expr, dest, like = edit
        replaced = self.view.bind(alias, name, expr, dest, like)
        (self._changed if replaced else self._created).append(f"{alias}::{name}")
        self.written.add(alias)

    def apply(self, edit: Edit) -> bool:
        """Apply any other edit of names or configs; moves wait. Returns False for other kinds of edits."""
        view, written = self.view, self.written
        match edit:
            case MoveAll():
                self._moves.append(edit)
            case Move(alias, name, to_alias, to_name):
                self._moves.append(MoveAll(alias, (name,), to_alias, (to_name,)))
            case Drop(alias, name):
                view.drop(alias, name)
                self._deleted.append(f"{alias}::{name}")
                written.add(alias)
            case Plant(alias, name, to_alias, to_name):
                if view.plant(alias, name, to_alias, to_name):
                    self._created.append(f"{to_alias}::{to_name}")
                    written.add(to_alias)
            case AddAlias(alias, tensors, path, like):
                view.add_alias(alias, tensors, path, like)
                written.add(alias)
                self._created.extend(f"{alias}::{name}" for name in tensors or ())
            case DropAlias(alias):
                self._deleted.extend(f"{alias}::{name}" for name in view.space(alias, "alias").names)
                view.drop_alias(alias)
                written.discard(alias)
            case RenameAlias(alias, to):
                view.rename_alias(alias, to)
                self.written = (written - {alias}) | {to}
            case SetConfig(alias, config, file):
                self._configured.extend(f"{alias}::{key}" for key in view.set_config(alias, config, file))
            case TakeTokenizer(alias, source):
                view.take_tokenizer(alias, source)
                self._configured.append(f"{alias}::tokenizer")
            case MakeTokenizer(alias, files):
                view.make_tokenizer(alias, files)
                self._configured.append(f"{alias}::tokenizer")
            case PairCodes(alias, name, block):
                view.pair_codes(alias, name, block)
            case _:
                return False
        return True

    def move(self) -> None:
        """Apply all moves of the step at once, so that names can be swapped or shifted."""
        if not any(names for _, names, _, _ in self._moves):
            return
        self.view.move(self._moves)
        for alias, names, to_alias, to_names in self._moves:
            here, there = f"{alias}::", f"{to_alias}::"
            self._deleted += [here + name for name in names]
            self._created += [there + name for name in to_names]
            self.written.add(to_alias)

    def effect(self, step: Step, skipped: int) -> Effect:
        """The effect of the step; `skipped` tensors were left out."""
        names = (self._created, self._changed, self._deleted, self._configured)
        created, changed, deleted, configured = map(tuple, names)
        return Effect(step, created, changed, deleted, configured, skipped)
