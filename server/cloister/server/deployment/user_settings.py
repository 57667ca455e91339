"""``user.toml``: where a user reaches the consortium's server."""

from __future__ import annotations

from pathlib import Path

from cloister.core.settings import Address, Settings, load_settings

__all__ = ["UserConfig", "load_user"]


class ServerTable(Settings):
    """``[server]``: ``address`` of its door."""

    address: Address


class UserConfig(Settings):
    """The whole file."""

    server: ServerTable


def load_user(folder: Path) -> UserConfig:
    """Read the ``user.toml`` of a user's kit.

    Raises:
        SpecError: it is not there, is no TOML, or a key of it is wrong.
    """
    return load_settings(
        folder / "user.toml",
        UserConfig,
        "name your kit with --kit, or set CLOISTER_KIT: the folder you were given",
    )
