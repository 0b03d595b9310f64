"""The guard's side of :class:`~.process.Guard`: kills what an agent left running when it was killed.

It is told the groups that run on its standard input, as decimal numbers on lines; a negative one
has ended.  The input closes when the agent is gone, however it went, and so there is nothing that
the agent would have to do.  A file of its own that imports nothing of ours, because it is there for
as long as the agent and ought to be small.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Wait for the end of the agent, and end what it left."""
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: set[int] = set()
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        for number in map(int, lines):
            if number > 0:
                groups.add(number)
            else:
                groups.discard(-number)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # It has ended; its number may be somebody else's by now.


if __name__ == "__main__":
    main()
