"""What a site checks of itself before it runs; nothing is changed, and nothing leaves but a greeting to the server."""

from __future__ import annotations

import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import torch
from cryptography import x509

from cloister.client.data_check.checking import check_dataset
from cloister.client.fleet_link import FleetLink
from cloister.client.gate.policy import POLICY, read_policy
from cloister.client.site_config import SiteConfig, load_site, state_folder
from cloister.client.tls_line import LinkLostError, tls_context
from cloister.core.errors import CloisterError
from cloister.privacy.identity import Role
from cloister.privacy.identity.kit import Kit, load_kit
from cloister.privacy.ledger import verify

__all__ = ["Checked", "preflight"]

_SOON, _APART_S, _LEAST_FREE = timedelta(days=30), 120.0, 1 << 30


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One thing that was looked at.

    Attributes:
        what: it is.
        state: whether it is as it should be.
        found: what was found, without a value of the data.
        remedy: what to do.
    """

    what: str
    state: Literal["ok", "warning", "error"]
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return it as JSON data."""
        return asdict(self)


def preflight(folder: Path, *, offline: bool = False) -> list[Checked]:
    """Look at everything that the site in ``folder`` needs.

    Args:
        folder: the site's.
        offline: whether to leave the server alone.
    """
    found: list[Checked] = []
    config = _try(found, "site.toml", lambda: load_site(folder), lambda one: f"site '{one.site.name}'")
    kit = _try(
        found, "identity", lambda: load_kit(folder, Role.SITE), lambda one: f"site '{one.identity.name}'"
    )
    if config is None:
        return found
    _try(
        found,
        "policy.toml",
        lambda: read_policy(folder / POLICY),
        lambda one: f"{len(one.policy.allow)} rules, digest {one.digest[:12]}",
    )
    if kit is not None:
        found += _certificates(kit)
    found += [*_data(folder, config), *_ledgers(folder, config), _disk(folder, config), _device()]
    if kit is not None and not offline:
        found += _server(config, kit)
    return found


def _try(found: list[Checked], what: str, work: Callable[[], Any], said: Callable[[Any], str]) -> Any:
    try:
        made = work()
    except CloisterError as error:
        found.append(Checked(what=what, state="error", found=error.message, remedy=error.remedy))
        return None
    found.append(Checked(what=what, state="ok", found=said(made)))
    return made


def _certificates(kit: Kit) -> Iterator[Checked]:
    for what, certificate in (
        ("identity certificate", x509.load_der_x509_certificate(kit.identity.certificate)),
        ("TLS certificate", x509.load_pem_x509_certificate(kit.certificate.read_bytes())),
    ):
        end, now = certificate.not_valid_after_utc, datetime.now(UTC)
        state: Literal["ok", "warning", "error"] = "ok" if end - now > _SOON else "warning"
        if not certificate.not_valid_before_utc <= now <= end:
            state = "error"
        yield Checked(
            what=what,
            state=state,
            found=f"valid to {end:%Y-%m-%d}",
            remedy="" if state == "ok" else "have it renewed: cloister provision renew",
        )


def _data(folder: Path, config: SiteConfig) -> Iterator[Checked]:
    """Say of each data set how many findings there are; `cloister site data` says which."""
    for name, table in config.data.items():
        findings = check_dataset(name, table, None, folder)
        counts = {
            severity: sum(one.severity == severity for one in findings) for severity in ("error", "warning")
        }
        wrong = next((one for one in findings if one.severity == "error"), None)
        yield Checked(
            what=f"data set '{name}'",
            state="error" if wrong else "warning" if counts["warning"] else "ok",
            found=wrong.what if wrong else f"{counts['warning']} warnings",
            remedy=f"see: cloister site data {folder}" if wrong or counts["warning"] else "",
        )


def _ledgers(folder: Path, config: SiteConfig) -> Iterator[Checked]:
    for path in sorted((state_folder(folder, config) / "ledgers").glob("*.sqlite")):
        found = verify(path)
        yield Checked(
            what=f"ledger '{path.stem}'",
            state="error" if found.problems else "ok",
            found=found.problems[0].message if found.problems else f"{found.entries} entries hold",
            remedy="see docs/ledger.md: cloister ledger verify" if found.problems else "",
        )


def _disk(folder: Path, config: SiteConfig) -> Checked:
    place = state_folder(folder, config)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return Checked(
        what="disk",
        state="ok" if free >= _LEAST_FREE else "warning",
        found=f"{free / (1 << 30):.1f} GiB free for the state",
        remedy="" if free >= _LEAST_FREE else "make room: a ledger that cannot be written ends a run",
    )


def _device() -> Checked:
    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = torch.cuda.get_device_name(0) if kind == "cuda" else kind
    return Checked(what="device", state="ok", found=name)


def _server(config: SiteConfig, kit: Kit) -> Iterator[Checked]:
    address = config.server.address
    try:
        with httpx.Client(verify=tls_context(kit), timeout=10) as client:
            answer = client.get(f"https://{address}/health")
    except (httpx.HTTPError, ssl.SSLError, OSError, LinkLostError) as error:
        yield Checked(
            what="server",
            state="error",
            found=f"{address} cannot be reached: {type(error).__name__}",
            remedy="check the address, the firewall, and that the server's certificate is the consortium's",
        )
        return
    answers = answer.status_code < httpx.codes.BAD_REQUEST
    yield Checked(
        what="server",
        state="ok" if answers else "error",
        found=f"{address} answers (HTTP {answer.status_code})",
        remedy=""
        if answers
        else "have the server's operator look: nginx answers, and the SuperLink behind it does not",
    )
    told = answer.headers.get("date")
    if told:
        apart = abs(time.time() - parsedate_to_datetime(told).timestamp())
        yield Checked(
            what="clock",
            state="ok" if apart < _APART_S else "error",
            found=f"{apart:.0f} s from the server's",
            remedy="" if apart < _APART_S else "set this machine's clock right: signed requests have a time",
        )
    try:
        with FleetLink(address, kit):
            yield Checked(what="membership", state="ok", found="the coordinator knows this site's key")
    except (CloisterError, LinkLostError) as error:
        yield Checked(
            what="membership",
            state="error",
            found=str(error).splitlines()[0],
            remedy="ask the server's operator whether this site is in members.json",
        )
