"""The web server's settings: no log of addresses, no trust in what a proxy says, streams that end when it is told to."""

from __future__ import annotations

import asyncio
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

__all__ = ["Server"]


class Server(uvicorn.Server):
    """Serves ``app`` and sets ``stopping`` when the process is to end, so that open streams end first."""

    def __init__(self, app: ASGIApp, stopping: asyncio.Event) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
                limit_concurrency=1000,
                lifespan="off",
                proxy_headers=False,
            )
        )
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the streams, then the server."""
        self._stopping.set()
        super().handle_exit(sig, frame)
