"""The local server behind `probes view`: this machine only, and only for who has the token."""

from __future__ import annotations

import json
import os
import secrets
import socket
import tempfile
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from probes.errors import RunError
from probes.viewing.guard import App, Guard, Tickets
from probes.viewing.page import REPORT_POLICY, page, policy
from probes.viewing.session import Session

#: Bytes of a request, at most.
MOST_BYTES = 2**20
_HOST = "127.0.0.1"


def serve(
    session: Session, *, port: int = 0, open_browser: bool = True, told: Callable[[str], None] = lambda address: None
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        session: What answers.
        port: Where; 0 is any free one.
        open_browser: Open the page in the browser.
        told: Called with the page's address, which ends in the token, once the server listens.

    Raises:
        RunError: The port is taken, or may not be used.
    """
    try:
        listening = socket.create_server((_HOST, port))
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        raise RunError(f"port {port}: {why}; choose another with --port, or leave it out") from None
    with listening, tempfile.TemporaryDirectory() as folder:
        port = listening.getsockname()[1]
        token = secrets.token_urlsafe(32)
        # Behind "#", an address goes to no server and into no log.
        address = f"http://{_HOST}:{port}/#token={token}"
        guarded = application(session, token, port)
        config = uvicorn.Config(guarded, access_log=False, log_level="warning", server_header=False)
        told(address)
        if open_browser:
            webbrowser.open(_launcher(Path(folder), address).as_uri())
        with suppress(KeyboardInterrupt):
            Server(config, session).run(sockets=[listening])


class Server(uvicorn.Server):
    """A server that drops the work in progress on Ctrl-C."""

    def __init__(self, config: uvicorn.Config, session: Session) -> None:
        super().__init__(config)
        self._session = session

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End: what is in progress stops before its next forward pass."""
        self._session.close()
        super().handle_exit(sig, frame)


def application(session: Session, token: str, port: int) -> App:
    """The guarded application.

    Args:
        session: What answers.
        token: What every request must carry.
        port: Where it is served: part of the host that requests must name.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    tickets = Tickets()

    @app.get("/")
    async def shell() -> HTMLResponse:
        return HTMLResponse(page(), headers={"content-security-policy": policy()})

    @app.post("/ask")
    async def ask(request: Request) -> Response:
        asked = await _body(request)
        if isinstance(asked, Response):
            return asked
        if asked.get("do") == "report":
            return JSONResponse(_report(session, tickets, asked.get("run")))
        return JSONResponse(await run_in_threadpool(session.handle, asked))

    @app.get("/report/{ticket}")
    def report(ticket: str) -> Response:
        try:
            path: Path = tickets.use(ticket)
        except KeyError:
            return Response("this address was used before", 404)
        return HTMLResponse(path.read_bytes(), headers={"content-security-policy": REPORT_POLICY})

    return Guard(app, token, port, tickets)


def _report(session: Session, tickets: Tickets, run: Any) -> dict[str, Any]:
    """Where a frame finds the report of a run: an address that opens once."""
    if not isinstance(run, int) or not 0 <= run < len(session.runs):
        return {"error": f"run {run!r}: there is no such run"}
    path = session.runs[run].path
    if not isinstance(path, Path) or not (path / "report.html").is_file():
        return {"error": f"{path}: it has no report here; `probes report` writes one"}
    return {"address": f"/report/{tickets.issue(path / 'report.html')}"}


async def _body(request: Request) -> dict[str, Any] | Response:
    """The request's JSON object, or the refusal of what is none."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return Response("send JSON (content-type application/json)", 415)
    read = bytearray()
    try:
        async for piece in request.stream():
            read += piece
            if len(read) > MOST_BYTES:
                return Response(f"more than {MOST_BYTES} bytes", 413)
    except ClientDisconnect:  # nobody reads this
        return Response("half a request", 400)
    try:
        asked = json.loads(read)
    except (ValueError, RecursionError):
        return Response("this is not JSON", 400)
    return asked if isinstance(asked, dict) else Response("send one JSON object", 400)


def _launcher(folder: Path, address: str) -> Path:
    """A page that only this user can read, and that leads to the address: command lines are for everyone to see."""
    path = folder / "open.html"
    path.touch(mode=0o600)
    path.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">', encoding="utf-8")
    return path
