"""Looking whether a service is well."""

from __future__ import annotations

import asyncio

from spinal.protocols import duration

from .. import probe
from ..errors import CommandFailed, one_line
from .command import Launcher
from .kinds import Kind, Site
from .spec import fill


async def look(site: Site, kind: Kind, launcher: Launcher) -> str:
    """Look once; give why it is not well, or nothing if it is.

    Without a check of its own a service is well as long as it runs.
    """
    health = site.spec.health
    try:
        async with asyncio.timeout(health.timeout):
            match health.how:
                case "http":
                    return await probe.http(_with_port(site))
                case "tcp":
                    return await probe.tcp("127.0.0.1", int(_with_port(site)))
                case "run":
                    return await _run(site, kind, launcher)
                case _:
                    return ""
    except TimeoutError:
        return f"no answer within {duration.write(health.timeout)}"


def _with_port(site: Site) -> str:
    return fill(site.spec.health.what[0], {"port": str(site.port)})


async def _run(site: Site, kind: Kind, launcher: Launcher) -> str:
    try:
        done = await launcher.run(kind.check(site), site.spec.health.timeout)
    except CommandFailed as exc:
        return one_line(str(exc), 200)
    if done.code == 0:
        return ""
    words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    said = f": {words[-1]}" if words else ""
    return one_line(f"the check ends with code {done.code}{said}", 200)
