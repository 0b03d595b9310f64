"""An XMPP server of our own for one machine: a router that comes by pip."""

from .accounts import Accounts
from .limits import Limits
from .server import Attachment, EmbeddedServer

__all__ = ["Accounts", "Attachment", "EmbeddedServer", "Limits"]
