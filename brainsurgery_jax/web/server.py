"""The server: NiceGUI behind the guard, and one workbench for each tab."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from nicegui import ui

from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.web.confined import Root
from brainsurgery_jax.web.guard import Guard
from brainsurgery_jax.web.page import build_page
from brainsurgery_jax.web.workbench import Workbench, close_all

MOST_TABS = 32
"""Workbenches that are kept; the one that was opened first goes, unless it runs something."""


class Desks:
    """The workbenches by the keys in their URLs: a page that is loaded again finds its own."""

    def __init__(self, root: Root, paths: list[str], memory: int | None):
        self._root, self._paths, self._memory = root, paths, memory
        self._known: dict[str, Workbench] = {}

    def begin(self) -> str:
        """The key of a new workbench, with the checkpoints of the command open."""
        key = secrets.token_urlsafe(9)
        bench = self._known[key] = Workbench(self._root, memory=self._memory)
        for path in self._paths:
            with suppress(StoreError):  # it was there when the server started
                bench.open(path)
        for old in list(self._known)[:-MOST_TABS]:
            if not self._known[old].progress.active:
                close_all(self._known.pop(old))
        return key

    def find(self, key: str) -> Workbench | None:
        """The workbench of that key."""
        return self._known.get(key)


class ServerLimits(NamedTuple):
    """The most bytes of an upload, and the memory budget in bytes (None: the default)."""

    upload: int
    memory: int | None


def build(root: Root, paths: list[str], limits: ServerLimits) -> FastAPI:
    """The application, without its guard."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    desks = Desks(root, paths, limits.memory)

    @app.get("/")
    def begin() -> Response:
        return RedirectResponse(f"/bench/{desks.begin()}", 303, {"cache-control": "no-store"})

    @app.get("/download")
    def download(path: str) -> Response:
        try:
            real = root.confine(path)
        except StoreError as bad:
            return PlainTextResponse(f"Refused: {bad}\n", 403)
        if not os.path.isfile(real):
            return PlainTextResponse("There is no such file.\n", 404)
        return FileResponse(real, filename=os.path.basename(real), media_type="application/octet-stream")

    @app.get("/plan/{key}")
    def plan(key: str) -> Response:
        if (bench := desks.find(key)) is None:
            return PlainTextResponse("There is no such session.\n", 404)
        headers: Mapping[str, str] = {"content-disposition": 'attachment; filename="plan.yaml"'}
        return Response(bench.text, media_type="application/yaml", headers=headers)

    @ui.page("/bench/{key}", response_timeout=30)
    def bench_page(key: str) -> Response | None:
        if (bench := desks.find(key)) is None:
            return RedirectResponse("/", 303)
        build_page(key, bench, limits.upload)
        return None

    ui.run_with(app, title="brainsurgery-jax", dark=None, show_welcome_message=False, language="en-US", tailwind=False)
    return app


def serve(
    bound: socket.socket, token: str, host: str, root: Root, paths: list[str], *, limit: int, memory: int | None
) -> None:
    """Serve at a socket that is bound already, until the process is interrupted."""
    os.umask(os.umask(0o077) | 0o077)  # what is uploaded belongs to the user alone
    app = Guard(build(root, paths, ServerLimits(limit, memory)), token, host, bound.getsockname()[1], limit)
    # No access log: URLs may hold the token.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, date_header=False)
    uvicorn.Server(config).run(sockets=[bound])
