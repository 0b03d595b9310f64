"""What can go wrong when a server is started or asked."""

from spinal.protocols import SpinalError


class ServerError(SpinalError):
    """The XMPP server could not be started, reached or told something; the text says what to do."""

    exit_code = 4


class ServerMissing(ServerError):
    """The program of this server is not installed."""


class PortTaken(ServerError):
    """Another program listens on a port that this home has chosen."""

    def __init__(self, port: int, what: str) -> None:
        super().__init__(
            f"port {port} ({what}) is taken by another program: stop that one, "
            f"or choose another home with --home"
        )
        self.port = port
