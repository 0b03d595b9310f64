"""Three hundred photographs, two vendors, and nothing left over: ``python story.py``.

Drives the command line as a person would, in a home of its own, and prints what comes of it.
Everything is real: machines are groups of processes here that join by a ticket, the one that is
killed is killed by SIGKILL, and the bill comes from the records.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

HERE: Final = Path(__file__).resolve().parent
PHOTOS: Final = HERE.parent / "images" / "photos"
POOL: Final = "photos"
OP: Final = "/image/resize"

#: Seconds that each part may take.
READY_WITHIN: Final = 60.0
DONE_WITHIN: Final = 300.0
LOOK: Final = 0.3

Row = Mapping[str, Any]
T = TypeVar("T")


class Wrong(Exception):
    """The story did not go as it should."""


class Failed(Wrong):
    """A command failed; on a busy machine the next one may not."""


class Story:
    """One run of it, in a folder of its own.

    Args:
        folder: for the home, the album and the results.
        jobs: how many photographs.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder, self.home = folder, folder / "home"
        self.album, self.small = folder / "album", folder / "small"
        self.jobs = jobs
        #: What happened to the pool, its machines as they were last seen, and who was killed.
        self.events: list[Row] = []
        self.machines: dict[str, Row] = {}
        self.victim = ""
        #: What ``spinal cost --by vendor,pool`` and ``--by machine`` said, and ``spinal sweep``.
        self.bill: Row = {}
        self.each: Row = {}
        self.swept: Row = {}
        self._began = time.time()

    # -- the command line

    def run(self, *words: str) -> str:
        """Run a ``spinal`` command and give what it printed.

        Raises:
            Failed: it ended with an error.
        """
        done = subprocess.run(
            self._argv(words),
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=READY_WITHIN,
            check=False,
        )
        if done.returncode:
            raise Failed(f"spinal {shlex.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def ask(self, *words: str) -> Any:
        """Run a command with ``--json`` and give what it says."""
        return json.loads(self.run(*words, "--json"))

    def show(self, *words: str) -> None:
        """Run a command in front of the reader."""
        self.say(f"$ spinal {shlex.join(words)}")
        for line in self._seen(words).splitlines():
            print(f"          {line}".rstrip(), flush=True)

    def _seen(self, words: Sequence[str]) -> str:
        """Run a command on a terminal, for which it prints headings."""
        ours, its = pty.openpty()
        with open(ours, "rb", buffering=0) as screen:
            try:
                child = subprocess.Popen(
                    self._argv(words),
                    cwd=self.folder,
                    env={**self._environment(), "TERM": "dumb", "COLUMNS": "88"},
                    stdin=subprocess.DEVNULL,
                    stdout=its,
                    stderr=its,
                )
            finally:
                os.close(its)
            shown = bytearray()
            # The last one who had it open has closed it, which Linux tells as an error.
            with suppress(OSError):
                while more := screen.read(65536):
                    shown += more
        if child.wait():
            raise Failed(f"spinal {shlex.join(words)}: {shown.decode().strip()}")
        return shown.decode().replace("\r\n", "\n").strip("\n")

    @contextmanager
    def running(self, name: str, *words: str) -> Generator[subprocess.Popen[bytes]]:
        """Have a command run in the background; it is ended by SIGTERM when the block ends."""
        self.say(f"$ spinal {shlex.join(words)} &")
        with (self.folder / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                self._argv(words),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(READY_WITHIN)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _argv(self, words: Sequence[str]) -> list[str]:
        return [sys.executable, "-P", "-m", "spinal", *words]

    def _environment(self) -> dict[str, str]:
        # All of them run the Spinal that this runs.
        path = os.pathsep.join(str(Path(one).absolute()) for one in sys.path if one)
        own = {"SPINAL_HOME": str(self.home), "SPINAL_LOG": "warning", "PYTHONPATH": path}
        return {**os.environ, **own}

    def say(self, line: str, at: float | None = None) -> None:
        """Print a line with the time since the beginning; now, or that of a Unix time."""
        print(f"{(at or time.time()) - self._began:7.1f} s {line}", flush=True)

    def until(self, what: str, ask: Callable[[], T], within: float = READY_WITHIN) -> T:
        """Ask until the answer is something, and give it.

        Raises:
            Wrong: it was not, within so many seconds.
        """
        end, last = time.monotonic() + within, ""
        while time.monotonic() < end:
            try:
                if found := ask():
                    return found
            except Failed as exc:
                last = f" ({exc})"
            time.sleep(LOOK)
        raise Wrong(f"within {within:g} s not: {what}{last}; see {self.folder}/*.log")

    # -- the pool

    def look(self) -> Row:
        """Look at the pool, and tell what has happened to it since the last look."""
        row: Row = self.ask("pool", "show", POOL)
        news = [one for one in row["events"] if one not in self.events]
        self.events += news
        found = {one["name"]: one for one in row["machines"]}
        for name in found.keys() - self.machines.keys():
            one = found[name]
            where = f"{one['vendor']}, {one['price']:g} {one['currency']} an hour"
            news.append({"at": one["created"], "about": name, "what": "ordered", "said": where})
        self.machines |= found
        for one in sorted(news, key=lambda each: each["at"]):
            self.say(f"  {event(one)}", datetime.fromisoformat(one["at"]).timestamp())
        return row

    def ready(self) -> list[Row]:
        """Give the machines that are ready."""
        return [one for one in self.look()["machines"] if one["state"] == "ready"]

    # -- what happens

    def play(self) -> None:
        """Tell it from beginning to end.

        Raises:
            Wrong: something did not come about.
        """
        self.home.mkdir(parents=True)
        shutil.copy(HERE / "providers.yaml", self.home)
        for name in ("pool.yaml", "worker.py"):
            shutil.copy(HERE / name, self.folder)
        self._fill_album()
        self.say("1. Two vendors, and a pool without machines.")
        with self.running("up", "up", "--home", "home") as up:
            self.until("spinal up, with both vendors", lambda: self._vendors(up) == 2)
            self.show("offers", "--cpu", "1", "--ram", "1G")
            self.show("pool", "apply", "pool.yaml", "--yes")
            self._work()
            self.say("5. Nothing waits any more: the pool returns to zero.")
            self.until("no machines", lambda: not self.look()["exist"], DONE_WITHIN)
            for vendor in ("north", "south"):
                left = self.ask("call", "/provider/list", "--place", f"vendor=/{vendor}")
                if left["value"]["machines"]:
                    raise Wrong(f"{vendor} still has {left['value']['machines']}")
            self.say("6. The bill.")
            self.show("cost", "--by", "vendor,pool")
            self.show("cost", "--by", "vendor,type,machine")
            self.show("sweep")
            self.bill = self.ask("cost", "--by", "vendor,pool")
            self.each = self.ask("cost", "--by", "machine")
            self.swept = self.ask("sweep")
        self.say("That is all: nothing runs any more.")

    def _work(self) -> None:
        self.say(f"2. {self.jobs} photographs arrive.")
        words = ("map", OP, "--over", "photo=album/*", "--set", "width:=800")
        with self.running("map", *words, "--durable", "--out", "small") as mapping:
            self.say("3. Machines appear, the cheapest first, until a vendor has no more.")
            self.until("machines of both vendors", lambda: self._both(mapping), DONE_WITHIN)
            self.victim = next(one["name"] for one in self.ready() if one["vendor"] == "north")
            count = self.kill(self.victim)
            self.say(f"4. {self.victim} dies: SIGKILL to all {count} processes of it.")
            self.until("all photographs", lambda: self._ended(mapping), DONE_WITHIN)
            if mapping.returncode:
                raise Wrong((self.folder / "map.log").read_text())
        done = len(list(self.small.iterdir()))
        self.say(f"  {done} of {self.jobs} photographs are there")
        if done != self.jobs:
            raise Wrong("some are missing")

    def _both(self, mapping: subprocess.Popen[bytes]) -> bool:
        if mapping.poll() is not None:
            raise Wrong((self.folder / "map.log").read_text())
        return {one["vendor"] for one in self.ready()} == {"north", "south"}

    def _ended(self, mapping: subprocess.Popen[bytes]) -> bool:
        self.look()
        return mapping.poll() is not None

    def _vendors(self, up: subprocess.Popen[bytes]) -> int:
        if up.poll() is not None:
            raise Wrong((self.folder / "up.log").read_text())
        return len({one["vendor"] for one in self.ask("offers")})

    def _fill_album(self) -> None:
        photos = sorted(path for path in PHOTOS.iterdir() if path.suffix in (".png", ".jpg"))
        self.album.mkdir(parents=True)
        for number in range(self.jobs):
            photo = photos[number % len(photos)]
            (self.album / f"{photo.stem}-{number:03}{photo.suffix}").symlink_to(photo)

    def kill(self, machine: str) -> int:
        """Kill every process of a machine, and give how many those were."""
        found = processes(f"SPINAL_MACHINE_NAME={machine}")
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)


def event(one: Row) -> str:
    """Write what happened in one line."""
    said = f": {one['said']}" if one["said"] else ""
    about = f"{POOL} scaled to {one['about']}" if one["what"] == "scaled" else ""
    return f"{about or one['about'] + ' ' + one['what']}{said}"


def processes(mark: str) -> list[int]:
    """Give the processes that were started with this variable, ``NAME=value`` or the like."""
    found: list[int] = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with suppress(OSError):
                if mark.encode() in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
    return found


def main() -> int:
    """Tell the story; exit code 1 if it did not go as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=300, help="photographs (300)")
    parser.add_argument("--folder", type=Path, help="keep home and results there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spinal-clouds-") as temporary:
        try:
            Story((given.folder or Path(temporary)).absolute(), given.jobs).play()
        except Wrong as exc:
            print(f"story: {exc}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
