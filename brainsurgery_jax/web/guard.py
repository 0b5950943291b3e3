"""Who may speak to the server: the holder of its token, from a page of its own, under a name of its own.

A page elsewhere can make a browser send requests to loopback, and with DNS rebinding under a host name of its own.
The checks of `Host` and `Origin` refuse both, the token all who share the machine. They stand before everything else,
websockets among them.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlencode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'; object-src 'none'"
)
"""The content security policy: nothing comes from elsewhere. Vue compiles templates, so scripts may be evaluated."""

HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class BodyTooLarge(Exception):
    """A request holds more bytes than are allowed."""


class Guard:
    """An ASGI application that passes on only what may come in. `port` is the one that is bound, `host` the address,
    `limit` the most bytes of a request."""

    def __init__(self, inner: Application, token: str, host: str, port: int, limit: int):
        self._inner, self._token, self._limit = inner, token, limit
        self._port, self._cookie = port, f"brainsurgery_jax_{port}"
        self._names = {"localhost", "127.0.0.1", "::1", host}
        self._open = not is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if (reason := self._reason_against(headers)) is not None:
            await _refuse(scope, send, 403, reason)
        elif self._given(scope) and scope["type"] == "http":
            await self._welcome(scope, send)
        elif not self._is_known(headers):
            await _refuse(scope, send, 401, "the token is missing or wrong: open the URL that the command printed")
        elif _length(headers) > self._limit:
            await _refuse(scope, send, 413, f"a request may hold {self._limit:,} bytes (--upload-limit)")
        else:
            await self._pass(scope, receive, send)

    def _reason_against(self, headers: Mapping[str, str]) -> str | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return "the request is for another host name"
        if "origin" in headers and headers["origin"] != f"http://{host}":
            return "the request comes from a page of another site"
        if "origin" not in headers and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return None if headers.get("sec-fetch-mode") == "navigate" else "the request comes from another site"
        return None

    def _is_ours(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        name = name.removeprefix("[").removesuffix("]")
        if port != str(self._port):
            return False
        return name in self._names or (self._open and _is_address(name))

    def _given(self, scope: Scope) -> bool:
        """Whether the query holds the token."""
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return self._is_token(given)

    def _is_known(self, headers: Mapping[str, str]) -> bool:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return found is not None and self._is_token(found.value)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "replace"), self._token.encode())

    async def _welcome(self, scope: Scope, send: Send) -> None:
        """Exchange the token in the URL for a cookie, so that it stays in no history and no `Referer`."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        rest = urlencode({key: value for key, value in query.items() if key != "token"}, doseq=True)
        path = "/" + scope["path"].lstrip("/")  # `//elsewhere` would lead to another site
        location = path.encode("ascii", "ignore").decode() + ("?" + rest if rest else "")
        cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        found = [(b"location", location.encode()), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 303, "headers": [*found, *HEADERS]})
        await send({"type": "http.response.body", "body": b""})

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken, started, over = 0, False, False

        async def count() -> MutableMapping[str, Any]:
            nonlocal taken, over
            message = await receive()
            if scope["type"] == "http":  # a websocket lives long; its messages have a limit of their own
                taken += len(message.get("body", b""))
                if taken > self._limit:
                    over = True
                    raise BodyTooLarge
            return message

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if over and not started:  # what the application makes of the end of the request is not the reason
                return
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        with suppress(BodyTooLarge):
            await self._inner(scope, count, answer)
        if over and not started:
            await _refuse(scope, send, 413, f"a request may hold {self._limit:,} bytes (--upload-limit)")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _length(headers: Mapping[str, str]) -> int:
    told = headers.get("content-length", "0")
    return int(told) if told.isdecimal() else 0


async def _refuse(scope: Scope, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": f"Refused: {reason}.\n".encode()})
