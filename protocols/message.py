"""Messages between people and programs: words in a ``<body/>`` (RFC 6121, 5).

Our own events travel in messages, too, but in an element of ours and without a body; those are for
the codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element

from .codec import Stanza
from .elements import text

#: Characters of a body that are read; what is longer is cut, by at least one character.
MAX_BODY: Final = 64 * 1024

#: Types that somebody may answer (RFC 6121, 5.2.2): an error never is, a headline wants none, and a
#: groupchat is said to a room.
_TYPES: Final = frozenset({"chat", "normal"})

#: XEP-0203: it was kept somewhere before it came.
_DELAY: Final = "{urn:xmpp:delay}delay"
#: XEP-0280: a copy of what somebody said elsewhere.
_COPIES: Final = ("{urn:xmpp:carbons:2}received", "{urn:xmpp:carbons:2}sent")
#: XEP-0380: the body only says that there is something else.
_ENCRYPTED: Final = "{urn:xmpp:eme:0}encryption"


@dataclass(frozen=True, slots=True)
class Message:
    """Something that was said, to be read by a person or by a program that talks with people."""

    text: str
    #: Receiver; a bare address means wherever that account reads.
    to: str = ""
    #: Sender, as stamped by the server.
    sender: str = ""
    #: ``chat`` or ``normal``.
    type: str = "chat"
    id: str = ""
    #: What it belongs to (RFC 6121, 5.2.5); goes back with an answer.
    thread: str = ""
    #: It was kept before it came (XEP-0203): whoever said so may have changed their mind since.
    delayed: bool = False
    #: What was meant is encrypted, and the text only says so (XEP-0380).
    encrypted: bool = False

    @staticmethod
    def read(element: Element) -> Message | None:
        """Read a message stanza, of whichever stream namespace.

        None if nothing was said with it: there is no body, it is of a type that is not answered, or
        a copy of another message (XEP-0280).
        """
        get = element.attrib.get
        type = get("type", "normal")
        if type not in _TYPES:
            # RFC 6121, 5.2.2: an unknown type is read as normal.
            if type in ("error", "headline", "groupchat"):
                return None
            type = "normal"
        namespace = element.tag.rpartition("}")[0]
        prefix = f"{namespace}}}" if namespace else ""
        body = element.find(f"{prefix}body")
        if body is None or any(element.find(copy) is not None for copy in _COPIES):
            return None
        return Message(
            (body.text or "")[: MAX_BODY + 1],
            get("to", ""),
            get("from", ""),
            type,
            get("id", ""),
            element.findtext(f"{prefix}thread", "")[:256],
            element.find(_DELAY) is not None,
            element.find(_ENCRYPTED) is not None,
        )

    def stanza(self) -> Stanza:
        """Give the stanza that says it; characters that XML cannot hold become spaces."""
        thread = f"<thread>{text(self.thread)}</thread>" if self.thread else ""
        inner = f"<body>{text(self.text)}</body>{thread}"
        return Stanza("message", self.type, self.to, id=self.id, other=inner.encode())
