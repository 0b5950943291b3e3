"""The explorer: open checkpoints side by side, as trees that load level by level, with search; and one tensor."""

from __future__ import annotations

import os
from asyncio import to_thread
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nicegui import events, ui

from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.web.names import Branch
from brainsurgery_jax.web.plan_view import PlanView
from brainsurgery_jax.web.tensor_view import show_tensor
from brainsurgery_jax.web.workbench import OpenCheckpoint, Workbench
from brainsurgery_jax.wording import counted

MOST_FOUND = 50
"""The most names of a search that are listed."""


class ExplorerView:
    """The view of the open checkpoints."""

    def __init__(self, bench: Workbench, editor: PlanView, upload_limit: int):
        self._bench, self._editor = bench, editor
        self.when_opened: Callable[[], None] = lambda: None
        self._folder = ""
        with ui.row(align_items="end").style("width: 100%"):
            self._path = ui.input("Path of a checkpoint", placeholder="model.safetensors").style("min-width: 18rem")
            self._path.on("keydown.enter", self._open)
            ui.button("Open", on_click=self._open).props("no-caps")
            with ui.expansion("Browse files").style("min-width: 14rem"):
                self._browser = ui.column().style("gap: 0")
            # Its own look has parts without names for a screen reader: a button of ours stands for it.
            upload = ui.upload(
                multiple=True, auto_upload=True, max_file_size=upload_limit, on_upload=self._take_upload,
                on_rejected=lambda: ui.notify("The file is larger than the limit."),
            ).style("display: none")  # fmt: skip
            ui.button("Upload checkpoints", on_click=lambda: upload.run_method("pickFiles")).props("no-caps")
        self._columns = ui.element("div").classes("bs-columns")
        self._tensor = ui.column().style("width: 100%")
        self._browse("")
        self.refresh()

    def refresh(self) -> None:
        """Draw the open checkpoints anew."""
        self._columns.clear()
        with self._columns:
            if not self._bench.checkpoints:
                ui.label("No checkpoint is open. Type a path, browse, or upload a file.").classes("bs-muted")
            for one in self._bench.checkpoints.values():
                with ui.card().classes("bs-column"):
                    self._draw(one)

    def _browse(self, folder: str) -> None:
        self._folder = folder
        self._browser.clear()
        with self._browser:
            if folder:
                ui.button("..", on_click=lambda: self._browse(os.path.dirname(folder))).props("flat dense no-caps")
            with suppress(StoreError, OSError):
                for name, is_folder in self._bench.root.entries(folder)[:200]:
                    self._draw_entry(os.path.join(folder, name), name, is_folder)

    def _draw_entry(self, path: str, name: str, is_folder: bool) -> None:
        if is_folder:
            ui.button(f"{name}/", on_click=lambda: self._browse(path)).props("flat dense no-caps")
        else:
            ui.button(name, on_click=lambda: self._open(path)).props("flat dense no-caps")

    async def _take_upload(self, upload: events.UploadEventArguments) -> None:
        name = os.path.basename(upload.file.name.replace("\\", "/")).lstrip(".") or "upload"
        target = Path(self._bench.root.confine(name))
        if os.path.lexists(target):
            ui.notify(f"{name} exists already, and is not replaced.", type="warning")
            return
        await upload.file.save(target)
        self._browse(self._folder)
        self._open(name)

    def _open(self, path: object = None) -> None:
        given = path if isinstance(path, str) else str(self._path.value or "")
        try:
            self._bench.open(given)
        except (StoreError, ValueError) as bad:
            ui.notify(str(bad), type="negative", multi_line=True, timeout=8000)
            return
        self.refresh()
        self.when_opened()

    def _close(self, path: str) -> None:
        self._bench.close(path)
        self.refresh()
        self.when_opened()

    def _draw(self, one: OpenCheckpoint) -> None:
        nbytes = sum(aval.nbytes for aval in one.avals.values())
        with ui.row(align_items="center").style("width: 100%"):
            ui.label(one.path).classes("bs-mono").props("role=heading aria-level=2").style("font-weight: 600")
            ui.label(f"{counted(len(one.avals), 'tensor')}, {show_size(nbytes)}").classes("bs-muted")
            ui.button("Use as input", on_click=lambda: self._editor.add_input(one.path)).props("flat dense no-caps")
            ui.button("Close", on_click=lambda: self._close(one.path)).props("flat dense no-caps")
        search = ui.input("Search by pattern", placeholder=r".*attn.*weight or [h, $i, attn, ...]")
        search.props("dense clearable debounce=60").style("width: 100%")
        count = ui.label(f"{len(one.avals):,} of {len(one.avals):,} match").props("role=status").classes("bs-muted")
        found = ui.column().classes("bs-scroll").style("gap: 0")
        with ui.element("div").classes("bs-scroll") as holder:
            self._draw_tree(one)
        search.on_value_change(lambda e: self._search(one, str(e.value or ""), (count, found, holder, search)))

    def _search(self, one: OpenCheckpoint, pattern: str, parts: tuple[Any, ...]) -> None:
        count, found, holder, search = parts
        found.clear()
        holder.set_visibility(not pattern.strip())
        try:
            names = one.search(pattern)
        except (ValueError, PlanError) as bad:
            count.set_text(f"not a pattern: {str(bad).splitlines()[0]}")
            search.props("error")
            return
        search.props(remove="error")
        count.set_text(f"{len(names):,} of {len(one.avals):,} match")
        if not pattern.strip():
            return
        with found:
            ui.button("Write this pattern into a step", on_click=lambda: self._editor.refer(pattern)).props(
                "flat dense no-caps"
            )
            for name in names[:MOST_FOUND]:
                self._draw_name(one, name)
            if len(names) > MOST_FOUND:
                ui.label(f"and {len(names) - MOST_FOUND:,} more").classes("bs-muted")

    def _draw_name(self, one: OpenCheckpoint, name: str) -> None:
        button = ui.button(f"{name}  {one.avals[name]}", on_click=lambda: self._show(one, name))
        button.props("flat dense no-caps align=left").classes("bs-mono")

    def _draw_tree(self, one: OpenCheckpoint) -> None:
        known: dict[str, tuple[Branch, dict[str, Any]]] = {}

        def nodes(branches: list[Branch]) -> list[dict[str, Any]]:
            made = []
            for branch in branches:
                node: dict[str, Any] = {"id": branch.key, "label": _label(branch)}
                if branch.has_children:
                    node["children"] = [{"id": f"{branch.key}\0", "label": "..."}]
                known[branch.key] = branch, node
                made.append(node)
            return made

        def expand(event: events.ValueChangeEventArguments[list[str]]) -> None:
            for key in event.value:
                branch, node = known[key]
                if node["children"][0]["id"].endswith("\0"):
                    node["children"] = nodes(one.tree.children(branch.key, branch.pattern))
                    tree.props["nodes"] = list(top)  # the element holds a copy of what it was given

        async def select(event: events.ValueChangeEventArguments[str | None]) -> None:
            if event.value in known:
                branch = known[event.value][0]
                self._editor.refer(branch.pattern + (r"\..*" if branch.has_children else ""))
                if branch.aval is not None:
                    await self._show(one, branch.key)

        top = nodes(one.tree.children())
        tree = ui.tree(top, on_expand=expand, on_select=select).classes("bs-mono")

    async def _show(self, one: OpenCheckpoint, name: str) -> None:
        self._editor.refer(_escape(name))
        self._tensor.clear()
        with self._tensor:
            ui.label(f"reading {name} ...").props("role=status")
        try:
            found = await to_thread(self._bench.measure, one.path, name)
        except (StoreError, PlanError) as bad:
            ui.notify(str(bad), type="negative", multi_line=True)
            return
        self._tensor.clear()
        with self._tensor:
            show_tensor(self._bench, one, name, found)


def _escape(name: str) -> str:
    return name.replace("\\", "\\\\").replace(".", r"\.")


def _label(branch: Branch) -> str:
    if branch.aval is not None and not branch.has_children:
        return f"{branch.label}  {branch.aval}"
    copies = f"{branch.copies} alike, " if branch.copies > 1 else ""
    return f"{branch.label}  ({copies}{counted(branch.tensors, 'tensor')}, {show_size(branch.nbytes)})"
