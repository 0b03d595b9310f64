"""Looking whether a service is well."""

from __future__ import annotations

import asyncio

import aiohttp

from spinal.protocols import duration

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
                    return await _http(_with_port(site))
                case "tcp":
                    return await _tcp(int(_with_port(site)))
                case "run":
                    return await _run(site, kind, launcher)
                case _:
                    return ""
    except TimeoutError:
        return f"no answer within {duration.write(health.timeout)}"


def _with_port(site: Site) -> str:
    return fill(site.spec.health.what[0], {"port": str(site.port)})


async def _http(url: str) -> str:
    connector = aiohttp.TCPConnector(force_close=True)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            return "" if answer.status < 400 else f"{url} answers {answer.status}"
    except (aiohttp.ClientError, ValueError) as exc:
        return one_line(f"{url}: {exc}", 200)


async def _tcp(port: int) -> str:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as exc:
        return f"port {port} takes no connection: {exc.strerror or exc}"
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        pass  # It took the connection; how it ends it does not matter.
    return ""


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
