"""A program in a terminal of its own: what is typed, and what stands on the screen."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from spinal.testing import eventually

#: Wide enough that nothing of interest is broken into two lines.
WIDTH, HEIGHT = 160, 60

#: Stands on the screen when the program has ended, with its status and a dot behind it.
ENDED = "exit status: "


class Terminal:
    """One window of a tmux that serves nobody else."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def tmux(self, *words: str) -> str | None:
        """Run a tmux command; gives what it printed, nothing if it failed."""
        process = await asyncio.create_subprocess_exec(
            # -N: or it would start a server of its own, with our environment, if ours is late.
            *("tmux", "-N", "-S", str(self.socket), *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        said, _ = await process.communicate()
        return said.decode() if process.returncode == 0 else None

    async def type(self, line: str) -> None:
        """Type a line and press Enter."""
        assert await self.tmux("send-keys", "-l", "--", line) is not None
        assert await self.tmux("send-keys", "Enter") is not None

    async def screen(self) -> str:
        """Give what stands there."""
        return await self.tmux("capture-pane", "-p") or ""

    async def shows(self, *words: str, timeout: float = 15.0) -> str:
        """Wait until all of these stand on the screen, and give it."""
        seen = ""

        async def there() -> bool:
            nonlocal seen
            seen = await self.screen()
            return all(word in seen for word in words)

        try:
            await eventually(there, timeout)
        except AssertionError:
            raise AssertionError(f"{words} not within {timeout:g} s:\n{seen}") from None
        return seen

    async def ended(self) -> int:
        """Wait for the end of the program; gives its exit status as a shell does."""
        await self.shows(ENDED)
        found = re.search(rf"{ENDED}(\d+)\.", await self.screen())
        assert found is not None
        return int(found[1])


@asynccontextmanager
async def terminal(*argv: str, env: Mapping[str, str]) -> AsyncGenerator[Terminal]:
    """Run a program in a terminal with these variables; it is gone at the end."""
    # Paths of sockets are short (unix(7)), those of pytest are not.
    with tempfile.TemporaryDirectory(prefix="tmux-") as folder:
        window = Terminal(Path(folder, "socket"))
        # -D: a child of ours, not a daemon of nobody's.
        server = await asyncio.create_subprocess_exec(
            *("tmux", "-S", str(window.socket), "-f", os.devnull, "-D"),
            stdin=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "HOME": folder, "LANG": "C.UTF-8", **env},
        )
        try:
            size = ("-x", str(WIDTH), "-y", str(HEIGHT))
            # A shell tells the exit status; tmux 3.3 now and then forgets to ask for it.
            line = f"{shlex.join(argv)}; printf '{ENDED}%s.' $?; exec cat"

            async def started() -> bool:
                return await window.tmux("new-session", "-d", *size, line) is not None

            await eventually(started, 15.0, "tmux listens")
            yield window
        finally:
            if server.returncode is None:
                # What runs in the window gets SIGHUP.
                server.terminate()
            await server.wait()
