"""``spinal demo``: the platform at work, and a worker that dies in the middle of it.

Everything is real: ``spinal up`` and three ``spinal agent run`` as processes, jobs over the bus,
SIGKILL.  The verdict comes from the results alone: each input must have an image of its own, of
the right size, that shows the photograph that was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import spinal
from spinal.bus.errors import BusError, HomeError
from spinal.protocols import Json

from .common import (
    CONTEXT,
    Ended,
    home_path,
    json_option,
    print_json,
    say,
    show_home,
    start_logging,
    table,
)
from .scoreboard import FRAMES, Scoreboard, Show, rows

if TYPE_CHECKING:
    from PIL import Image

    from spinal.agents.process import Process
    from spinal.bus import Blob, Client, Mapped

OP: Final = "/image/resize"

#: The workers, and how often each of them computes a picture (``SPINAL_DEMO_SLOWER``).
WORKERS: Final[Mapping[str, int]] = {"fast": 1, "steady": 2, "slow": 4}
SLOTS: Final = 2
#: Who is killed.
VICTIM: Final = "steady"

#: Widths of the results, in pixels: each photograph is wanted in many.
NARROWEST: Final = 160
SPREAD: Final = 480

#: Seconds that a process may take to be ready, and to end when it is asked to.
READY_WITHIN: Final = 60.0
END_WITHIN: Final = 10.0
#: Most of a log that is shown of a process that did not start.
MAX_LOG: Final = 8000
#: Seconds that one job may take, waiting for its turn included.
JOB_WITHIN: Final = 120.0
#: Results that are being fetched and checked at once.
CHECKING: Final = 4
#: Mean difference of two tiny pictures, of 255, above which they show different things.
UNLIKE: Final = 12.0


@click.command(context_settings=CONTEXT)
@click.option("--jobs", type=click.IntRange(20, 10_000), default=300, help="How many (300).")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("spinal-demo-results"),
    metavar="DIR",
    help="Where the results go (./spinal-demo-results).",
)
@json_option
@show_home
def demo(jobs: int, out: Path, as_json: bool) -> None:
    """See it at work: three workers scale photographs, and one is killed half-way.

    Starts a platform of its own, in a temporary home unless --home names one, and leaves nothing
    but the results. Exit code 1 if a job was lost.

    With --json: one object with "jobs", "lost", "moved", "killed", "workers", "out", ...
    """
    if find_spec("PIL") is None:
        raise HomeError("the demo works on photographs with Pillow: pip install 'spinal[images]'")
    start_logging()
    stage = Stage()
    play = Play(jobs, out, home_path(), stage, as_json)
    lost = asyncio.run(_until_signal(play.run(), stage.hurry))
    if lost:
        raise Ended(1)


def example() -> Path:
    """Find the folder of the example: in the installed package, else in the checkout.

    Raises :class:`HomeError` if it is in neither.
    """
    package = Path(spinal.__file__).resolve().parent
    for folder in (package / "demo", package.parents[1] / "examples" / "images"):
        if (folder / "worker.py").is_file():
            return folder
    raise HomeError(f"the demo's files are not in {package / 'demo'}: install spinal again")


async def _until_signal(work: Coroutine[Any, Any, int], hurry: Callable[[], None]) -> int:
    """Run the work; the first signal cancels it, later ones make it clean up in a hurry.

    Raises :class:`Ended` after a signal.
    """
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(work)
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        if len(caught) == 1:
            running.cancel()
        else:
            hurry()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, stop, number)
    try:
        return await running
    except asyncio.CancelledError:
        if caught:
            raise Ended(128 + caught[0]) from None
        raise
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


# The processes.


class Stage:
    """The processes of a demo."""

    def __init__(self) -> None:
        self._children: dict[str, Process] = {}
        self._pipes: list[asyncio.ReadTransport] = []

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[Path]:
        """Have a folder for their files; it is gone with them when the block ends."""
        with tempfile.TemporaryDirectory(prefix="spinal-demo-", ignore_cleanup_errors=True) as name:
            try:
                yield Path(name)
            finally:
                await self._close()

    async def start(self, name: str, folder: Path, *words: str, **environ: str) -> None:
        """Start a ``spinal`` command that prints JSON, and wait until it is ready.

        Raises:
            BusError, HomeError: it did not get ready; in its own words.
        """
        from spinal.agents.process import Process

        log = folder / f"{name}.log"
        with log.open("wb") as file:
            child = self._children[name] = Process.start(
                # -P: a folder called spinal where we happen to be is not ours.
                [sys.executable, "-P", "-m", "spinal", *words, "--json"],
                stdout=subprocess.PIPE,
                stderr=file.fileno(),
                # What a killed process leaves behind goes away with the folder.
                env={**os.environ, "TMPDIR": str(folder), **environ},
            )
        reader = asyncio.StreamReader()
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), child.pipes[0]
        )
        self._pipes.append(pipe)
        try:
            async with asyncio.timeout(READY_WITHIN):
                said = json.loads(await reader.readline() or "{}")
        except TimeoutError:
            raise BusError(
                f"{name} was not ready within {READY_WITHIN:g} s: {_last_line(log)}"
            ) from None
        if said.get("event") != "ready":
            error = said.get("error", {})
            text = f"{name} did not start: {error.get('text') or _last_line(log)}"
            if error.get("exit") == HomeError.exit_code:
                raise HomeError(text)
            # Nobody did anything wrong, so all that is known is worth reading.
            say(log.read_text(errors="replace")[-MAX_LOG:].rstrip())
            raise BusError(text)

    def kill(self, name: str) -> int:
        """Kill one of them, and give its number."""
        child = self._children[name]
        child.signal(signal.SIGKILL)
        return child.pid

    def hurry(self) -> None:
        """Kill all of them."""
        for name in self._children:
            self.kill(name)

    async def _close(self) -> None:
        """End all of them, the platform last."""
        platform = self._children.get("up")
        try:
            await asyncio.gather(
                *(one.end(END_WITHIN) for one in self._children.values() if one is not platform)
            )
        finally:
            try:
                if platform is not None:
                    await platform.end(END_WITHIN)
            finally:
                for pipe in self._pipes:
                    pipe.close()
                # Their descriptors are closed in the next round of the loop.
                await asyncio.sleep(0)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


# The photographs.


@dataclass(frozen=True)
class Photo:
    """A photograph, and what its results are held against."""

    path: Path
    blob: Blob
    size: tuple[int, int]
    tiny: bytes

    @classmethod
    def load(cls, path: Path) -> Photo:
        """Read a file."""
        from PIL import Image

        from spinal.bus import Blob

        with Image.open(path) as image:
            return cls(path, Blob.of(path), image.size, _tiny(image))

    def wrong(self, file: Path, width: int) -> str:
        """Say what is wrong with a result; nothing if it is right."""
        from PIL import Image, UnidentifiedImageError

        size = (width, round(self.size[1] * width / self.size[0]))
        try:
            with Image.open(file) as image:
                if image.size != size:
                    return f"is {image.width} x {image.height} and not {size[0]} x {size[1]}"
                tiny = _tiny(image)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            return f"is no image: {error}"
        apart = sum(abs(a - b) for a, b in zip(tiny, self.tiny, strict=True)) / len(tiny)
        return "" if apart < UNLIKE else "shows something else"


def _tiny(image: Image.Image) -> bytes:
    from PIL import Image

    small = image.convert("RGB").resize((8, 8), Image.Resampling.BOX)  # pyright: ignore[reportUnknownMemberType] - of numpy
    return small.tobytes()


def inputs(photos: Sequence[Photo], jobs: int) -> list[tuple[Photo, int]]:
    """Give photographs and widths, no pair twice."""
    each = -(-jobs // len(photos))
    step = max(1, SPREAD // each)
    return [
        (photos[number % len(photos)], NARROWEST + number // len(photos) * step)
        for number in range(jobs)
    ]


# The play.


@dataclass(slots=True)
class Play:
    """One run of the demo."""

    jobs: int
    out: Path
    home: Path | None
    stage: Stage
    as_json: bool
    _began: float = field(default_factory=time.monotonic)
    _first: float = 0.0
    _killed: dict[str, Json] = field(default_factory=dict[str, Json])
    _wrong: list[str] = field(default_factory=list[str])
    #: Hashes of the results that are right.
    _right: set[str] = field(default_factory=set[str])

    async def run(self) -> int:
        """Run it and give the number of jobs that were lost."""
        from spinal.bus import Client

        files = example()
        photos = [
            Photo.load(path)
            for path in sorted((files / "photos").iterdir())
            if path.suffix in (".jpg", ".png")
        ]
        self.out.mkdir(parents=True, exist_ok=True)
        async with self.stage.open() as folder:
            home = (self.home or folder / "home").absolute()
            self._say(f"Starting a server, a dispatcher and {len(WORKERS)} workers ...")
            await self.stage.start("up", folder, "up", "--home", str(home))
            await self._start_workers(files / "worker.py", folder, home)
            async with Client(home) as bus:
                await self._everybody(bus)
                board = Scoreboard(WORKERS, self.jobs, bus.address, OP)
                watching = asyncio.create_task(_watch(bus, board))
                try:
                    await self._send_photos(bus, photos)
                    with Show(board, quiet=self.as_json) as show:
                        await self._work(bus, board, show, inputs(photos, self.jobs))
                finally:
                    watching.cancel()
                    await asyncio.wait([watching])
        self._sum_up(board, files)
        return self.jobs - len(self._right)

    def _say(self, line: str) -> None:
        if not self.as_json:
            say(line)

    async def _start_workers(self, file: Path, folder: Path, home: Path) -> None:
        async with asyncio.TaskGroup() as group:
            for name, times in WORKERS.items():
                words = ("agent", "run", str(file), "--name", name, "--slots", str(SLOTS))
                group.create_task(
                    self.stage.start(
                        name,
                        folder,
                        *words,
                        "--home",
                        str(home),
                        SPINAL_DEMO_SLOWER=str(times),
                    )
                )

    async def _everybody(self, bus: Client) -> None:
        """Wait until the dispatcher knows what each worker offers."""
        try:
            async with asyncio.timeout(READY_WITHIN):
                while len((await bus.resolve(OP)).candidates) < len(WORKERS):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise BusError("not all workers came to the bus: run `spinal demo` again") from None

    async def _send_photos(self, bus: Client, photos: Sequence[Photo]) -> None:
        """Have each photograph looked at: the first answers, and the photographs are uploaded."""
        asked = [{"photo": photo.blob} for photo in photos]
        async for answer in bus.map("/image/histogram", asked):
            if answer.error is not None:
                raise answer.error
            if not self._first:
                self._first = time.monotonic() - self._began
                photo, seen = photos[answer.index].path.name, answer.value
                self._say(
                    f"First answer after {self._first:.1f} s: {photo} has {seen['width']} x "
                    f"{seen['height']} pixels."
                )

    async def _work(
        self, bus: Client, board: Scoreboard, show: Show, work: Sequence[tuple[Photo, int]]
    ) -> None:
        room = asyncio.Semaphore(CHECKING)

        async def take(mapped: Mapped) -> None:
            async with room:
                await self._check(mapped, *work[mapped.index])

        async def draw() -> None:
            while True:
                show.tick()
                await asyncio.sleep(1 / FRAMES)

        drawing = asyncio.create_task(draw())
        asked = [{"photo": photo.blob, "width": width} for photo, width in work]
        try:
            async with asyncio.TaskGroup() as group:
                async for mapped in bus.options(timeout=JOB_WITHIN).map(OP, asked):
                    if mapped.error is None:
                        board.result(mapped.agent)
                    self.perhaps_kill(board, show)
                    group.create_task(take(mapped))
        finally:
            drawing.cancel()
            await asyncio.wait([drawing])

    def perhaps_kill(self, board: Scoreboard, show: Show) -> None:
        """Kill the victim half-way, in a moment in which it has work."""
        victim = board.workers[VICTIM]
        if self._killed or board.done < self.jobs // 3:
            return
        if victim.running or board.done >= self.jobs // 2:
            pid, after = self.stage.kill(VICTIM), board.done
            board.killed(VICTIM)
            self._killed = {"agent": VICTIM, "pid": pid, "after": after}
            show.line(f"SIGKILL to {VICTIM} (pid {pid}) after {after} of {self.jobs} jobs.")

    async def _check(self, mapped: Mapped, photo: Photo, width: int) -> None:
        """Save one result and see whether it is right."""
        name = f"{photo.path.stem}-{width}"
        if mapped.error is not None:
            self._wrong.append(f"{name}: {mapped.error}")
            return
        blob: Blob = mapped.value
        file = self.out / f"{name}{photo.path.suffix}"
        try:
            await blob.save(file)
        except BusError as error:
            self._wrong.append(f"{name}: {error}")
            return
        wrong = await asyncio.to_thread(photo.wrong, file, width)
        if not wrong and blob.sha256 in self._right:
            wrong = "is the result of another job"
        if wrong:
            self._wrong.append(f"{file} {wrong}")
        else:
            self._right.add(blob.sha256)

    # -- the end

    def _sum_up(self, board: Scoreboard, files: Path) -> None:
        seconds = time.monotonic() - self._began
        right = len(self._right)
        if self.as_json:
            print_json(
                {
                    "jobs": self.jobs,
                    "lost": self.jobs - right,
                    "moved": len(board.moved),
                    "killed": self._killed,
                    "workers": [
                        {"agent": one.name, "jobs": one.done, "seconds": round(one.seconds, 3)}
                        for one in board.workers.values()
                    ],
                    "wrong": list[Json](self._wrong),
                    "out": str(self.out),
                    "first_answer": round(self._first, 3),
                    "seconds": round(seconds, 3),
                }
            )
            return
        click.echo()
        table(rows(board), ("worker", "jobs", "work", ""), "")
        for line in self._wrong[:5]:
            say(f"spinal: {line}")
        again = len(board.moved)
        click.echo(
            f"{right} of {self.jobs} results are there and right: {self.jobs - right} lost.\n"
            f"{VICTIM} was killed with {again} job{'s' * (again != 1)} in hand, which others did.\n"
            f"Results: {self.out}{os.sep}   (everything took {seconds:.0f} s)\n\n"
            f"{_next(files)}"
        )


async def _watch(bus: Client, board: Scoreboard) -> None:
    async for event in bus.tap():
        board.seen(event)


def _next(files: Path) -> str:
    """Say what to try next."""
    here = Path.cwd()
    shown = files.relative_to(here) if files.is_relative_to(here) else files
    worker, photos = shlex.quote(str(shown / "worker.py")), shlex.quote(str(shown / "photos"))
    steps = (
        ("spinal up", "your own platform; the rest in other terminals"),
        (f"spinal agent run {worker}", "a worker; start as many as you like"),
        (f"spinal call /image/histogram photo@={photos}/rocket.jpg", "ask for one thing"),
        (f"spinal map {OP} --over photo={photos}'/*.jpg' --out small", "for many"),
        (f"spinal resolve {OP}", "who could do it, and why"),
        ("spinal tap", "watch the bus"),
    )
    return "\n".join(("Try next:", *(f"  {command}\n      {about}" for command, about in steps)))
