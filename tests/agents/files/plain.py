"""An agent of plain functions, one for each thing that can happen in a worker process."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from spinal.agents import Agent, Blob, Job, PlainJob, Refused

agent = Agent("plain")


@agent.op("/add", effects="reads")
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@agent.op("/pid")
def pid() -> int:
    return os.getpid()


@agent.op("/talk")
def talk(job: PlainJob) -> str:
    job.progress(1, 2, "half")
    job.log("a line")
    job.send({"piece": 1})
    print("this goes to standard error")
    return f"{job.id} {job.op} {job.caller} {job.attempt} {job.remaining > 0}"


@agent.op("/fail")
def fail() -> None:
    raise ValueError("no such\nphoto")


@agent.op("/refuse")
def refuse() -> None:
    raise Refused("the shop is closed")


@agent.op("/segfault")
def segfault() -> None:
    ctypes.string_at(0)


@agent.op("/exit")
def exit_at_once() -> None:
    os._exit(7)


@agent.op("/leave")
def leave() -> None:
    sys.exit("bye")


@agent.op("/sleep")
def sleep(job: Job, file: str, stubborn: bool = False) -> None:
    """Wait for ever, with a child that does the same; note both, and the end."""
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "1000"])
    Path(file).write_text(f"{os.getpid()} {child.pid}")
    try:
        job.log("sleeping")
        while True:
            time.sleep(1000)
    finally:
        Path(file).with_suffix(".ended").write_text(str(job.cancelled))


@agent.op("/hog")
def hog(job: Job, file: str) -> None:
    """Keep the interpreter's lock for ever, so that no other thread of ours can run."""
    child = subprocess.Popen(["sleep", "1000"])
    Path(file).write_text(f"{os.getpid()} {child.pid}")
    job.log("sleeping")
    ctypes.PyDLL(None).sleep(1000)


@agent.op("/size")
def size(photo: Blob) -> dict[str, object]:
    return {"size": len(photo.data), "suffix": photo.path.suffix, "sha256": photo.sha256}


@agent.op("/make")
def make() -> dict[str, object]:
    return {"list": [1, Blob.of(b"bytes", "text/plain")], "blob": Blob.of(Path(__file__))}


@agent.op("/read-blob")
def read_blob(photo: Blob) -> None:
    getattr(photo, "read")()  # noqa: B009 - type checkers know that this is wrong


@agent.op("/big")
def big() -> str:
    return "x" * 40_000


@agent.op("/odd")
def odd() -> object:
    return float("nan")


@agent.op("/count")
def count(to: int) -> Iterator[int]:
    yield from range(to)


@agent.op("/burn")
def burn(fails: bool = False) -> None:
    ready = bytearray(64 * 1024 * 1024)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        ready[0] = 1
    if fails:
        raise ValueError("burnt")
