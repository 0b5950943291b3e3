"""`web`: bind, print the URL, serve."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from typing import NamedTuple

import typer

from brainsurgery_jax.cli import show
from brainsurgery_jax.cli.sizes import size_of
from brainsurgery_jax.errors import StoreError
from brainsurgery_jax.web.confined import Root
from brainsurgery_jax.web.guard import is_loopback
from brainsurgery_jax.web.server import serve


class WebChoices(NamedTuple):
    """The options of the command."""

    root: str
    host: str
    port: int
    allow_torch: bool
    upload_limit: str
    memory: str | None


def web(paths: list[str], choices: WebChoices) -> None:
    """Serve the workbench until Ctrl-C. Relative paths start at the root, here and in plans."""
    limit = size_of(choices.upload_limit, "--upload-limit") or 0
    memory = size_of(choices.memory, "--memory")
    if not os.path.isdir(root := os.path.expanduser(choices.root)):
        raise typer.BadParameter(f"--root: '{choices.root}' is no folder")
    allowed = Root(root, allow_torch=choices.allow_torch)
    opened = [os.path.relpath(allowed.confine(os.path.abspath(os.path.expanduser(p))), allowed.folder) for p in paths]
    bound = _bind(choices.host, choices.port)
    os.chdir(allowed.folder)
    for path in opened:  # a mistake is told here, and not in the browser
        allowed.files().open(path).close()
    token = secrets.token_urlsafe(24)
    port = bound.getsockname()[1]
    shown = f"[{choices.host}]" if ":" in choices.host else choices.host
    if not is_loopback(choices.host):
        show.remark(f"warning: {choices.host} can be reached from other machines, unencrypted")
    typer.echo(f"http://{shown}:{port}/?token={token}")
    sys.stdout.flush()
    serve(bound, token, choices.host, allowed, opened, limit=limit, memory=memory)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen()  # who opens the URL at once waits until we serve
    except OSError as error:
        remedy = "Choose another `--port`, or leave it out."
        raise StoreError(f"{host}:{port}", f"cannot be listened at: {error.strerror}", remedy=remedy) from error
    return bound
