"""What is in a reply, exactly, for the site's log; and whether a run may send that at all."""

from __future__ import annotations

import hashlib
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from cloister.client.gate.judging import refused
from cloister.client.gate.policy import Allow
from cloister.core import protocol
from cloister.core.errors import IntegrityError
from cloister.core.spec import FederationSpec
from cloister.privacy.ledger.telling import FromSite

__all__ = ["check_reply", "contents", "steps_of", "told_of_ledger"]

#: The records that a reply may hold, and where their arrays or fields are named, which.
_ARRAYS = {protocol.VECTOR, protocol.CONTROL, protocol.WITHIN, protocol.SUM}
_RECORDS: dict[str, type] = {
    protocol.UPDATE: ArrayRecord,
    protocol.REPORT: MetricRecord,
    protocol.SECURE: ConfigRecord,
    protocol.LEDGER: ConfigRecord,
    protocol.SITE: ConfigRecord,
    protocol.CANARIES: ConfigRecord,
    protocol.REFUSAL: ConfigRecord,
}


def contents(reply: Message) -> list[dict[str, Any]]:
    """Return every record of a reply: names, kinds, shapes, bytes and SHA-256 of what is in it, and no value."""
    return [_record(name, record) for name, record in reply.content.items()]


def check_reply(reply: Message, spec: FederationSpec, rule: Allow) -> None:
    """Check that a reply holds nothing but what ``rule`` lets leave.

    Raises:
        PolicyError: (policy-output, policy-metric) it does.
    """
    protected = spec.aggregation.protection != "plain"
    for name, record in reply.content.items():
        if not isinstance(record, _RECORDS.get(name, ())):
            raise refused(
                "policy-output", f"the site's program would send a record '{name[:32]}', which no run sends"
            )
        if name == protocol.CANARIES and not (rule.canaries and spec.audit.canaries is not None):
            raise refused("policy-output", "coins of canaries would leave, and this run may plant none here")
        if name == protocol.UPDATE:
            arrays = set(record)
            if not arrays <= _ARRAYS or (protected and arrays != {protocol.SUM}):
                raise refused(
                    "policy-output",
                    "the site's program would send other arrays than the federation's protection has",
                )
            if protocol.CONTROL in arrays and "control" not in rule.outputs:
                raise refused(
                    "policy-output",
                    "the control variate would leave, and 'control' is not among the allowed outputs",
                )
        if isinstance(record, MetricRecord):
            _check_report(record, rule, protected=protected)


def steps_of(spec: FederationSpec, message_type: str) -> list[str]:
    """Return what was done to a message's numbers before they left, in order."""
    protection = {
        "plain": [],
        "masked": ["rounded to integers", "masked"],
        "bfv": ["rounded to integers", "encrypted (bfv)"],
        "ckks": ["rounded to integers", "encrypted (ckks)"],
        "threshold-bfv": ["rounded to integers", "encrypted (threshold-bfv)"],
    }[spec.aggregation.protection]
    if message_type.startswith("query"):
        return []
    if message_type.startswith("evaluate"):
        return ["measured", *protection]
    privacy = {
        "none": [],
        "record": ["each record's gradient clipped", "noised at each step"],
        "record-distributed": [
            "each record's gradient clipped",
            "noised with a share",
            "rounded to integers",
        ],
        "site": ["clipped"],
        "site-local": ["clipped", "noised"],
        "site-distributed": ["clipped", "rounded to integers", "noised with a share"],
    }[spec.privacy.unit]
    return list(dict.fromkeys(["trained", *privacy, *protection]))


def told_of_ledger(reply: Message) -> dict[str, Any]:
    """Return what the reply says of the site's ledger: ε spent of its cap, and its newest line; empty where it says nothing."""
    said = reply.content.config_records.get(protocol.LEDGER)
    if said is None:
        return {}
    told = FromSite.from_json(said.get(protocol.LEDGER))
    finite = told.epsilon if told.epsilon < float("inf") else None
    return {
        "epsilon": finite,
        "delta": told.delta,
        "cap": told.cap,
        "line": told.head.seq,
        "hash": told.head.entry_hash,
    }


def _check_report(record: MetricRecord, rule: Allow, *, protected: bool) -> None:
    if protected or "metrics" not in rule.outputs:
        raise refused(
            "policy-output",
            "figures on this site's records would leave in clear, and 'metrics' is not among the allowed outputs",
        )
    if rule.metrics != "*":
        odd = [name for name in record if name.removeprefix(protocol.METRIC) not in rule.metrics]
        if odd:
            raise refused(
                "policy-metric", f"'{odd[0][:64]}' would leave, and the policy's metrics do not name it"
            )


def _record(name: str, record: object) -> dict[str, Any]:
    if isinstance(record, ArrayRecord):
        arrays = [
            {
                "name": key,
                "shape": list(array.shape),
                "dtype": array.dtype,
                "form": array.stype,
                "bytes": len(array.data),
                "sha256": hashlib.sha256(array.data).hexdigest(),
            }
            for key, array in record.items()
        ]
        return {"record": name, "arrays": arrays}
    if isinstance(record, MetricRecord | ConfigRecord):
        fields = [
            {"name": key, "kind": _kind(value), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
            for key, value in record.items()
            for raw in [_raw(value)]
        ]
        return {"record": name, "fields": fields}
    raise IntegrityError(f"a reply holds a record of an unknown kind, '{name[:32]}'", code="policy-output")


def _kind(value: object) -> str:
    return f"list of {len(value)}" if isinstance(value, list) else type(value).__name__


def _raw(value: object) -> bytes:
    return value if isinstance(value, bytes) else repr(value).encode()
