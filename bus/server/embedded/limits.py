"""Every bound of the server in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes and times in seconds; the defaults suit 5,000 agents on one machine."""

    #: Largest element before a login.
    login_bytes: int = 10_000
    #: Time from the turn to log in to a bound resource.
    login_time: float = 10.0
    #: Clients that log in at a time; further ones wait, unread.
    logins: int = 128
    #: Connections that are not logged in; further ones are closed at once.
    login_connections: int = 8192
    #: Failed logins on one stream.
    login_failures: int = 3
    #: How deep elements of a stanza may be nested; before a login :attr:`login_depth`.
    depth: int = 100
    login_depth: int = 8
    #: Attributes of one element.
    attributes: int = 64
    #: Prefixes that the header of a stream declares; each is looked for in each stanza.
    prefixes: int = 16
    #: Largest tag.  expat scans an unfinished tag again whenever more of it comes.
    tag: int = 32 * 1024

    #: What waits for one receiver before those who write to it are no longer read from.
    backlog: int = 4 * 1024 * 1024
    #: What waits for one receiver before it is cut at once, however it came there.
    backlog_hard: int = 16 * 1024 * 1024
    #: How long a receiver may be over :attr:`backlog` and hold up others.
    slow_time: float = 3.0

    #: Silence after which a client is pinged, and the time that it has to answer.
    silence: float = 60.0
    answer: float = 30.0
    #: How long a closing stream may take to take leave.
    linger: float = 2.0

    #: Streams of one account.
    resources: int = 4096
    #: Addresses to which one stream has sent directed presence.
    directed: int = 16_384
    #: Entries of one roster, requests of strangers included.
    roster: int = 2_000
    #: Messages that are kept for one account while it is away, and bytes of them.
    offline: int = 100
    offline_bytes: int = 256 * 1024

    #: Upload slots of one account that are not used yet, and how long they are good for.
    slots: int = 200
    slot_time: float = 300.0
    #: Uploads at once, each with 1 MiB in memory; further ones wait.
    uploads: int = 64
    #: HTTPS connections, idle ones included.
    https: int = 1024
    #: How long an upload may stand still, or wait for its turn.
    upload_silence: float = 30.0
