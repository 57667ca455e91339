"""A Flower ``Grid`` on one machine: calls the ClientApp through worker processes, no SuperLink, no Ray.

The same ServerApp and ClientApp run here and over a SuperLink. Nodes are numbered 1 to n and exist only when a message is sent
to them, so a round costs what its cohort costs, whatever the number of virtual sites. This is the one module of the simulation
that touches Flower's internals (`TaskIdentity` and message ids).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from cloister.core.errors import CloisterError
from cloister.simulation.packing import Attached, Block, Outbox, Packed, Piece, pack, payload, unpack
from cloister.simulation.workers import Result, Runner, Task, Workers, undisturbed

__all__ = ["LocalGrid", "client_runner"]

_RUN_ID = 1
_SERVER_NODE = 1 << 62
_RAISED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
_POLL_S = 0.2  # at least the longest pause of `cloister.server.exchange`

NodeConfig = Callable[[int], dict[str, Any]]


def client_runner(app: ClientApp) -> Runner:
    """Return what a worker does with a task: call ``app`` with a message and a context made for it."""

    def run(task: Task, attached: Attached, outbox: Outbox) -> Result:
        if time.time() > task.expires:  # nobody waits for it: train nothing, spend nothing
            return Result(ticket=task.ticket)
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = _RUN_ID, 1, task.node
        state = RecordDict() if task.state is None else unpack(task.state, attached.take)
        context = Context(
            run_id=_RUN_ID, node_id=task.node, node_config=task.node_config, state=state, run_config={}
        )
        try:
            reply = app(_message(task, unpack(task.content, attached.view)), context)
        except Exception:  # noqa: BLE001 - an app of somebody else's: its text stays here, as over a SuperLink it should
            return Result(ticket=task.ticket, error=_RAISED)
        if reply.has_error():
            return Result(ticket=task.ticket, error=reply.error.code)
        arrays = _distinct([*_arrays(reply.content), *_arrays(context.state)])
        try:
            block = outbox.place([payload(array) for array in arrays]) if arrays else None
        except CloisterError:  # shared memory is full
            return Result(ticket=task.ticket)
        pieces = _by_array(arrays, block)
        return Result(
            ticket=task.ticket,
            content=pack(reply.content, lambda array: pieces[id(array)]),
            state=pack(context.state, lambda array: pieces[id(array)]) if context.state else None,
            block=block.memory.name if block else None,
        )

    return run


class LocalGrid(Grid):
    """Sends messages to virtual sites on this machine.

    Args:
        nodes: how many virtual sites there are.
        node_config: gives the ``node_config`` of the node with a number from 1 to ``nodes``.
        workers: what runs the ClientApp.
    """

    def __init__(self, *, nodes: int, node_config: NodeConfig, workers: Workers) -> None:
        self._nodes = nodes
        self._node_config = node_config
        self._workers = workers
        self._numbers = itertools.count(1)
        self._sent: dict[str, Message] = {}
        self._blocks: dict[str, tuple[Block, set[str]]] = {}
        self._done: dict[str, Message] = {}
        self._attached = Attached()
        self.states: dict[int, RecordDict] = {}
        self._run = Run.create_empty(run_id=_RUN_ID)
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = _RUN_ID, 1, _SERVER_NODE

    def set_run(self, run: Run) -> None:
        """Set the run that this grid works for."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that this grid works for."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> range:
        """Return the nodes' numbers, as a range: a million of them cost nothing."""
        return range(1, self._nodes + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue ``messages``; an array that several of them share is placed in shared memory once."""
        batch = list(messages)
        arrays = _distinct([array for message in batch for array in _arrays(message.content)])
        block = self._place(arrays)
        pieces = _by_array(arrays, block)
        tickets = []
        for message in batch:
            ticket = f"{next(self._numbers):032x}"
            tickets.append(ticket)
            message.metadata.__dict__["_message_id"] = ticket
            self._sent[ticket] = message
        if block:
            self._blocks[block.memory.name][1].update(tickets)
        packed: dict[int, Packed] = {}  # a cohort's messages share their content
        for ticket, message in zip(tickets, batch, strict=True):
            if id(message.content) not in packed:
                packed[id(message.content)] = pack(message.content, lambda array: pieces[id(array)])
            self._submit(ticket, message, packed[id(message.content)])
        return tickets

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to ``message_ids`` that are there, waiting a moment for the first."""
        wanted = set(message_ids)
        if not wanted & self._done.keys():
            for result in self._workers.results(_POLL_S):
                self._receive(result)
        return [self._done.pop(ticket) for ticket in sorted(wanted & self._done.keys())]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send ``messages`` and return the replies that came within ``timeout`` seconds."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def close(self) -> None:
        """Stop the workers and free all shared memory; Ctrl-C waits for that."""
        with undisturbed():
            try:
                self._workers.close()
            finally:
                while self._blocks:
                    self._blocks.popitem()[1][0].free()

    def _place(self, arrays: list[Array]) -> Block | None:
        """Place arrays in a block that `close` frees, whatever happens before."""
        if not arrays:
            return None
        block = Block([payload(array) for array in arrays], private=self._workers.private)
        self._blocks[block.memory.name] = (block, set())
        return block

    def _submit(self, ticket: str, message: Message, content: Packed) -> None:
        node = message.metadata.dst_node_id
        state = self.states.get(node)
        packed_state = None
        if state:
            arrays = _distinct(_arrays(state))
            block = self._place(arrays)
            if block:
                self._blocks[block.memory.name][1].add(ticket)
            by_array = _by_array(arrays, block)
            packed_state = pack(state, lambda array: by_array[id(array)])
        self._workers.submit(
            Task(
                ticket=ticket,
                node=node,
                node_config=self._node_config(node),
                message_type=message.metadata.message_type,
                round_group=message.metadata.group_id,
                expires=message.metadata.created_at + message.metadata.ttl,
                content=content,
                state=packed_state,
            )
        )

    def _receive(self, result: Result) -> None:
        message = self._sent.pop(result.ticket)
        for name, (block, tickets) in list(self._blocks.items()):
            tickets.discard(result.ticket)
            if not tickets:
                block.free()
                del self._blocks[name]
        try:
            self._keep(result, message)
        finally:
            if result.block is not None:
                self._workers.was_read(result.block)

    def _keep(self, result: Result, message: Message) -> None:
        if time.time() > message.metadata.created_at + message.metadata.ttl:
            return
        if result.content is None:
            self._done[result.ticket] = Message(Error(code=result.error), reply_to=message)
            return
        reply = Message(unpack(result.content, self._attached.take), reply_to=message)
        if result.state is not None:
            self.states[message.metadata.dst_node_id] = unpack(result.state, self._attached.take)
        self._done[result.ticket] = reply


def _message(task: Task, content: RecordDict) -> Message:
    TaskIdentity.node_id = _SERVER_NODE
    message = Message(content, task.node, task.message_type, group_id=task.round_group)
    message.metadata.__dict__["_message_id"] = task.ticket
    TaskIdentity.node_id = task.node
    return message


def _arrays(content: RecordDict) -> list[Array]:
    return [array for record in content.array_records.values() for array in record.values()]


def _distinct(arrays: list[Array]) -> list[Array]:
    return list({id(array): array for array in arrays}.values())


def _by_array(arrays: list[Array], block: Block | None) -> dict[int, Piece]:
    return dict(zip(map(id, arrays), block.pieces, strict=True)) if block else {}
