"""Containers of encrypted files: the very bytes come back, or nothing does."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.core.errors import IntegrityError, UsageError
from cloister.server.releasing import sealing
from cloister.server.releasing.sealing import LONGEST_HEADER, MAGIC, PIECE, Secret, is_sealed, seal, unseal


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    return Secret.made(tmp_path / "key")


def _sealed(tmp_path: Path, secret: Secret, content: bytes) -> Path:
    (tmp_path / "in").write_bytes(content)
    seal(tmp_path / "in", tmp_path / "box", secret)
    return tmp_path / "box"


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_unseal_gives_back_the_very_bytes(tmp_path: Path, secret: Secret, size: int) -> None:
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    box = _sealed(tmp_path, secret, content)
    assert is_sealed(box)
    unseal(box, tmp_path / "out", secret)
    assert (tmp_path / "out").read_bytes() == content
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0


def test_two_containers_of_one_file_share_nothing_but_the_header_s_form(
    tmp_path: Path, secret: Secret
) -> None:
    one = _sealed(tmp_path, secret, b"x" * 1000).read_bytes()
    two = _sealed(tmp_path, secret, b"x" * 1000).read_bytes()
    assert one[-1000:] != two[-1000:]


def _cut(raw: bytes) -> bytes:
    return raw[:-1]


def _last_piece_gone(raw: bytes) -> bytes:
    return raw[: -(16 + 100)]


def _added(raw: bytes) -> bytes:
    return raw + b"x"


def _turned(raw: bytes) -> bytes:
    front, piece = len(raw) - (2 * PIECE + 100 + 3 * 16), PIECE + 16
    return (
        raw[:front]
        + raw[front + piece : front + 2 * piece]
        + raw[front : front + piece]
        + raw[front + 2 * piece :]
    )


def _bit(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


def _shorter(raw: bytes) -> bytes:
    """Say in the header that the file ends with the second piece."""
    return raw.replace(b'"size": %d' % (2 * PIECE + 100), b'"size": %d' % (2 * PIECE))[: -(16 + 100)]


@pytest.mark.parametrize("change", [_cut, _last_piece_gone, _added, _turned, _bit, _shorter])
def test_whatever_was_changed_does_not_decrypt(
    tmp_path: Path, secret: Secret, change: Callable[[bytes], bytes]
) -> None:
    box = _sealed(tmp_path, secret, bytes(PIECE) + b"\1" * PIECE + b"\2" * 100)
    raw = box.read_bytes()
    box.write_bytes(change(raw))
    assert box.read_bytes() != raw
    with pytest.raises(IntegrityError) as caught:
        unseal(box, tmp_path / "out", secret)
    assert caught.value.code == "sealed-key"
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_another_key_and_a_passphrase_do_not_open_it(
    tmp_path: Path, secret: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_N", 1 << 14)
    box = _sealed(tmp_path, secret, b"model")
    for other in (Secret.made(tmp_path / "other"), Secret.of_passphrase("model")):
        with pytest.raises(IntegrityError, match="cannot be opened"):
            unseal(box, tmp_path / "out", other)
    box = _sealed(tmp_path, Secret.of_passphrase("open"), b"model")
    unseal(box, tmp_path / "out", Secret.of_passphrase("open"))
    assert (tmp_path / "out").read_bytes() == b"model"
    with pytest.raises(IntegrityError, match="another key"):
        unseal(box, tmp_path / "again", Secret.of_passphrase("Open"))


def _header(**more: object) -> bytes:
    text = json.dumps({"kdf": "hkdf", "piece": PIECE, "salt": "00" * 16, "size": 1} | more).encode()
    return MAGIC + struct.pack(">I", len(text)) + text + bytes(17)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        MAGIC,
        b"CLSEAL\x00\x02" + bytes(40),
        MAGIC + struct.pack(">I", LONGEST_HEADER + 1) + b"{}",
        MAGIC + struct.pack(">I", 4) + b"[[[[",
        _header(piece=1 << 40),
        _header(size=1 << 60),
        _header(size=-1),
        _header(size=True),
        _header(salt="00"),
        _header(kdf="none"),
        _header(more=1),
        _header(kdf="scrypt", n=1 << 30, r=8, p=1),
        _header(kdf="scrypt", n=(1 << 15) + 1, r=8, p=1),
        _header(kdf="scrypt", n=1 << 15, r=1 << 20, p=1),
    ],
)
def test_a_header_that_asks_for_too_much_is_refused_before_anything_is_computed(
    tmp_path: Path, secret: Secret, raw: bytes
) -> None:
    (tmp_path / "box").write_bytes(raw)
    with pytest.raises(IntegrityError) as caught:
        unseal(tmp_path / "box", tmp_path / "out", secret)
    assert caught.value.code == "sealed"


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path, secret: Secret) -> None:
    assert "value" not in repr(secret)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(IntegrityError, match="others than its owner"):
        Secret.of_file(tmp_path / "key")
    (tmp_path / "short").write_bytes(b"x" * 31)
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(UsageError, match="less than 32 bytes"):
        Secret.of_file(tmp_path / "short")
    with pytest.raises(UsageError, match="exists"):
        Secret.made(tmp_path / "key")
    with pytest.raises(UsageError, match="empty"):
        Secret.of_passphrase("")
