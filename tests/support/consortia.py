"""A small consortium on the disk, made by the very functions of ``cloister provision``."""

from __future__ import annotations

import ssl
from pathlib import Path

from cloister.server.provision.consortium_file import parse_consortium_file
from cloister.server.provision.making import Provisioned, provision

__all__ = ["FILE", "client_context", "make_consortium", "server_context"]

FILE = """
[consortium]
name = "hospitals"
days = 30
[server]
host = "localhost"
port = 8443
aliases = ["fl.example.org"]
[authority]
host = "127.0.0.1"
[[sites]]
name = "cleveland"
[sites.data.heart]
task = "heart"
owner = "cleveland"
options = { data = "/srv/heart" }
[[sites]]
name = "hungarian"
[sites.data.heart]
task = "heart"
[[sites]]
name = "switzerland"
csr = true
[[users]]
name = "ada"
roles = ["submit", "watch"]
[[users]]
name = "bob"
roles = ["admin"]
"""


def make_consortium(out: Path, text: str = FILE) -> Provisioned:
    """Make (or extend) a consortium in ``out``."""
    raw = text.encode()
    return provision(parse_consortium_file(raw, Path("consortium.toml")), raw, out)


def server_context(kit: Path) -> ssl.SSLContext:
    """Return the server's side of TLS with a kit: clients' certificates required."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(kit / "tls" / "root.pem"))
    made.load_cert_chain(kit / "tls" / "own.pem", kit / "tls" / "own.key")
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    return made


def client_context(kit: Path, *, own: bool = True) -> ssl.SSLContext:
    """Return a client's side of TLS with a kit, strict; without ``own`` it shows no certificate."""
    made = ssl.create_default_context(cafile=str(kit / "tls" / "root.pem"))
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    if own:
        made.load_cert_chain(kit / "tls" / "own.pem", kit / "tls" / "own.key")
    return made
