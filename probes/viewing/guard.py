"""The guard of the local server: a token on every path, and a check of the host."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Seconds in which a ticket must be used.
_TICKET_LASTS = 60.0
#: What every reply says to the browser.
_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Tickets:
    """Addresses that open once. A frame cannot send the token in a header, and no address may contain it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._valid: dict[str, tuple[float, Any]] = {}

    def issue(self, what: Any) -> str:
        """A ticket for one thing."""
        self._valid = {ticket: held for ticket, held in self._valid.items() if held[0] > self._clock()}
        ticket = secrets.token_urlsafe(32)
        self._valid[ticket] = self._clock() + _TICKET_LASTS, what
        return ticket

    def is_valid(self, ticket: str) -> bool:
        """Whether it can still be used."""
        return self._valid.get(ticket, (float("-inf"), None))[0] > self._clock()

    def use(self, ticket: str) -> Any:
        """What it is for; afterwards it is void. Raises KeyError where it is not valid."""
        until, what = self._valid.pop(ticket)
        if until <= self._clock():
            raise KeyError(ticket)
        return what


class Guard:
    """Checks every request before the application sees it, on every path, whether or not it exists.

    A request must name this server as its host, else the status is 400: this stops DNS rebinding. It must carry the
    token in `Authorization: Bearer …`, else the status is 401. Two paths need no token: the page at `/`, which holds
    no data, and a report's address with a valid ticket.

    Args:
        app: What is guarded.
        token: The secret.
        port: The server's.
        tickets: Those that open `/report/TICKET`.
    """

    def __init__(self, app: App, token: str, port: int, tickets: Tickets) -> None:
        self._app, self._token, self._tickets = app, token.encode(), tickets
        self._hosts = {f"{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websocket is served
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        refused = self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, with_headers)
            return
        status, said = refused
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": said.encode()})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and words of a refusal; None where the request may pass."""
        if _only(scope, b"host") not in {host.encode() for host in self._hosts}:
            return 400, "this server answers to 127.0.0.1 and localhost only"
        method, path = scope["method"], scope["path"]
        if method == "GET" and path == "/":
            return None
        if method == "GET" and path.startswith("/report/") and self._tickets.is_valid(path.removeprefix("/report/")):
            return None
        given = _only(scope, b"authorization") or b""
        if hmac.compare_digest(given, b"Bearer " + self._token):
            return None
        return 401, "open the address that `probes view` printed"


def _only(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header that is there once; None where it is missing or there twice."""
    values = [value for key, value in scope["headers"] if key.lower() == name]
    return values[0] if len(values) == 1 else None
