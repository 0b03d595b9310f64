"""Every agent against the kit: ``python -m tests.languages.run`` from the root (make languages).

Builds the agents in ``examples/languages`` whose toolchain is there, and tries each on each server
that is there.  What is left out is named.  The exit status is 1 if an agent could not be built or
does not conform.  With ``--write`` the table goes into docs/conformance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from spinal.bus.server import KINDS, available
from spinal.testing import Platform, platform

from .implementations import IMPLEMENTATIONS, ROOT, Implementation
from .page import PAGE, put, table

#: Agents that are tried at once on a server: most of a trial is waiting.
PARALLEL = 3
#: Seconds that a build, and a trial, may take.
BUILD = 900.0
TRIAL = 600.0
#: Lines of a failed build that are shown.
SHOWN = 30


@dataclass
class Result:
    """One agent on one server."""

    implementation: str
    server: str
    #: Number of each check -> its verdict.
    verdicts: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0
    conforms: bool = False
    #: What is wrong, line by line.
    findings: Sequence[str] = ()


async def build(one: Implementation) -> str:
    """Build an agent; gives what went wrong, nothing if it is there."""
    began = time.monotonic()
    for argv in one.builds:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=one.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(BUILD):
                out, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"{' '.join(argv)} took more than {BUILD:g} s"
        if process.returncode:
            last = "\n".join(out.decode("utf-8", "replace").splitlines()[-SHOWN:])
            return f"{' '.join(argv)} ended with {process.returncode}:\n{last}"
    if one.builds:
        print(f"built {one.name} in {time.monotonic() - began:.0f} s", flush=True)
    return ""


async def attempt(running: Platform, server: str, one: Implementation) -> Result:
    """Try one agent on one server."""
    words = ("conform", one.name, "--json", "--", *one.argv)
    process = await running.spinal(*words)
    await process.wait(TRIAL)
    rows: list[dict[str, Any]] = [json.loads(line) for line in process.lines]
    if not rows or "conforms" not in rows[-1]:
        return Result(one.name, server, findings=process.errors[-5:] or ["it said nothing"])
    *checks, summary = rows
    return Result(
        one.name,
        server,
        {row["check"]: row["verdict"] for row in checks},
        summary["seconds"],
        summary["conforms"],
        [
            f"{row['check']} {row['title']}: expected {row.get('expected', row.get('text'))}; "
            f"got {row.get('got', 'nothing')}; sent {row.get('sent', '-')}"
            for row in checks
            if row["verdict"] == "failed"
        ],
    )


async def on_server(server: str, chosen: Sequence[Implementation]) -> list[Result]:
    """Try all agents on one server."""
    turns = asyncio.Semaphore(PARALLEL)

    async def one_of(running: Platform, one: Implementation) -> Result:
        async with turns:
            result = await attempt(running, server, one)
        counts = ", ".join(
            f"{list(result.verdicts.values()).count(verdict)} {verdict}"
            for verdict in ("passed", "failed", "not-offered", "not-run")
        )
        state = "conforms" if result.conforms else "DOES NOT CONFORM"
        print(f"{server:9} {one.name:11} {state}: {counts} in {result.seconds:.0f} s", flush=True)
        for finding in result.findings:
            print(f"    {finding}", flush=True)
        return result

    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(platform(server))
        return list(await asyncio.gather(*(one_of(running, one) for one in chosen)))


async def work(servers: Sequence[str], names: Sequence[str], write: bool) -> int:
    """Build, try, and say what came of it; gives the exit status."""
    wanted = [one for one in IMPLEMENTATIONS if not names or one.name in names]
    left_out = [f"{one.name} (no {', '.join(one.missing)})" for one in wanted if one.missing]
    chosen: list[Implementation] = []
    failed = False
    for one in wanted:
        if not one.missing:
            if trouble := await build(one):
                failed = True
                print(f"{one.name} was not built: {trouble}", file=sys.stderr)
            else:
                chosen.append(one)
    results: list[Result] = []
    for server in servers:
        if reason := available(server):
            left_out.append(f"{server} ({reason})")
        else:
            results += await on_server(server, chosen)
    if left_out:
        print(f"LEFT OUT: {'; '.join(left_out)}", flush=True)
    if write:
        PAGE.write_text(put(PAGE.read_text("utf-8"), table(results)), "utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return int(failed or not results or not all(result.conforms for result in results))


def main() -> int:
    """Read the words of the command line, and work."""
    parser = argparse.ArgumentParser(prog="tests.languages.run", description=__doc__)
    parser.add_argument("--server", action="append", choices=KINDS, help="default: all")
    parser.add_argument(
        "--language", action="append", choices=[one.name for one in IMPLEMENTATIONS]
    )
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    given = parser.parse_args()
    return asyncio.run(work(given.server or list(KINDS), given.language or [], given.write))


if __name__ == "__main__":
    sys.exit(main())
