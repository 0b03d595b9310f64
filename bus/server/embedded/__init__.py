"""An XMPP server of our own for one machine: a router that comes by pip.

It is here so that nothing has to be installed before the first agent answers.  It routes, knows
who is there, keeps rosters, takes blobs, and leaves the rest to Prosody and ejabberd: it has no
federation, no rooms, no message archive, no offline messages, no stream management, no in-band
registration.

How it works
------------
*Slices.*  A stanza is never parsed into objects and never written again.  ``xmlstream`` lets expat
check the bytes (well-formed, namespaces included) and report where stanzas begin and end; the start
tag is read, everything between it and the end tag stays the bytes that came.  ``stanzas`` writes a
new start tag, with ``from`` stamped, in front of those bytes.  That is the whole speed, and the
whole danger: a slice means what it meant only if nothing outside of it mattered.  So prefixes that
were declared outside come along as ``xmlns:p`` attributes, the language of the stream is written
onto the stanza, the namespace of components is translated, and what cannot be carried over ends
the stream: prefixed stanzas, foreign default namespaces, other encodings than UTF-8, DOCTYPE,
comments, processing instructions.

*Streams.*  ``stream`` is one TCP connection: TLS over memory buffers, slicing, writing.  What is
sent within one turn of the event loop leaves as one write, so busy receivers get few large TLS
records and lone stanzas are not delayed.  ``client`` (STARTTLS, SASL, bind) and ``component``
(XEP-0114) say what may come next; each phase is a method.

*Routing.*  ``router`` has three tables: full address to stream, bare address to streams, domain to
a function.  Components, the upload service, the server itself and services in this process are all
functions in the third: ``EmbeddedServer.attach`` adds one.  ``presence``, ``roster`` and
``services`` answer what is addressed to accounts and to the server.  Where RFC 6121 lets a server
drop something silently and a sender would wait for ever, this one answers with an error: directed
presence to nobody comes back, and everybody who was told that somebody is there is told when that
stream ends, however it ends and whether there was initial presence or not.

*Slow readers.*  What waits for a receiver is bounded.  Above ``Limits.backlog`` those whose stanzas
it was are not read from until it has caught up; if it has not within ``Limits.slow_time`` it is cut
with ``policy-violation``.  Each receiver has its own clock, so two that do not read cannot wait for
each other.  Services in this process are never made to wait; what they pile up on one receiver is
cut off at ``Limits.backlog_hard``.

*Accounts.*  ``accounts`` keeps one file an account, with SCRAM keys only, read at each login.  Any
process may add and remove them.

*Processes.*  ``EmbeddedServer`` runs in the caller's event loop, ``launch.EmbeddedProcess`` the
same server in a child (``python -m spinal.bus.server.embedded``) that ends when its parent does.

On disk, below ``ServerConfig.folder``: the certificates that all kinds of servers share, and in
``embedded/`` the folders ``accounts``, ``rosters`` and ``blobs``, the child's ``config.json``,
``server.log`` and ``lock``.
"""

from .accounts import Accounts
from .limits import Limits
from .server import Attachment, EmbeddedServer

__all__ = ["Accounts", "Attachment", "EmbeddedServer", "Limits"]
