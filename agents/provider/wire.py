"""The way to a vendor's API: libcloud's own, with a bound on time, and the last answer noted.

Drivers keep little of an answer: Linode's loses the status but for a word in the text, and Vultr's
and Linode's lose ``Retry-After``.  So what is needed is noted here, where every answer passes by.
libcloud has a place for that: the class of its connections.
"""

from __future__ import annotations

import email.utils
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

import libcloud.common.base
from libcloud.http import LibcloudConnection

#: Shortest time-out of one request, in seconds.
LEAST: Final = 0.05

#: Most bytes of an answer, unpacked, and those that are read of it at a time.
MAX_ANSWER: Final = 64 * 1024 * 1024
CHUNK: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What is kept of an answer."""

    status: int
    #: Seconds after which to ask again.
    after: float | None = None
    #: Seconds by which our clock is ahead of the vendor's.
    skew: float | None = None

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], now: float) -> Answer:
        """Read one that came at ``now``, in seconds since 1970 UTC."""
        return cls(status, _after(headers.get("retry-after", ""), now), _skew(headers, now))


def _after(text: str, now: float) -> float | None:
    """Read ``Retry-After`` (RFC 9110, 10.2.3): seconds, or a date."""
    try:
        return max(0.0, float(text))
    except ValueError:
        when = _date(text)
    return None if when is None else max(0.0, when - now)


def _skew(headers: Mapping[str, str], now: float) -> float | None:
    when = _date(headers.get("date", ""))
    return None if when is None else now - when


def _date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError):
        return None


class _Call(threading.local):
    """What the thread is doing just now."""

    #: Seconds that a request may take, and the monotonic time at which the whole call is over.
    timeout: float = 20.0
    until: float = float("inf")
    answer: Answer | None = None

    def __init__(self) -> None:
        self.wires: WeakSet[Wire] = WeakSet()


_call = _Call()


def begin(timeout: float, until: float = float("inf")) -> None:
    """Bound the requests of this thread from now on.

    Args:
        timeout: seconds that the vendor may be silent in a request.
        until: value of ``time.monotonic()`` after which no request waits any longer.
    """
    _call.timeout, _call.until, _call.answer = timeout, until, None


def last() -> Answer | None:
    """Give the answer to this thread's last request; none if it had none."""
    return _call.answer


def opened() -> WeakSet[Wire]:
    """Give the connections that this thread has made; they may be closed by another one."""
    return _call.wires


class Wire(LibcloudConnection):
    """See the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        base: Any = super()
        base.__init__(*args, **kwargs)
        _call.wires.add(self)

    def shut(self) -> None:
        """Close its sockets; a request that is made all the same opens a new one."""
        if self.session is not None:
            self.session.close()

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request and read its answer, as libcloud's own."""
        _call.answer = None
        left = _call.until - time.monotonic()
        own: Any = self
        own.session.timeout = max(LEAST, min(_call.timeout, left))
        base: Any = super()
        base.request(*args, **{**kwargs, "stream": True})
        answer: Any = self.response
        if not kwargs.get("stream"):
            _read(answer)
        _call.answer = Answer.of(answer.status_code, answer.headers, time.time())


def _read(answer: Any) -> None:
    """Read what an answer holds: its time-out begins anew with every byte, and ours does not.

    Raises:
        OSError: it is too long, or does not end in time.
    """
    kept = bytearray()
    try:
        while part := answer.raw.read1(CHUNK, decode_content=True):
            kept += part
            if len(kept) > MAX_ANSWER:
                raise OSError(f"the answer is longer than {MAX_ANSWER} bytes")
            if time.monotonic() > _call.until:
                raise TimeoutError("the answer did not end in time")
    except BaseException:
        answer.close()
        raise
    answer._content, answer._content_consumed = bytes(kept), True


def install() -> None:
    """Have all drivers of this process use it."""
    libcloud.common.base.Connection.conn_class = Wire
