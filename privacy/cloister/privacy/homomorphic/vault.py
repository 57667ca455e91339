"""Where the key authority keeps its secret keys, each for one sum, and the record of what it decrypted.

A folder (mode 0700) with ``keys/``, a file (0600) for each session that waits for its sum, and ``decrypted.jsonl``, a line for each session that
was decrypted, which is also what a privacy officer reads. In a simulation all of it is in memory.

Formal guarantees:

- `Vault.spend` returns once for each (run, serial), whatever dies in between: the line is on the disk before it returns, and the key's
  file is gone.
- It does not return for two sums of one round, or of one model, over different sites, nor for an earlier round than the newest
  that was opened: see `rounds`. What it checks is in the record, and so holds after a restart.
- One process at a time has a folder open.
- There are at most ``most_keys`` keys: the oldest that was not used goes first.

==========================================  ========================================================
case                                        outcome
==========================================  ========================================================
a file that others may read                 ``IntegrityError`` (authority-key)
no such folder, a key file changed          ``IntegrityError`` (authority-key)
the folder is one already when it is made   ``IntegrityError`` (authority-key)
a second process                            ``IntegrityError`` (authority-busy)
the record is missing, or a line is broken  ``IntegrityError`` (authority-record)
the last line was cut off by a crash        removed: that session's sum never left
a session that was decrypted before         ``IntegrityError`` (decryption-twice)
a round or model opened over other sites    ``IntegrityError`` (decryption-round)
a round opened with another model           ``IntegrityError`` (decryption-round)
a round before the newest that was opened   ``IntegrityError`` (decryption-round)
the same round, model and sites, new key    allowed: a server that was resumed lost the sum
a round that an older version recorded      ``IntegrityError`` (decryption-round): nothing says over whom
no key of that session, or another          ``IntegrityError`` (ciphertext-key)
==========================================  ========================================================
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cloister.core.errors import IntegrityError, StorageError
from cloister.core.files import sync_folder, write_whole
from cloister.privacy.homomorphic.frames import framed, unframed
from cloister.privacy.homomorphic.parameters import HomomorphicScheme, parameters_of
from cloister.privacy.homomorphic.public_key import PublicKey, key_refused
from cloister.privacy.homomorphic.record import Record, authority_refused, read_private
from cloister.privacy.homomorphic.rounds import OpenedRounds, OpenedSum
from cloister.privacy.homomorphic.vectors import new_key
from cloister.privacy.manifest import Manifest, cohort_digest

__all__ = ["KEYS", "RECORD_FILE", "SessionKey", "Vault"]

KEYS = "keys"
RECORD_FILE = "decrypted.jsonl"

_LABEL = b"cloister secret key 2"
_MOST = 1 << 21


@dataclass(frozen=True, kw_only=True)
class SessionKey:
    """A key and its public half.

    Attributes:
        public: what sites encrypt under.
        secret: TenSEAL's secret context, serialised; never printed.
    """

    public: PublicKey
    secret: bytes = field(repr=False)


class Vault:
    """Keys and a record; make one with `in_memory`, `create` or `open`.

    Args:
        folder: where they are kept; in memory if left out.
        most_keys: how many sessions may wait for their sums.
    """

    def __init__(self, folder: Path | None = None, *, most_keys: int = 64) -> None:
        self._folder = folder
        self._most_keys = most_keys
        self._lock = threading.Lock()
        self._record = None if folder is None else Record(folder / RECORD_FILE)
        self._spent: set[tuple[str, int]] = set()
        self._rounds = OpenedRounds()
        for opened in [] if self._record is None else self._record.sums():
            self._spend(opened)
        self._keys: dict[tuple[str, int], SessionKey] = {}
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @classmethod
    def in_memory(cls) -> Self:
        """Return a vault that no file holds."""
        return cls()

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Make ``folder`` and open it.

        Raises:
            IntegrityError: (authority-key) it is an authority's already.
            StorageError: it cannot be written.
        """
        if (folder / KEYS).exists() or (folder / RECORD_FILE).exists():
            raise authority_refused(
                f"'{folder}' is an authority's folder already", "key", "name another folder"
            )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / KEYS).mkdir(mode=0o700)
        except OSError as error:
            raise StorageError.of(folder, error) from None
        write_whole(folder / RECORD_FILE, b"", mode=0o600)
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder that `create` made.

        Raises:
            IntegrityError: (authority-key, authority-busy, authority-record) it cannot be used; see the table.
        """
        if not (folder / KEYS).is_dir():
            raise authority_refused(
                f"'{folder}' is no authority's folder", "key", "make it with: cloister authority init"
            )
        return cls(folder)

    @property
    def waiting(self) -> int:
        """How many sessions have a key and wait for their sum."""
        return len(self._keys)

    @property
    def decrypted(self) -> int:
        """How many sessions were decrypted."""
        return len(self._spent)

    def issue(self, run: str, serial: int, cohort: str, scheme: HomomorphicScheme) -> SessionKey:
        """Return the key of a session, a new one where there is none yet.

        Args:
            run: of the session.
            serial: of the session.
            cohort: `cohort_digest` of the sites whose sum it is for.
            scheme: how they encrypt.

        Raises:
            IntegrityError: (decryption-twice, ciphertext-key) the session was decrypted, or has a key of another scheme or cohort.
            SpecError: (protection-scheme) the scheme is unknown.
        """
        parameters = parameters_of(scheme)
        with self._lock:
            self._check_unspent(run, serial)
            found = self._keys.get((run, serial))
            if found is None:
                secret, context = new_key(parameters)
                public = PublicKey(scheme=scheme, run=run, serial=serial, cohort=cohort, context=context)
                found = SessionKey(public=public, secret=secret)
                self._write(found)
                self._keys[run, serial] = found
                while len(self._keys) > self._most_keys:
                    self._destroy(next(iter(self._keys)))
        if (found.public.scheme, found.public.cohort) != (scheme, cohort):
            raise key_refused(
                f"session {serial} of run '{run}' has a key of {found.public.scheme} over {found.public.cohort[:16]}… already"
            )
        return found

    def find(self, manifest: Manifest) -> SessionKey:
        """Return the key of the session of ``manifest``.

        Raises:
            IntegrityError: (decryption-twice, ciphertext-key) the session was decrypted, or has no such key.
        """
        with self._lock:
            self._check_unspent(manifest.run, manifest.serial)
            found = self._keys.get((manifest.run, manifest.serial))
        if found is None:
            raise _no_key(manifest)
        found.public.check(manifest)
        return found

    def spend(self, manifest: Manifest, *, names: Collection[str]) -> None:
        """Record that a session is decrypted, before it is, and destroy its key here.

        Args:
            manifest: of the session.
            names: the sites in its sum, each once.

        Raises:
            IntegrityError: (decryption-twice, ciphertext-key) it was decrypted before, or its key was destroyed meanwhile.
            IntegrityError: (decryption-round) another sum of its round or its model was opened, or a later round was; nothing is
                recorded, and the key stays.
            StorageError: the record cannot be written: nothing may be decrypted.
        """
        with self._lock:
            self._check_unspent(manifest.run, manifest.serial)
            if (manifest.run, manifest.serial) not in self._keys:
                raise _no_key(manifest)
            opened = OpenedSum.of(manifest, cohort_digest(names))
            self._rounds.check(opened)
            if self._record is not None:
                self._record.append(
                    {
                        "run": manifest.run,
                        "serial": manifest.serial,
                        "round": manifest.round_number,
                        "kind": manifest.kind,
                        "group": manifest.group,
                        "sites": len(names),
                        "model": opened.model,
                        "names": opened.names,
                        "size": manifest.size,
                        "key": manifest.key,
                        "manifest": manifest.digest.hex(),
                        "time": datetime.now(UTC).isoformat(timespec="seconds"),
                    }
                )
            self._spend(opened)
            self._destroy((manifest.run, manifest.serial))

    def forget(self) -> int:
        """Destroy every key, and return how many: no session under way can be decrypted any more."""
        with self._lock:
            count = len(self._keys)
            for session in list(self._keys):
                self._destroy(session)
        return count

    def close(self) -> None:
        """Let another process open the folder."""
        if self._record is not None:
            self._record.close()

    def _spend(self, opened: OpenedSum) -> None:
        self._spent.add((opened.run, opened.serial))
        self._rounds.add(opened)

    def _check_unspent(self, run: str, serial: int) -> None:
        if (run, serial) in self._spent:
            raise IntegrityError(
                f"session {serial} of run '{run}' was decrypted before, and each is decrypted once",
                remedy="run the round again: it is a new session",
                code="decryption-twice",
            )

    def _path(self, run: str, serial: int) -> Path | None:
        """Return a session's file: its name is a hash, whatever the run is called."""
        if self._folder is None:
            return None
        name = hashlib.sha256(f"{serial} {run}".encode()).hexdigest()[:32]
        return self._folder / KEYS / f"{name}.key"

    def _write(self, key: SessionKey) -> None:
        path, public = self._path(key.public.run, key.public.serial), key.public
        if path is not None:
            parts = [public.scheme, public.run, str(public.serial), public.cohort]
            whole = [_LABEL, *(part.encode() for part in parts), public.context, key.secret]
            write_whole(path, framed(whole), mode=0o600)

    def _destroy(self, session: tuple[str, int]) -> None:
        self._keys.pop(session, None)
        path = self._path(*session)
        if path is not None:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)

    def _load(self) -> None:
        if self._folder is None:
            return
        paths = sorted((self._folder / KEYS).glob("*.key"), key=lambda path: path.stat().st_mtime_ns)
        for path in paths:
            key = _read_key(path)
            session = key.public.run, key.public.serial
            if session in self._spent or self._path(*session) != path:
                path.unlink(missing_ok=True)  # a crash came between the record and the removal
            else:
                self._keys[session] = key


def _no_key(manifest: Manifest) -> IntegrityError:
    return key_refused(f"the authority holds no key of session {manifest.serial} of run '{manifest.run}'")


def _read_key(path: Path) -> SessionKey:
    try:
        raw = read_private(path, most=_MOST)
        label, scheme, run, serial, cohort, context, secret = unframed(raw, count=7, most=_MOST)
        public = PublicKey(
            scheme=parameters_of(scheme.decode()).scheme,
            run=run.decode(),
            serial=int(serial),
            cohort=cohort.decode(),
            context=context,
        )
    except ValueError:
        label = b""
    if label != _LABEL:
        raise authority_refused(
            f"'{path}' holds no key", "key", "remove it: its session is lost, and can be run again"
        )
    return SessionKey(public=public, secret=secret)
