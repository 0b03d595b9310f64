"""The storms: ``python -m tests.storms.run`` from the root of the repository.

Each worker is a process with a platform and five vendors of its own, and plays one seed after the
other; what a run leaves behind ends with it, and a run that went wrong is followed by a fresh
platform.  The exit status is 1 if a machine leaked, was bought twice or too dear, or a pool did not
become what it is to be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

from tests.clouds.upstream import ROOT, missing

from spinal import logs

from .judge import Verdict
from .play import Play, Run
from .script import script
from .table import findings, table
from .world import world

#: Runs of the long version.
SEEDS: Final = 200
#: Workers: most of a run is waiting.
WORKERS: Final = 2
#: Seconds that a run may take at the most; then its worker is given up.
LIMIT: Final = 300.0
#: Where the table of a run is kept.
PAGE: Final = ROOT / "docs" / "storms.md"
BEGIN, END = "<!-- table -->", "<!-- end -->"


async def work(log: Path) -> None:
    """Play the seeds that standard input names, one a line, and print what came of each."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with tempfile.TemporaryDirectory(prefix="spinal-storms-") as name:
        folder, good, number = Path(name), True, 0
        seed = await _next(reader)
        while seed is not None:
            number += 1
            place = folder / str(number)
            place.mkdir()
            async with world(place) as found:
                good = True
                while good and seed is not None:
                    run = await Play(found, script(seed), place, log).run()
                    print(json.dumps(run.to_json()), flush=True)
                    good = not run.verdict.findings
                    seed = await _next(reader)


async def _next(reader: asyncio.StreamReader) -> int | None:
    line = await reader.readline()
    return int(line) if line.strip() else None


async def plays(seeds: Sequence[int], workers: int, folder: Path) -> AsyncGenerator[Run]:
    """Play seeds with some workers, and give what came of each as it ends."""
    waiting = iter(seeds)
    done: asyncio.Queue[Run | None] = asyncio.Queue()

    async def turn(number: int) -> None:
        try:
            while True:
                left = await _worker(waiting, folder / f"worker-{number}.log", done)
                if not left:
                    return
        finally:
            done.put_nowait(None)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(turn(number)) for number in range(workers)]
        ended = 0
        try:
            while ended < workers:
                run = await done.get()
                if run is None:
                    ended += 1
                else:
                    yield run
        finally:
            for task in tasks:
                task.cancel()


async def _worker(waiting: Iterator[int], log: Path, done: asyncio.Queue[Run | None]) -> bool:
    """Have a worker play seeds; tells whether it was given up, and others are left."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.storms.run", "--worker", str(log)),
            cwd=ROOT,
            env=environ,
            stdin=PIPE,
            stdout=PIPE,
            stderr=errors,
            limit=64 << 20,
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        while (seed := next(waiting, None)) is not None:
            process.stdin.write(f"{seed}\n".encode())
            try:
                async with asyncio.timeout(LIMIT):
                    line = await process.stdout.readline()
            except TimeoutError:
                line = b""
            if not line:
                said = f"the worker gave nothing within {LIMIT:g} s: see {log}"
                done.put_nowait(Run(seed, Verdict(unconverged=[said])))
                return True
            done.put_nowait(Run.of(json.loads(line)))
        return False
    finally:
        process.stdin.close()
        if process.returncode is None:
            try:
                async with asyncio.timeout(20.0):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def run(
    seeds: Sequence[int], workers: int, folder: Path, runs: list[Run] | None = None
) -> list[Run]:
    """Play all, and say of each how it went; they are added to ``runs`` as they end."""
    runs = [] if runs is None else runs
    async with aclosing(plays(seeds, workers, folder)) as each:
        async for one in each:
            runs.append(one)
            wrong = "; ".join(one.verdict.findings) or "well"
            _say(
                f"{len(runs):3} of {len(seeds)}: seed {one.seed}: {one.seconds:.0f} s, "
                f"{one.counts['created']} machines, whole {one.came:.0f} s, down {one.went:.0f} s: "
                f"{wrong}"
            )
    return sorted(runs, key=lambda one: one.seed)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.storms.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many (default {SEEDS})")
    parser.add_argument("--seed", type=int, default=1, help="the first of them (default 1)")
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"default {WORKERS}")
    parser.add_argument("--logs", type=Path, help="folder that keeps the logs of the workers")
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    parser.add_argument("--worker", type=Path, metavar="LOG", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


async def _main(given: argparse.Namespace, folder: Path, runs: list[Run]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await run(range(given.seed, given.seed + given.seeds), given.workers, folder, runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; gives the exit status."""
    given = _arguments(argv)
    if given.worker is not None:
        logs.configure("error")
        asyncio.run(work(given.worker))
        return 0
    if (why := missing()) is not None:
        _say(f"not installed: {why}")
        return 2
    began, runs, interrupted = time.monotonic(), list[Run](), False
    with tempfile.TemporaryDirectory(prefix="storms-") as name:
        folder = given.logs or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            asyncio.run(_main(given, folder, runs))
        except (KeyboardInterrupt, asyncio.CancelledError):
            _say("interrupted; everything that was started has ended")
            interrupted = True
    runs.sort(key=lambda one: one.seed)
    text = table(runs, time.monotonic() - began)
    if given.json:
        print(json.dumps([one.to_json() for one in runs]))
    else:
        print(text)
        print(findings(runs))
    if interrupted:
        return 130
    if given.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    return 1 if any(one.verdict.findings for one in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
