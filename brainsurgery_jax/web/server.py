"""The server: NiceGUI behind the guard, and one workbench for each tab."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.responses import StreamingResponse as Streaming
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from brainsurgery_jax.errors import PlanError, StoreError
from brainsurgery_jax.web.confined import Root
from brainsurgery_jax.web.guard import Guard
from brainsurgery_jax.web.opened import Shelf
from brainsurgery_jax.web.page import build_page
from brainsurgery_jax.web.transfer import list_members, size_of_archive, stream_archive, take_upload
from brainsurgery_jax.web.workbench import Workbench

MOST_TABS = 32
"""Workbenches that are kept; the one that was opened first goes, unless it runs something."""

PATIENCE = 15
"""Seconds for which a page whose connection broke may come back: then it is loaded anew."""


class Desks:
    """The workbenches by the keys in their URLs: a page that is loaded again finds its own."""

    def __init__(self, root: Root, paths: list[str], memory: int | None):
        self._root, self._paths, self._memory = root, paths, memory
        self._known: dict[str, Workbench] = {}
        self._shelf = Shelf(root)
        self._kept = [self._shelf.take(path) for path in paths]  # open until the end: the next tab has them at once

    def begin(self) -> str:
        """The key of a new workbench, with the checkpoints of the command open."""
        key = secrets.token_urlsafe(9)
        bench = self._known[key] = Workbench(self._root, memory=self._memory, shelf=self._shelf)
        for path in self._paths:
            with suppress(StoreError):  # it was there when the server started
                bench.open(path)
        for old in list(self._known)[:-MOST_TABS]:
            if not self._known[old].progress.active:
                self._known.pop(old).close_all()
        return key

    def find(self, key: str) -> Workbench | None:
        """The workbench of that key."""
        return self._known.get(key)

    def close(self) -> None:
        """Close all workbenches."""
        while self._known:
            self._known.popitem()[1].close_all()
        while self._kept:
            self._shelf.give_back(self._kept.pop())


def build(root: Root, desks: Desks) -> FastAPI:
    """The application, without its guard."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_pages(app, desks)
    _add_files(app, root)
    _add_plans(app, desks)
    # Without gzip: it takes longer than the way through loopback, and `ssh -C` compresses where that pays.
    ui.run_with(app, title="brainsurgery-jax", dark=None, show_welcome_message=False, language="en-US", tailwind=False,
                gzip_middleware_factory=None, reconnect_timeout=PATIENCE)  # fmt: skip
    return app


def _add_pages(app: FastAPI, desks: Desks) -> None:
    @app.get("/")
    def begin() -> Response:
        return RedirectResponse(f"/bench/{desks.begin()}", 303, {"cache-control": "no-store"})

    @ui.page("/bench/{key}", response_timeout=30)
    def bench_page(key: str) -> Response | None:
        if (bench := desks.find(key)) is None:
            return RedirectResponse("/", 303)
        build_page(key, bench)
        return None


def _add_files(app: FastAPI, root: Root) -> None:
    @app.get("/download")
    def download(path: str) -> Response:
        try:
            real = root.confine(path)
            if os.path.isdir(real):
                return _send_folder(root, real)
        except StoreError as bad:
            return PlainTextResponse(f"Refused: {bad}\n", 403)
        if not os.path.isfile(real):
            return PlainTextResponse("There is no such file.\n", 404)
        return FileResponse(real, filename=os.path.basename(real), media_type="application/octet-stream")

    @app.put("/upload")
    async def upload(path: str, request: Request) -> Response:
        try:
            return PlainTextResponse(await take_upload(root, path, request.stream()), 201)
        except StoreError as bad:
            return PlainTextResponse(str(bad), 409)
        except ClientDisconnect:
            return PlainTextResponse("The upload ended early.\n", 400)


def _send_folder(root: Root, real: str) -> Response:
    members = list_members(root, real)
    name = quote(f"{os.path.basename(real) or 'root'}.tar")
    headers = {
        "content-disposition": f"attachment; filename*=utf-8''{name}",
        "content-length": str(size_of_archive(members)),
    }
    return Streaming(stream_archive(members), media_type="application/x-tar", headers=headers)


def _add_plans(app: FastAPI, desks: Desks) -> None:
    @app.get("/plan/{key}")
    def plan(key: str, resolved: bool = False) -> Response:
        if (bench := desks.find(key)) is None:
            return PlainTextResponse("There is no such session.\n", 404)
        try:
            text = bench.resolve() if resolved else bench.text
        except (PlanError, StoreError) as bad:
            return PlainTextResponse(f"{bad}\n", 409)
        return _send_text(text, "resolved.yaml" if resolved else "plan.yaml", "application/yaml")

    @app.get("/report/{key}")
    def report(key: str) -> Response:
        bench = desks.find(key)
        if bench is None or not os.path.isfile(path := bench.scratch("report.html")):
            return PlainTextResponse("There is no such report.\n", 404)
        return FileResponse(path, filename="report.html", media_type="text/html")

    @app.post("/complete/{key}")
    async def complete(key: str, request: Request) -> Response:
        if (bench := desks.find(key)) is None:
            return PlainTextResponse("There is no such session.\n", 404)
        text = (await request.body()).decode("utf-8", "replace")
        found = await run_in_threadpool(bench.complete, text)
        return JSONResponse([{"text": c.text, "start": c.start, "label": c.display, "detail": c.meta} for c in found])


def _send_text(text: str, name: str, kind: str) -> Response:
    headers: Mapping[str, str] = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type=kind, headers=headers)


def serve(
    bound: socket.socket, token: str, host: str, root: Root, paths: list[str], *, limit: int, memory: int | None
) -> None:
    """Serve at a socket that is bound already, until the process is interrupted."""
    os.umask(os.umask(0o077) | 0o077)  # what is uploaded belongs to the user alone
    desks = Desks(root, paths, memory)
    app = Guard(build(root, desks), token, host, bound.getsockname()[1], limit)
    # No access log: URLs may hold the token.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, date_header=False)
    nicegui_app.on_shutdown(desks.close)  # a signal that ends the server runs no `finally` of ours
    uvicorn.Server(config).run(sockets=[bound])
