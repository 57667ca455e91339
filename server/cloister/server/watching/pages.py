"""The web application: pages, static files, snapshots and streams of events. It answers and never does.

Every answer carries a strict Content-Security-Policy: scripts and styles from here only, none inline, nothing from anywhere else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloister.server.watching.access import Access
from cloister.server.watching.feed import PERIOD_S, Feed
from cloister.server.watching.listing import Listing
from cloister.server.watching.place import PlaceWatch
from cloister.server.watching.run_watch import RunWatch

__all__ = ["HEADERS", "MOST_VIEWERS", "Pages", "application"]

MOST_VIEWERS = 100
_FEEDS, _FORM = 16, 4096
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_STATIC = {
    "watch.css": "text/css",
    "watch.js": "text/javascript",
    "plot.js": "text/javascript",
    "words.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


class Pages:
    """Answers requests about one run, or a folder of runs.

    Args:
        path: a run's folder, or a folder of runs; where it is not there yet, it is a run's unless runs turn up in it.
        period_s: seconds between two reads.
    """

    def __init__(self, path: Path, *, period_s: float = PERIOD_S) -> None:
        self._listing = Listing(path)
        self._root = Feed(PlaceWatch(path), period_s=period_s)
        self._period_s = period_s
        self._feeds: OrderedDict[str, Feed] = OrderedDict()
        self._viewers = 0
        self.stopping = asyncio.Event()
        folder = files("cloister.server.watching") / "static"
        self._static = {name: (folder / name).read_bytes() for name in _STATIC}
        self._page = (folder / "page.html").read_bytes()

    def routes(self) -> list[Route]:
        """Return what is answered."""
        return [
            Route("/", self._show),
            Route("/snapshot.json", self._snapshot),
            Route("/stream", self._stream),
            Route("/runs/{name}", self._show),
            Route("/runs/{name}/snapshot.json", self._snapshot),
            Route("/runs/{name}/stream", self._stream),
            Route("/static/{file}", self._file),
        ]

    async def _show(self, request: Request) -> Response:
        self._feed(request)
        return Response(self._page, media_type="text/html")

    async def _file(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name not in self._static:
            raise HTTPException(404)
        return Response(self._static[name], media_type=_STATIC[name])

    async def _snapshot(self, request: Request) -> Response:
        return Response(await self._feed(request).snapshot(), media_type="application/json")

    async def _stream(self, request: Request) -> Response:
        feed = self._feed(request)
        if self._viewers >= MOST_VIEWERS:
            raise HTTPException(503, "too many are looking")

        async def told() -> Any:
            self._viewers += 1
            try:
                async for chunk in feed.stream(self.stopping):
                    yield chunk
            finally:
                self._viewers -= 1

        return StreamingResponse(told(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    def _feed(self, request: Request) -> Feed:
        name = request.path_params.get("name")
        if name is None:
            return self._root
        path, key = self._listing.run(name), f"/runs/{name}"
        if path is None:
            raise HTTPException(404, "there is no such run here")
        if key not in self._feeds:
            self._feeds[key] = Feed(RunWatch(path), period_s=self._period_s)
        self._feeds.move_to_end(key)
        while len(self._feeds) > _FEEDS:  # a viewer that is still there goes on with its own
            self._feeds.popitem(last=False)
        return self._feeds[key]


def application(pages: Pages, access: Access, *, cookie: str = "cloister-watch") -> ASGIApp:
    """Return the application behind its guard.

    Args:
        pages: what is answered.
        access: who may look.
        cookie: the cookie's name; a browser keeps one cookie jar for all ports of a host.
    """
    return _Guard(Starlette(routes=pages.routes()), access, cookie)


class _Guard:
    """Stands before everything: host, origin, method, token; and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, access: Access, cookie: str) -> None:
        self._app, self._access, self._cookie = app, access, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets here
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        request = Request(scope, receive)
        answer = await self._refusal(request)
        await (answer or self._app)(scope, receive, headed)

    async def _refusal(self, request: Request) -> Response | None:
        if (refused := self._foreign(request)) is not None:
            return refused
        guarded = self._access.token is not None
        if guarded and request.method == "POST" and request.url.path == "/enter":
            return self._entered((await _form(request)).get("token", ""), "/")
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("Only for reading.", 405)
        token = request.query_params.get("token")
        if guarded and token is not None:
            rest = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
            # One slash: two would lead to another host.
            to = quote("/" + request.url.path.lstrip("/")) + (f"?{urlencode(rest)}" if rest else "")
            return self._entered(token, to)
        # Static files are the same for everybody and hold nothing of a run.
        free = request.url.path.startswith("/static/") or self._access.admits(
            request.cookies.get(self._cookie)
        )
        return None if free else self._form(403)

    def _foreign(self, request: Request) -> Response | None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._access.is_ours(hosts[0]):
            text = "This host name is not one that this page answers to: use the address that cloister watch printed, or give --host."
            return PlainTextResponse(text, 403)
        came = request.headers.get("sec-fetch-site", "none")
        if came not in ("none", "same-origin") and request.headers.get("sec-fetch-mode") != "navigate":
            return PlainTextResponse("Another site's page may not read this.", 403)
        return None

    def _entered(self, token: str, to: str) -> Response:
        if not self._access.opens(token):
            return self._form(403, "That is not the token.")
        answer = RedirectResponse(to, 303)
        answer.set_cookie(self._cookie, self._access.cookie, httponly=True, samesite="strict", path="/")
        return answer

    @staticmethod
    def _form(status: int, note: str = "") -> Response:
        page = (files("cloister.server.watching") / "static" / "enter.html").read_text(encoding="utf-8")
        return Response(page.replace("<!-- note -->", note), status, media_type="text/html")


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _FORM:
            return {}
    return {key: values[0] for key, values in parse_qs(body.decode("latin-1")).items()}
