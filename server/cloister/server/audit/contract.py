"""What every check must keep, as a function for the tests of a check of one's own.

::

    def test_my_check(tmp_path):
        subject = open_audit(Path("runs/…"), out=tmp_path)
        assert broken_promises("weights", weights, subject) == []
"""

from __future__ import annotations

import hashlib
import json

import torch

from cloister.core.evidence import Finding
from cloister.server.audit.running import Check
from cloister.server.audit.subject import AuditSubject

__all__ = ["broken_promises"]


def broken_promises(name: str, check: Check, subject: AuditSubject) -> list[str]:
    """Return what ``check`` does not keep, each in one sentence; nothing where it keeps all.

    It is run twice. What is looked at: that it returns its own finding; that the finding is JSON and comes back the same; that verdict and
    figures (but for times) do not change; that model and global randomness are as before; that its artefacts are there.
    """
    wrong: list[str] = []
    before, state = _weights(subject), torch.random.get_rng_state()
    found = check(subject)
    if not isinstance(found, Finding):
        return [f"it returns a {type(found).__name__}, not a Finding"]
    if found.name != name:
        wrong.append(f"its finding is named '{found.name}', and its entry point '{name}'")
    if not torch.equal(state, torch.random.get_rng_state()):
        wrong.append("it draws from torch's global generator")
    if _weights(subject) != before:
        wrong.append("it changes the model that it looks at")
    text = json.dumps(found.as_dict(), allow_nan=False)
    if Finding.from_dict(json.loads(text)).as_dict() != json.loads(text):
        wrong.append("its finding does not come back from JSON as it was")
    wrong += [
        f"its artefact '{file}' is not there"
        for file in found.artefacts
        if not (subject.folder / file).is_file()
    ]
    second = check(subject)
    if (second.verdict, _settled(second)) != (found.verdict, _settled(found)):
        wrong.append("a second run finds something else: draw from subject.randomness(name)")
    if found.verdict == "pass" and "could" not in found.power:
        wrong.append("it passes and does not say what it could have shown")
    return wrong


def _weights(subject: AuditSubject) -> str:
    total = hashlib.sha256()
    if subject.tensors is not None:
        for name, value in sorted(subject.model.state_dict().items()):
            total.update(name.encode())
            total.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _settled(found: Finding) -> str:
    figures = {key: value for key, value in found.as_dict()["figures"].items() if "seconds" not in key}
    return json.dumps(figures, sort_keys=True)
