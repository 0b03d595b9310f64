"""What an agent and its worker processes say to each other, over a socket of their own.

A frame is a length in four bytes and a MessagePack object.  Never pickle: what comes from user
code is data to us.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

from spinal.protocols import Json

#: Longest frame in bytes.  Values are far smaller (32 KiB of JSON); tracebacks are cut.
MAX_FRAME: Final = 1024 * 1024

LENGTH: Final = struct.Struct(">I")


class Frame(msgspec.Struct, frozen=True, tag=True):
    """One thing said."""


class Load(Frame, frozen=True):
    """To a worker, first: which file to load, as the agent did."""

    file: str
    agent: str
    path: list[str]
    #: The agent's PYTHONPATH; the worker was started with another one.
    python_path: str | None


class Call(Frame, frozen=True):
    """To a worker: run an operation."""

    id: str
    op: str
    caller: str
    attempt: int
    #: Seconds that are left.
    left: float
    args: dict[str, Json]
    #: SHA-256 of a blob in the arguments -> the file that it was fetched to.
    files: dict[str, str]
    #: Where to put the bytes of blobs in the result.
    folder: str


class Taken(Frame, frozen=True):
    """To a worker: the piece of data is on its way."""


class Ready(Frame, frozen=True):
    """From a worker: the file is loaded."""


class Broken(Frame, frozen=True):
    """From a worker: the file cannot be loaded."""

    text: str


class Began(Frame, frozen=True):
    """From a worker: the function runs now.  Without it, nothing has happened."""


class Progress(Frame, frozen=True):
    """From a worker: how far it is."""

    done: float | None
    total: float | None
    note: str


class Log(Frame, frozen=True):
    """From a worker: a line for the caller's log."""

    text: str
    level: str


class Data(Frame, frozen=True):
    """From a worker: a piece of the stream; answered by :class:`Taken`."""

    value: Json


class Cost(msgspec.Struct, frozen=True):
    """What a run cost, with the processes it waited for."""

    #: Seconds of CPU time.
    cpu: float = 0.0
    #: Most memory the worker had, in bytes.
    memory: int = 0


class File(msgspec.Struct, frozen=True):
    """A blob in a result: where it stands and what it holds."""

    steps: list[str | int]
    path: str
    media_type: str


class Value(Frame, frozen=True):
    """From a worker: the function returned."""

    value: Json
    files: list[File]
    cost: Cost


class Failed(Frame, frozen=True):
    """From a worker: the function raised."""

    reason: str
    text: str
    traceback: str
    cost: Cost


Said = Ready | Broken | Began | Progress | Log | Data | Value | Failed
Told = Load | Call | Taken

_encoder = msgspec.msgpack.Encoder()
_said: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)
_told: msgspec.msgpack.Decoder[Told] = msgspec.msgpack.Decoder(Told)


def write(frame: Frame) -> bytes:
    """Write a frame with its length."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME:
        raise ValueError(f"{len(body)} bytes are too many for a frame")
    return LENGTH.pack(len(body)) + body


def length(head: bytes) -> int:
    """Read the length of a frame.

    Raises:
        ValueError: it is longer than any frame.
    """
    size: Any = LENGTH.unpack(head)[0]
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes")
    return int(size)


def read_said(body: bytes) -> Said:
    """Read what a worker said."""
    return _said.decode(body)


def read_told(body: bytes) -> Told:
    """Read what a worker was told."""
    return _told.decode(body)
