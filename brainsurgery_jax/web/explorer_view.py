"""The explorer: open checkpoints side by side, as trees that load level by level, with search; and one tensor."""

from __future__ import annotations

import os
import re
from asyncio import to_thread
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from nicegui import events, ui

from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.store.sizes import show_size
from brainsurgery_jax.web.names import Branch
from brainsurgery_jax.web.opened import OpenCheckpoint
from brainsurgery_jax.web.plan_view import PlanView
from brainsurgery_jax.web.tensor_view import TensorView
from brainsurgery_jax.web.tree_view import TreeView
from brainsurgery_jax.web.waiting import Waiting
from brainsurgery_jax.web.workbench import Workbench
from brainsurgery_jax.wording import counted

MOST_FOUND = 50
"""The most names of a search that are listed."""


class ExplorerView:
    """The view of the open checkpoints."""

    def __init__(self, bench: Workbench, editor: PlanView):
        self._bench, self._editor, self._waiting = bench, editor, Waiting()
        self.when_opened: Callable[[], None] = lambda: None
        self._folder = ""
        self._trees: dict[str, TreeView] = {}
        with ui.row(align_items="center").style("width: 100%"):
            self._path = ui.input("Path of a checkpoint", placeholder="model.safetensors").style("min-width: 18rem")
            self._path.on("keydown.enter", self._open)
            ui.button("Open", on_click=self._open).props("no-caps")
            ui.button("Upload files", on_click=lambda: ui.run_javascript("pick('files')")).props("no-caps")
            ui.button("Upload a folder", on_click=lambda: ui.run_javascript("pick('folder')")).props("no-caps")
        with ui.expansion("Browse files").style("width: 100%"):
            self._browser = ui.column().style("gap: 0")
        self._uploading = ui.label("").props("role=status").classes("bs-muted")
        ui.on("uploading", lambda e: self._uploading.set_text(str(e.args)))
        ui.on("uploaded", self._take_upload)
        self._told = ui.column().style("width: 100%; gap: 0")
        self._columns = ui.element("div").classes("bs-columns")
        self._tensor = ui.column().style("width: 100%")
        self._browse("")
        self.refresh()

    def refresh(self) -> None:
        """Draw the open checkpoints anew."""
        self._columns.clear()
        self._trees.clear()
        with self._columns:
            if not self._bench.opened:
                ui.label("No checkpoint is open. Type a path, browse, or upload a file.").classes("bs-muted")
            for one in self._bench.opened.values():
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
        with ui.row(align_items="center").style("gap: 0"):
            if is_folder:
                ui.button(f"{name}/", on_click=lambda: self._browse(path)).props("flat dense no-caps")
                ui.button("Open", on_click=lambda: self._open(path)).props("flat dense no-caps").props["aria-label"] = (
                    f"Open {name}"
                )
            else:
                ui.button(name, on_click=lambda: self._open(path)).props("flat dense no-caps")
            ui.link("download", f"/download?path={quote(path)}").props("download").props["aria-label"] = (
                f"Download {name}"
            )

    async def _take_upload(self, event: events.GenericEventArguments) -> None:
        done, refused = event.args["done"], event.args["refused"]
        self._uploading.set_text(f"{counted(len(done), 'file')} uploaded" if done else "")
        self._browse(self._folder)
        self._told.clear()
        with self._told:
            for told in refused:
                ui.label(told).classes("bs-error").props("role=alert")
        for path in dict.fromkeys(str(path).partition("/")[0] for path in done):
            await self._open(path)

    async def _open(self, path: object = None) -> None:
        given = path if isinstance(path, str) else str(self._path.value or "")
        try:
            await to_thread(self._bench.open, given)
        except (StoreError, ValueError) as bad:
            ui.notify(str(bad), type="negative", multi_line=True, timeout=8000)
            return
        self.refresh()
        self.when_opened()

    def _close(self, path: str) -> None:
        self._waiting.cancel()
        self._tensor.clear()
        self._bench.close(path)
        self.refresh()
        self.when_opened()

    def _draw(self, one: OpenCheckpoint) -> None:
        with ui.row(align_items="center").classes("bs-tight").style("width: 100%"):
            ui.label(one.path).classes("bs-mono").props("role=heading aria-level=2").style("font-weight: 600")
            told = f"{counted(len(one.avals), 'tensor')}, {show_size(one.nbytes)}"
            ui.label(told).classes("bs-muted").style("padding: 0 .5rem")
            if not one.tried:
                ui.button("Use as input", on_click=lambda: self._editor.add_input(one.path)).props("flat dense no-caps")
            ui.button("Health", on_click=lambda: self._show_health(one, health)).props("flat dense no-caps")
            ui.button("Report", on_click=lambda: self._write_report(one, health)).props("flat dense no-caps")
            ui.button("Close", on_click=lambda: self._close(one.path)).props("flat dense no-caps")
        health = ui.column().style("width: 100%; gap: 0")
        search = ui.input("Search by pattern", placeholder=r".*attn.*weight or [h, $i, attn, ...]")
        search.props("dense clearable debounce=60").style("width: 100%")
        count = ui.label(f"{len(one.avals):,} of {len(one.avals):,} match").props("role=status").classes("bs-muted")
        found = ui.column().classes("bs-scroll").style("gap: 0")
        with ui.element("div").classes("bs-scroll") as holder:
            self._draw_tree(one)
        search.on_value_change(lambda e: self._search(one, str(e.value or ""), (count, found, holder, search)))

    async def _show_health(self, one: OpenCheckpoint, place: ui.column) -> None:
        place.clear()
        found = await self._waiting.run(
            place, "reading all tensors", lambda stop: self._bench.opened.find_problems(one.path, stop)
        )
        if found is None or place.is_deleted:
            return
        self._mark(one.path)
        with place:
            if not found:
                ui.label("No tensor looks broken.").props("role=status")
                return
            ui.label(f"{counted(len(found), 'tensor')} of {len(one.avals):,} look broken").props("role=status")
            with ui.column().classes("bs-scroll").style("gap: 0; max-height: 30vh"):
                for name, problem in list(found.items())[:MOST_FOUND]:
                    button = ui.button(f"{name}: {problem}", on_click=partial(self._show, one, name))
                    button.props("flat dense no-caps align=left").classes("bs-mono")
                if len(found) > MOST_FOUND:
                    ui.label(f"and {len(found) - MOST_FOUND:,} more").classes("bs-muted")

    async def _write_report(self, one: OpenCheckpoint, place: ui.column) -> None:
        place.clear()
        made = await self._waiting.run(
            place, "writing the report", lambda stop: self._bench.write_report(one.path, stop=stop)
        )
        if made is not None:
            ui.download(f"/report/{self._editor.key}")

    async def _search(self, one: OpenCheckpoint, pattern: str, parts: tuple[Any, ...]) -> None:
        count, found, holder, search = parts
        names, problem = list[str](), ""
        try:
            names = await to_thread(one.search, pattern)
        except (ValueError, PlanError) as bad:
            problem = str(bad).splitlines()[0]
        if search.is_deleted or pattern != str(search.value or ""):  # another one was typed meanwhile
            return
        found.clear()
        holder.set_visibility(not pattern.strip())
        if problem:
            count.set_text(f"not a pattern: {problem}")
            search.props("error")
            return
        search.props(remove="error")
        count.set_text(f"{len(names):,} of {len(one.avals):,} match")
        if not pattern.strip():
            return
        with found:
            ui.button("Write this pattern into a step", on_click=lambda: self._editor.refer(one.path, pattern)).props(
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
        async def choose(branch: Branch) -> None:
            await self._editor.refer(one.path, branch.pattern + (r"\..*" if branch.has_children else ""))
            if branch.aval is not None:
                await self._show(one, branch.key)

        self._trees[one.path] = TreeView(one.tree, self._bench.opened.problems(one.path), choose)

    def _mark(self, path: str) -> None:
        """Mark in the tree what was found to be broken."""
        if path in self._bench.opened:
            self._trees[path].mark(self._bench.opened.problems(path))

    async def _show(self, one: OpenCheckpoint, name: str) -> None:
        await self._editor.refer(one.path, re.escape(name))
        self._waiting.cancel()
        self._tensor.clear()
        found = await self._waiting.run(
            self._tensor, f"reading {name}", lambda stop: (self._bench.opened.measure(one.path, name, stop),)
        )
        if found is not None:
            self._mark(one.path)
            self._tensor.clear()
            with self._tensor:
                TensorView(self._bench.opened, one, name, self._waiting).draw(found[0])
            self._tensor.run_method("scrollIntoView", {"block": "nearest"})  # it may lie below a long list
