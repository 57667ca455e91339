"""Members' kits: each folder holds one member's own keys and nobody else's.

A kit is made whole under a hidden name and takes its name in one step. A kit that was handed over is removed here by its operator: what the
authority needs to renew it is in its own book.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.core.errors import UsageError
from cloister.core.files import write_whole
from cloister.privacy.authority.tls import SERVER, make_tls
from cloister.privacy.homomorphic.vault import Vault
from cloister.privacy.identity import Role
from cloister.privacy.identity.keys import MemberKeys, private_folder
from cloister.privacy.identity.register import MEMBERS, REVOKED
from cloister.privacy.identity.texts import rendered, site_files, toml, user_files
from cloister.server.provision.consortium_file import ConsortiumFile, SiteTable
from cloister.server.provision.offline import Lists, Offline, Papers

__all__ = ["KITS", "Kits"]

#: The folder's name.
KITS = "kits"
#: Where SuperLink and the job service listen, behind nginx on the server's own machine.
_SUPERLINK, _JOBS = "127.0.0.1:9092", "127.0.0.1:9095"
#: Where the server tells its own operator how it is.
_METRICS = "127.0.0.1:9465"
_CHANNEL = "authority"
#: Folders in which a member keeps what it must not lose; they are there so that a container can mount them and nothing else writable.
_STATE = {Role.SERVER: ("run", "state", "runs"), Role.SITE: ("state",), Role.AUTHORITY: (), Role.USER: ()}
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, kw_only=True)
class Kits:
    """The folder of kits of one consortium.

    Attributes:
        folder: ``DIR/kits``.
        offline: the authority.
    """

    folder: Path
    offline: Offline

    def path(self, role: Role, name: str) -> Path:
        """Return where a member's kit is."""
        if role in (Role.SERVER, Role.AUTHORITY):
            return self.folder / role.value
        return self.folder / f"{role.value}s" / name

    def abandon(self, role: Role, name: str) -> None:
        """Take back what a command that was killed issued for a kit that it did not finish."""
        making = self._making(self.path(role, name))
        if making.is_dir():
            begun = self.offline.book.current().get((role.value, name))
            if begun is not None and not self.path(role, name).exists():
                self.offline.take_back([begun], "superseded")
            shutil.rmtree(making)

    @staticmethod
    def _making(path: Path) -> Path:
        return path.parent / f".{path.name}.making"

    def make(self, name: str, role: Role, lists: Lists | None = None) -> Papers:
        """Make a member's keys, certify them, and write its kit; the lists are written by `refresh` unless given.

        Raises:
            UsageError: its kit is there.
        """
        path = self.path(role, name)
        if path.exists() or path.is_symlink():
            raise UsageError(f"'{path}' exists", remedy="hand it over, or remove it, then try again")
        private_folder(self.folder, there=True)
        private_folder(path.parent, there=True)
        making = self._making(path)
        private_folder(making)
        keys = MemberKeys.generate(role)
        keys.write(making)
        papers = self.offline.issue(
            name,
            role,
            keys.public,
            by="kit",
            roles=roles_of(self.offline.file, role, name),
            hosts=hosts_of(self.offline.file, role),
        )
        self.write_papers(making, papers)
        if role is Role.AUTHORITY:
            Vault.create(making).close()
            self.write_channel(making)
        self._write_files(making, name, role)
        if lists is not None:
            write_lists(making, role, lists)
        making.rename(path)
        return papers

    def write_papers(self, folder: Path, papers: Papers) -> None:
        """Write a member's certificates and its roots of trust into its kit."""
        write_whole(folder / "identity.der", papers.identity)
        write_whole(folder / "consortium.der", self.offline.certificate)
        if papers.tls is not None:
            write_whole(folder / "tls" / "own.pem", papers.tls)
            write_whole(folder / "tls" / "root.pem", self.offline.tls.root)

    def write_channel(self, folder: Path) -> Path:
        """Make new certificates for the channel between the key authority, whose kit ``folder`` is, and the server.

        Returns:
            Where the server's part is: in its kit, or beside the kits where that was handed over.
        """
        table = self.offline.file.authority
        if table is None:
            raise UsageError(
                "consortium.toml has no [authority]", remedy="add it: with the host that the server dials"
            )
        if (folder / "tls").is_dir():
            shutil.rmtree(folder / "tls")
        make_tls(folder / "tls", table.host, days=self.offline.file.consortium.days)
        server = self.path(Role.SERVER, "")
        there = server if server.is_dir() else self.folder / "server-channel"
        private_folder(there, there=True)
        private_folder(there / _CHANNEL, there=True)
        shutil.copyfile(folder / "tls" / "root.pem", there / _CHANNEL / "root.pem")
        for kind in ("key", "pem"):
            (folder / "tls" / f"{SERVER}.{kind}").replace(there / _CHANNEL / f"{SERVER}.{kind}")
        return there / _CHANNEL

    def refresh(self, lists: Lists) -> None:
        """Put the newest lists into every kit that is still here."""
        places = [(Role.SERVER, self.folder / "server"), (Role.AUTHORITY, self.folder / "authority")]
        for role in (Role.SITE, Role.USER):
            parent = self.folder / f"{role.value}s"
            if parent.is_dir():
                places += [(role, path) for path in sorted(parent.iterdir()) if path.name[0] != "."]
        for role, path in places:
            if (path / "identity.der").is_file():
                write_lists(path, role, lists)

    def _write_files(self, folder: Path, name: str, role: Role) -> None:
        file = self.offline.file
        consortium, address = file.consortium.name, file.server.address
        files: dict[str, str]
        if role is Role.SITE:
            table = next((site for site in file.sites if site.name == name), SiteTable(name=name))
            data = {key: one.model_dump(exclude_none=True) for key, one in table.data.items()}
            files = site_files(name, consortium, address, data)
        elif role is Role.USER:
            files = user_files(name, consortium, address)
        else:
            about = {"name": name, "consortium": consortium, "file": file}
            files = {
                "compose.yaml": rendered(f"compose.{role}.yaml", about, _TEMPLATES),
                "README.md": rendered(f"README.{role}.md", about, _TEMPLATES),
            }
        for one, text in files.items():
            write_whole(folder / one, text)
        if role is Role.SERVER:
            self.write_server_files(folder)
        for one in _STATE[role]:
            private_folder(folder / one, there=True)

    def write_server_files(self, folder: Path | None = None) -> None:
        """Write what of the server's kit depends on who is a member and on its addresses."""
        folder, file = folder or self.path(Role.SERVER, ""), self.offline.file
        about = {"server": file.server, "superlink": _SUPERLINK, "jobs": _JOBS}
        write_whole(folder / "server.toml", toml("server.toml", _server(file), _TEMPLATES))
        write_whole(folder / "nginx.conf", rendered("nginx.conf", about, _TEMPLATES))


def write_lists(folder: Path, role: Role, lists: Lists) -> None:
    """Write who is a member and who was struck off into a kit; the server's has the list for nginx too."""
    write_whole(folder / MEMBERS, lists.members)
    write_whole(folder / REVOKED, lists.revoked)
    if role is Role.SERVER:
        write_whole(folder / "tls" / "crl.pem", lists.crl)


def roles_of(file: ConsortiumFile, role: Role, name: str) -> list[Any]:
    """Return what a user may do, as ``consortium.toml`` says."""
    if role is not Role.USER:
        return []
    return next((list(user.roles) for user in file.users if user.name == name), [])


def hosts_of(file: ConsortiumFile, role: Role) -> list[str]:
    """Return what a member answers to: the server to its names, and to its own machine."""
    if role is not Role.SERVER:
        return []
    return [file.server.host, *file.server.aliases, "127.0.0.1", "localhost"]


def _server(file: ConsortiumFile) -> dict[str, Any]:
    tables: dict[str, Any] = {
        "server": {"name": file.server.name, "superlink": _SUPERLINK, "state": "state", "runs": "runs"},
        "jobs": {"listen": _JOBS},
        "metrics": {"listen": _METRICS},
    }
    if file.authority is not None:
        tables["authority"] = {"address": file.authority.address}
    return tables
