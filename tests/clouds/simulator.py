"""Start vendors on loopback, and say where they are: ``python -m tests.clouds.simulator``.

The first line on standard output is JSON: the port of each vendor.
It runs until it is interrupted, or until its standard input ends if that is a pipe.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp import web

from .ec2 import Ec2
from .front import Front
from .openstack import OpenStack
from .vendor import Settings
from .vendors import VENDORS

#: Longest request line: EC2 has user-data in the query string.
LINE: Final = 256 << 10


@asynccontextmanager
async def serving(
    names: Sequence[str],
    *,
    boot: float = 0.5,
    limit: int = 25,
    ports: Mapping[str, int] | None = None,
) -> AsyncGenerator[dict[str, int]]:
    """Serve these vendors for a while; gives the port of each.

    OSError if one cannot be started.
    """
    vendors = [VENDORS[name](Settings(boot, limit)) for name in names]
    async with AsyncExitStack() as stack:
        for vendor in vendors:
            if isinstance(vendor, Ec2 | OpenStack):
                stack.push_async_callback(vendor.upstream.stop)
        # Together: the two that are not ours take a second each.
        await asyncio.gather(
            *(v.upstream.start() for v in vendors if isinstance(v, Ec2 | OpenStack))
        )
        found: dict[str, int] = {}
        for vendor in vendors:
            runner = web.AppRunner(
                Front(vendor).app(),
                access_log=None,
                shutdown_timeout=0.1,
                max_line_size=LINE,
                max_field_size=LINE,
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", (ports or {}).get(vendor.name, 0))
            await site.start()
            found[vendor.name] = runner.addresses[0][1]
        yield found


async def main(arguments: Sequence[str]) -> int:
    """Run the program; gives its exit status."""
    options = _options(arguments)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    if options.follow:
        # The one that started it is gone, however it went.
        loop.add_reader(0, lambda: None if os.read(0, 1) else over.set())
    try:
        async with serving(options.vendor, boot=options.boot, limit=options.limit) as ports:
            print(json.dumps(ports), flush=True)
            await over.wait()
    except OSError as error:
        print(f"clouds: {error}", file=sys.stderr)
        return 1
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.clouds.simulator", description=__doc__)
    parser.add_argument("vendor", nargs="*", help=f"of {', '.join(VENDORS)}; default: all")
    parser.add_argument("--boot", type=float, default=0.5, help="seconds until a machine runs")
    parser.add_argument("--limit", type=int, default=25, help="machines of one account")
    parser.add_argument("--follow", action="store_true", help="end with standard input")
    options = parser.parse_args(arguments)
    options.vendor = options.vendor or [*VENDORS]
    if unknown := set(options.vendor) - set(VENDORS):
        parser.error(f"no such vendor: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
