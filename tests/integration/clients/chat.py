"""Profanity in a terminal: a person."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from .conftest import need
from .terminal import Terminal, terminal


@asynccontextmanager
async def profanity(
    address: str, password: str, port: int, folder: Path, ca: Path
) -> AsyncGenerator[Terminal]:
    """Start it as on its first day, and let it connect with TLS or not at all."""
    need("profanity", "tmux")
    settings = folder / "config" / "profanity" / "profrc"
    settings.parent.mkdir(parents=True)
    # Else it looks at the network once a second while nobody types.
    settings.write_text("[ui]\ninpblock=10\ninpblock.dynamic=false\n")
    env = {
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_DATA_HOME": str(folder / "data"),
        "SSL_CERT_FILE": str(ca),
    }
    async with terminal("profanity", env=env) as window:
        await window.shows("Welcome to", "[offline]")
        await window.type(f"/connect {address} server 127.0.0.1 port {port} tls force")
        await window.shows("Enter password")
        await window.type(password)
        yield window
