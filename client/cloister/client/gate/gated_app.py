"""A ClientApp behind a gate."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flwr.app import Context, Message, RecordDict

from cloister.client.app import SiteSource, refusal, refusal_of
from cloister.client.gate.gate import Gate
from cloister.client.gate.limits import bounded
from cloister.client.gate.refusing import OFTEN
from cloister.client.incoming import read_job
from cloister.core import protocol
from cloister.core.errors import CloisterError

__all__ = ["GatedApp"]


class GatedApp:
    """A ClientApp that answers one message at a time, and only what its gate lets in and out.

    Args:
        app: the ClientApp.
        gate: the gate.
        source: what ``app`` finds its workbench and records with.
    """

    def __init__(self, app: Callable[[Message, Context], Message], gate: Gate, source: SiteSource) -> None:
        self._app = app
        self._gate = gate
        self._source = source
        self._one = threading.Lock()

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message: with what the app says, or with a refusal."""
        with self._one:
            try:
                with bounded(self._gate.memory()):  # to decide, a run's model may have to be built
                    admitted = self._gate.admit(message, context, self._source)
                    reply = self._app(message, context)
                self._gate.let_out(admitted, message, reply)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - nothing of it may leave but what `refusal_of` lets through
                return Message(self._refused(message, error), reply_to=message)
            return reply

    def _refused(self, message: Message, error: BaseException) -> RecordDict:
        content = refusal_of(error)
        said = content.config_records[protocol.REFUSAL]
        kind = message.metadata.message_type
        if said["code"] == OFTEN:
            return content
        try:
            self._gate.note_refusal(
                _run_of(message), kind, str(said["code"]), str(said["message"]), by="gate"
            )
        except CloisterError as unwritten:
            if unwritten.code == OFTEN:  # one line says so of all
                return refusal_of(unwritten)
            return refusal(
                unwritten.code, "this site's log cannot be written, and nothing leaves that is not in it"
            )
        return content


def _run_of(message: Message) -> str:
    """Return the run's name as the message has it, which nobody may have vouched for; empty where it has none."""
    try:
        return read_job(message).run
    except Exception:  # noqa: BLE001 - it was refused already
        return ""
