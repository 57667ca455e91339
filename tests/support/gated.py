"""A real site behind its gate, in one process: its folder, a user's requests, and what a server sends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from cloister.client.app import make_client_app
from cloister.client.deployed import DeployedSite
from cloister.client.gate.gate import Gate, open_gate
from cloister.client.gate.gated_app import GatedApp
from cloister.client.site_config import load_site
from cloister.core import protocol
from cloister.core.spec import parse_federation
from cloister.privacy.identity import ConsortiumAuthority, Identity, Role
from cloister.privacy.identity.documents import sealed
from cloister.privacy.identity.kit import Kit
from cloister.privacy.identity.members import Purpose
from cloister.privacy.identity.register import REVOKED, Revoked
from cloister.privacy.request import JobRequest, SignedRequest

__all__ = ["TASK", "GatedSite", "federation", "policy"]

TASK = '''
import torch
from torch import nn
from cloister.core import Split, Task, TensorData

class Rings(Task):
    """Points inside or outside a ring, in eight dimensions."""
    classes = ("inside", "outside")

    def __init__(self, records: int = 120, fault: str = "") -> None:
        self.records, self.fault = records, fault

    def model(self) -> nn.Module:
        first = nn.Linear(8, 2048 if self.fault == "wide" else 32)
        if self.fault == "imprint":
            with torch.no_grad():
                first.weight.copy_(torch.ones(32, 8) * torch.linspace(0.1, 1, 32)[:, None])
                first.bias.copy_(-torch.linspace(0, 2, 32))
        if self.fault == "raise":
            raise RuntimeError("Jane Doe 1950-01-01")
        return nn.Sequential(first, nn.ReLU(), nn.Linear(first.out_features, 2))

    def data(self) -> Split:
        x = torch.randn(self.records, 8, generator=torch.Generator().manual_seed(1))
        y = (x.norm(dim=1) > 2.7).long()
        cut = self.records * 3 // 4
        return Split(TensorData(x[:cut], y[:cut]), TensorData(x[cut:], y[cut:]))
'''

RECORD = {"unit": "record", "noise_multiplier": 1.1, "delta": 1e-4, "clip": 0.5, "sampling_rate": 0.2}


def federation(**tables: dict[str, Any]) -> dict[str, Any]:
    """Return the effective file of a private federation of three rounds in clear, with tables laid over it."""
    document: dict[str, Any] = {
        "federation": {"name": "rings", "rounds": 3},
        "task": {"use": "rings.py:Rings"},
        "cohort": {"min_sites": 3},
        "aggregation": {"protection": "plain"},
        "training": {"local_steps": 2, "batch_size": 16, "device": "cpu"},
        "privacy": RECORD,
    }
    for name, table in tables.items():
        document[name] = {**document.get(name, {}), **table}
    return parse_federation({k: v for k, v in document.items() if v}, base=Path()).effective()


def policy(rule: dict[str, Any] | None = None, **tables: dict[str, Any]) -> dict[str, Any]:
    """Return a policy that allows `federation` without anybody's approval, with keys of its rule and tables laid over it."""
    allowed = {
        "dataset": "rings",
        "task": "rings.py:Rings",
        "code": "any",
        "protection": ["plain"],
        "units": ["record"],
        "approval": "never",
        **(rule or {}),
    }
    return {"who": {"users": ["ada"]}, "allow": [allowed], **tables}


class GatedSite:
    """A site's folder, its consortium, and a line to its ClientApp.

    Args:
        folder: of the site's own.
        policy: what it allows.
    """

    def __init__(self, folder: Path, policy: dict[str, Any]) -> None:
        self.folder, self.clock = folder, datetime.now(UTC)
        self.authority = ConsortiumAuthority("tests", Ed25519PrivateKey.generate())
        self.users = {name: self.member(name, Role.USER) for name in ("ada", "eve")}
        self.kit = Kit(
            folder=folder, identity=self.member("north", Role.SITE), consortium=self.authority.consortium()
        )
        (folder / "consortium.der").write_bytes(self.authority.certificate)
        (folder / "rings.py").write_text(TASK)
        site = {
            "site": {"name": "north"},
            "server": {"address": "localhost:8443"},
            "data": {"rings": {"task": "rings.py:Rings"}},
        }
        (folder / "site.toml").write_text(tomli_w.dumps(site))
        self.write(policy)
        self.gate: Gate | None = None

    def member(self, name: str, role: Role) -> Identity:
        return self.authority.identity(name, role, Ed25519PrivateKey.generate())

    def write(self, policy: dict[str, Any]) -> None:
        (self.folder / "policy.toml").write_text(tomli_w.dumps(policy))

    def revoke(self, identity: Identity) -> None:
        from cryptography import x509

        serial = x509.load_der_x509_certificate(identity.certificate).serial_number
        content = Revoked(
            number=1,
            consortium=self.authority.consortium().fingerprint,
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            identities=[f"{serial:x}"],
            tls=[],
            nodes=[],
        )
        (self.folder / REVOKED).write_bytes(
            sealed(content, lambda raw: self.authority.sign(Purpose.REVOKED, raw))
        )

    def open(self, app: Callable[[Message, Context], Message] | None = None) -> GatedSite:
        """Start the site (anew)."""
        if self.gate is not None:
            self.gate.close()
        config = load_site(self.folder)
        self.gate = open_gate(self.folder, config, self.kit, now=lambda: self.clock, durable=False)
        source = DeployedSite(
            self.folder,
            config,
            self.kit,
            dataset_for=self.gate.dataset_for,
            floors=lambda: self._gate.floors,
            bounds=self.gate.bounds_for,
            consortium=self.gate.consortium,
        )
        self.source = source
        self.app = GatedApp(app or make_client_app(source), self.gate, source)
        return self

    @property
    def _gate(self) -> Gate:
        assert self.gate is not None
        return self.gate

    def request(self, file: dict[str, Any], user: str = "ada", *, days_ago: float = 0, **more: Any) -> Asked:
        made = JobRequest.new("rings", _digest(file), purpose="to learn", **more)
        at = self.clock - timedelta(days=days_ago)
        made = replace(made, at=at.strftime("%Y-%m-%dT%H:%M:%SZ"))
        return Asked(self, file, made, made.signed(self.users[user]))

    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "state" / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def kinds(self) -> list[str]:
        return [line["kind"] for line in self.lines()]


class Asked:
    """A run that was asked for, and its messages."""

    def __init__(
        self, site: GatedSite, file: dict[str, Any], request: JobRequest, signed: SignedRequest
    ) -> None:
        self.site, self.file, self.request, self.signed = site, file, request, signed

    def message(
        self, kind: str = "train", number: int = 1, vector: np.ndarray | None = None, **job: Any
    ) -> Message:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 9
        layout = "0" * 64
        if vector is None:
            try:
                trainer = self.site.source.workbench(json.dumps(self.file)).trainer
                vector = trainer.layout.read(trainer.model)
                layout = trainer.layout.digest
            except Exception:  # noqa: BLE001 - a task that this site would not build
                vector = np.zeros(3, dtype=np.float32)
        else:
            layout = self.site.source.workbench(json.dumps(self.file)).trainer.layout.digest
        fields = {
            "protocol": protocol.PROTOCOL,
            "run": self.request.run,
            "round": number,
            "federation": json.dumps(self.file),
            "layout": layout,
            **job,
        }
        content = RecordDict({protocol.JOB: ConfigRecord(fields)})
        content[protocol.REQUEST] = ConfigRecord(dict(self.signed.to_fields()))
        if kind != "query":
            content[protocol.MODEL] = ArrayRecord({protocol.VECTOR: Array(vector)})
        return Message(content, 9, kind)

    def send(
        self, kind: str = "train", number: int = 1, vector: np.ndarray | None = None, **job: Any
    ) -> Message:
        return self.deliver(self.message(kind, number, vector, **job))

    def deliver(self, message: Message) -> Message:
        context = Context(run_id=1, node_id=9, node_config={}, state=RecordDict(), run_config={})
        return self.site.app(message, context)

    def code(self, kind: str = "train", number: int = 1, vector: np.ndarray | None = None, **job: Any) -> str:
        """Return the refusal's code, or nothing where something else came."""
        return code_of(self.send(kind, number, vector, **job))


def code_of(reply: Message) -> str:
    record = reply.content.config_records.get(protocol.REFUSAL)
    return "" if record is None else str(record["code"])


def _digest(file: dict[str, Any]) -> str:
    from cloister.core.digests import federation_digest

    return federation_digest(file)
