"""The tree of the names of a checkpoint, which loads level by level and marks what looks broken."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nicegui import events, ui

from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.web.names import Branch, BranchedNames
from brainsurgery_jax.wording import counted


class TreeView:
    """The tree, drawn where it is made. `choose` is called with each node that is clicked."""

    def __init__(self, names: BranchedNames, problems: Mapping[str, str], choose: Callable[[Branch], Awaitable[None]]):
        self._names, self._problems, self._choose = names, problems, choose
        self._known: dict[str, tuple[Branch, dict[str, Any]]] = {}
        self._top = self._nodes(names.children())
        self._tree = ui.tree(self._top, on_expand=self._expand, on_select=self._select).classes("bs-mono")

    def mark(self, problems: Mapping[str, str]) -> None:
        """Mark the tensors that look broken, and the nodes above them."""
        if problems != self._problems:
            self._problems = dict(problems)
            for branch, node in self._known.values():
                node["label"] = label_of(branch, self._problems)
            self._update()

    def _nodes(self, branches: list[Branch]) -> list[dict[str, Any]]:
        made = []
        for branch in branches:
            node: dict[str, Any] = {"id": branch.key, "label": label_of(branch, self._problems)}
            if branch.has_children:
                node["children"] = [{"id": f"{branch.key}\0", "label": "..."}]
            self._known[branch.key] = branch, node
            made.append(node)
        return made

    def _expand(self, event: events.ValueChangeEventArguments[list[str]]) -> None:
        for key in event.value:
            branch, node = self._known[key]
            if node["children"][0]["id"].endswith("\0"):
                node["children"] = self._nodes(self._names.children(branch.key, branch.pattern))
                self._update()

    def _update(self) -> None:
        self._tree.props["nodes"] = list(self._top)  # the element holds a copy of what it was given

    async def _select(self, event: events.ValueChangeEventArguments[str | None]) -> None:
        if event.value in self._known:
            await self._choose(self._known[event.value][0])


def label_of(branch: Branch, problems: Mapping[str, str]) -> str:
    """What a node holds, and what looks broken in it."""
    if branch.aval is not None and not branch.has_children:
        told = f"  ⚠ {problems[branch.key]}" if branch.key in problems else ""
        return f"{branch.label}  {branch.aval}{told}"
    copies = f"{branch.copies} alike, " if branch.copies > 1 else ""
    below = re.compile(rf"{branch.pattern}(\..*)?", re.DOTALL)
    broken = sum(below.fullmatch(name) is not None for name in problems)
    told = f"  ⚠ {broken:,} broken" if broken else ""
    return f"{branch.label}  ({copies}{counted(branch.tensors, 'tensor')}, {show_size(branch.nbytes)}){told}"
