"""One reader for all who look: what is watched is read once, put into bytes once, and every viewer gets what changed.

Formal guarantees:

- Nothing is read while nobody looks, and at most once in `PERIOD_S` however many do.
- A viewer that is slow gets the newest state when it is ready, not a queue: memory does not grow with slow viewers.
- A viewer that comes, or comes back, is told everything once, and then what changed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

__all__ = ["PERIOD_S", "Feed", "Watched", "plain_json"]

PERIOD_S = 1.0
_KEEPALIVE_S = 15.0


class Watched(Protocol):
    """What can be watched."""

    def refresh(self) -> bool:
        """Read what is new; return whether there is more to read at once."""
        ...

    def sections(self, *, wait_s: float = 0.0) -> dict[str, Any]:
        """Return all there is to show, by part."""
        ...


class Feed:
    """Reads one `Watched` for any number of viewers.

    Args:
        watched: what is read; by one thread at a time.
        period_s: seconds between two reads.
    """

    def __init__(self, watched: Watched, *, period_s: float = PERIOD_S) -> None:
        self._watched = watched
        self._period_s = period_s
        self._parts: dict[str, tuple[int, str]] = {}
        self._version = 0
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    async def snapshot(self) -> str:
        """Return everything, as one JSON object."""
        await self._read()
        return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, (_, text) in self._parts.items()) + "}"

    async def stream(self, stopping: asyncio.Event) -> AsyncIterator[bytes]:
        """Yield server-sent events: ``parts`` with the parts that changed; a comment where nothing did for long."""
        sent, clock = 0, asyncio.get_running_loop().time
        told_at = clock()
        yield b"retry: 2000\n\n"
        while not stopping.is_set():
            await self._read()
            new = {name: text for name, (version, text) in self._parts.items() if version > sent}
            sent = self._version
            if new:
                body = ",".join(f"{json.dumps(name)}:{text}" for name, text in new.items())
                yield f"event: parts\nid: {sent}\ndata: {{{body}}}\n\n".encode()
                told_at = clock()
            elif clock() - told_at > _KEEPALIVE_S:
                yield b": still here\n\n"
                told_at = clock()
            try:
                await asyncio.wait_for(stopping.wait(), self._period_s)
            except TimeoutError:
                continue

    async def _read(self) -> None:
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now - self._read_at < 0.9 * self._period_s:
                return
            parts = await asyncio.to_thread(self._work)
            self._read_at = asyncio.get_running_loop().time()
            changed = {
                name: text for name, text in parts.items() if self._parts.get(name, (0, ""))[1] != text
            }
            if changed:
                self._version += 1
                self._parts |= {name: (self._version, text) for name, text in changed.items()}

    def _work(self) -> dict[str, str]:
        for _ in range(8):  # a long file is read in slices, and what there is so far is shown
            if not self._watched.refresh():
                break
        return {name: plain_json(part) for name, part in self._watched.sections().items()}


def plain_json(value: Mapping[str, Any] | Any) -> str:
    """Return strict JSON on one line."""
    from cloister.server.events import plain

    return json.dumps(plain(value), allow_nan=False, ensure_ascii=True, separators=(",", ":"))
