"""The IQs of other namespaces that we sent, until they are answered: one table for each connection."""

from __future__ import annotations

import asyncio
from xml.etree.ElementTree import Element

from spinal.protocols import Codec, Problem, Stanza, elements

from .connection import ID_PREFIX, Connection
from .errors import CallError


class Questions:
    """Asks over a connection for :meth:`Connection.ask`, which tells it of the answers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._open: dict[str, tuple[str, asyncio.Future[Element | None]]] = {}
        self._number = 0

    def __contains__(self, id: object) -> bool:
        return id in self._open

    async def ask(self, kind: str, to: str, payload: Element, timeout: float) -> Element | None:
        """Ask and wait; see the contract."""
        if not self._connection.connected:
            raise CallError.of(Problem("no-answer", "there is no stream to the server now"))
        self._number += 1
        id = f"{ID_PREFIX}ask{self._number}"
        answer: asyncio.Future[Element | None] = asyncio.get_running_loop().create_future()
        self._open[id] = (to, answer)
        try:
            self._connection.send(Stanza("iq", kind, to, id=id, other=elements.write(payload)))
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError as exc:
            raise CallError.of(
                Problem("no-answer", f"no answer from {to} within {timeout:g} s")
            ) from exc
        finally:
            self._open.pop(id, None)

    def answered(self, iq: Element) -> bool:
        """Take a result or an error; false if it answers none of them."""
        asked = self._open.get(iq.get("id", ""))
        if asked is None:
            return False
        to, answer = asked
        sender = iq.get("from", "")
        # A server may leave out its own address when it answers for itself (RFC 6120, 8.1.2.1).
        if answer.done() or (sender and sender != to):
            return True
        if iq.get("type") == "error":
            answer.set_exception(CallError.of(Codec.decode(iq).problem or Problem("failed")))
        else:
            answer.set_result(iq[0] if len(iq) else None)
        return True

    def end(self, why: str) -> None:
        """No answer will come any more."""
        asked, self._open = self._open, {}
        for _, answer in asked.values():
            if not answer.done():
                answer.set_exception(CallError.of(Problem("no-answer", why)))
