"""The site runner: asks the coordinator for work, answers it through the gate, and goes on whatever the network or the server does.

One warm process. It asks often while a run is under way and seldom else; a lost line is opened again, with longer and longer pauses.

Formal guarantees:

- Only the installed ClientApp answers, and only through what it is wrapped in (the gate): nothing that arrives is run.
- Whatever a message is, or makes of the program that answers it, the site goes on.
- A message whose time is over is not answered: nobody would take the answer, and training for it would cost budget.
- An answer that could not be sent is sent again when the line is back, and made once. One that the coordinator takes no more, or fails at again
  and again, is dropped: it does not keep the site from answering others.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context, Message, RecordDict
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cloister.client.fleet_link import FleetLink, UnwantedError
from cloister.client.message_form import MessageLostError
from cloister.client.site_config import ServerTable
from cloister.client.tls_line import LinkLostError
from cloister.core import protocol
from cloister.core.errors import PolicyError

__all__ = ["Answerer", "Runner", "Watched"]

_LOG = logging.getLogger("cloister.client.runner")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_SLOWER = 1.3
#: A site waits at least so many times as long as its last question took: many sites at one coordinator would else keep it busy with questions.
_YIELDS = 3.0
_KEPT_RUNS = 8
#: How often the coordinator may fail at one answer.
_TRIES = 3

#: Answers a message in its run's context: the ClientApp behind the gate.
Answerer = Callable[[Message, Context], Message]


@dataclass
class Watched:
    """What the runner tells of itself; read by other threads."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    connected: bool = False
    last_contact: float = 0.0
    last_message: float = 0.0

    def __post_init__(self) -> None:
        self.up = Gauge("cloister_site_connected", "1 while the coordinator answers", registry=self.registry)
        self.messages = Counter(
            "cloister_site_messages", "messages answered", ["kind", "outcome"], registry=self.registry
        )
        self.bytes = Counter("cloister_site_sent_bytes", "bytes of answers", registry=self.registry)
        self.seconds = Histogram(
            "cloister_site_answer_seconds",
            "from a message to its answer",
            ["kind"],
            registry=self.registry,
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 1800),
        )

    def health(self) -> dict[str, Any]:
        """Return how the runner is."""
        return {
            "ok": self.connected,
            "connected": self.connected,
            "last_contact": self.last_contact or None,
            "last_message": self.last_message or None,
        }


class Runner:
    """Runs one site until it is told to stop.

    Args:
        server: where the coordinator is, and how often to ask.
        connect: opens a line to it.
        answer: answers a message.
        watched: what is told of it.
        idle: is called now and then while there is nothing to do.
    """

    def __init__(
        self,
        server: ServerTable,
        connect: Callable[[], FleetLink],
        answer: Answerer,
        watched: Watched | None = None,
        *,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._server, self._connect, self._answer = server, connect, answer
        self.watched = watched or Watched()
        self._idle = idle
        self._contexts: OrderedDict[int, Context] = OrderedDict()
        self._unsent: tuple[Message, float] | None = None
        self._failed = 0

    def run(self, stop: threading.Event) -> None:
        """Answer until ``stop`` is set."""
        pause = _FIRST_PAUSE_S
        while not stop.is_set():
            try:
                with self._connect() as link:
                    _LOG.info("connected to %s as node %d", self._server.address, link.node_id)
                    self._connected(True)
                    pause = _FIRST_PAUSE_S
                    self._serve(link, stop)
            except LinkLostError as error:
                _LOG.warning("the line to %s is lost: %s", self._server.address, error)
            except PolicyError as error:
                _LOG.error("%s", error)
                pause = _LONGEST_PAUSE_S / 2
            except Exception:  # noqa: BLE001 - whatever a server sent: it must not end the site
                _LOG.exception("a fault; the line is opened anew")
            finally:
                self._connected(False)
            if not stop.is_set():
                stop.wait(pause * random.uniform(0.7, 1.0))  # noqa: S311 - so that sites do not come back all at once
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _serve(self, link: FleetLink, stop: threading.Event) -> None:
        pause = self._server.busy_poll_s
        while not stop.is_set():
            if self._unsent is not None:
                self._send(link, *self._unsent)
            asked = time.monotonic()
            try:
                message = link.receive()
            except MessageLostError as error:
                _LOG.warning("a message was not taken: %s", error)
                self.watched.messages.labels(kind="unknown", outcome="lost").inc()
                self._idle()
                stop.wait(pause)
                continue
            self.watched.last_contact = time.time()
            if message is None:
                self._idle()
                stop.wait(max(pause, min(_YIELDS * (time.monotonic() - asked), self._server.idle_poll_s)))
                pause = min(_SLOWER * pause, self._server.idle_poll_s)
                continue
            pause = self._server.busy_poll_s
            self._take(message, link.node_id)

    def _take(self, message: Message, node: int) -> None:
        kind, since = message.metadata.message_type, time.time()
        self.watched.last_message = since
        known = kind if kind in _KINDS else "unknown"
        if since > message.metadata.created_at + message.metadata.ttl:
            _LOG.warning("a message is not answered: its time is over")
            self.watched.messages.labels(kind=known, outcome="late").inc()
            return
        try:
            reply = self._answer(message, self._context(message.metadata.run_id, node))
        except Exception:  # noqa: BLE001 - nothing leaves
            _LOG.exception("a message could not be answered")
            self.watched.messages.labels(kind=known, outcome="lost").inc()
            return
        seconds = time.time() - since
        refused = reply.has_content() and protocol.REFUSAL in reply.content
        self.watched.messages.labels(kind=known, outcome="refused" if refused else "answered").inc()
        self.watched.seconds.labels(kind=known).observe(seconds)
        self._unsent, self._failed = (reply, seconds), 0

    def _send(self, link: FleetLink, reply: Message, seconds: float) -> None:
        if time.time() <= reply.metadata.created_at + reply.metadata.ttl:
            try:
                sent = link.send(reply, seconds)
                self.watched.bytes.inc(sent)
                if not sent:
                    _LOG.info("nothing of an answer was wanted: it is there already, or was given up")
            except LinkLostError as error:
                self._failed += error.failed
                if self._failed < _TRIES:
                    raise  # it is sent when the line is back
                self._drop(reply, f"the coordinator failed at it {self._failed} times: {error}")
            except PolicyError as error:
                self._failed += 1
                if self._failed < _TRIES:
                    raise  # as above
                self._drop(reply, f"the coordinator refused it {self._failed} times: {error.message}")
            except UnwantedError as error:
                self._drop(reply, str(error))
            except Exception:  # noqa: BLE001 - it cannot be written as a message, now or later
                _LOG.exception("an answer could not be sent")
        self._unsent = None

    def _drop(self, reply: Message, why: str) -> None:
        """Note that an answer is sent no more."""
        _LOG.warning("an answer is dropped: %s", why)
        kind = reply.metadata.message_type
        self.watched.messages.labels(kind=kind if kind in _KINDS else "unknown", outcome="dropped").inc()

    def _context(self, run: int, node: int) -> Context:
        found = self._contexts.get(run)
        if found is None:
            found = Context(run_id=run, node_id=node, node_config={}, state=RecordDict(), run_config={})
            self._contexts[run] = found
            while len(self._contexts) > _KEPT_RUNS:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(run)
        return found

    def _connected(self, now: bool) -> None:
        self.watched.connected = now
        self.watched.up.set(int(now))


_KINDS = (
    "train",
    "evaluate",
    "query",
    protocol.SECURE_QUERY,
    protocol.SEAL_QUERY,
    protocol.OPEN_QUERY,
)
