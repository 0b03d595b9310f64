"""A program that knows nothing of Spinal: it asks, and runs commands, as XEP-0030 and XEP-0050 say."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from spinal.bus.connection import Connection
from spinal.bus.transports.memory import MemoryBus
from spinal.protocols import Message, Stanza

INFO = "http://jabber.org/protocol/disco#info"
ITEMS = "http://jabber.org/protocol/disco#items"
COMMANDS = "http://jabber.org/protocol/commands"
FORMS = "jabber:x:data"


class Tool:
    """One such program, and who may be asked."""

    def __init__(self, connection: Connection, asks: str) -> None:
        self.connection = connection
        self.asks = asks
        self.received_stanzas: list[Stanza] = []

    def opened(self) -> None: ...
    def closed(self, reason: str) -> None: ...
    def received(self, stanza: Stanza) -> None:
        self.received_stanzas.append(stanza)

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        return False

    def said(self, message: Message) -> None: ...

    async def ask(self, namespace: str, node: str = "") -> Element:
        """Ask for information or items; gives the query of the answer."""
        asked = Element(f"{{{namespace}}}query", {"node": node} if node else {})
        answer = await self.connection.ask("get", self.asks, asked, timeout=60)
        assert answer is not None
        return answer

    async def command(
        self,
        node: str,
        form: Mapping[str, Sequence[str]] | None = None,
        *,
        kind: str = "submit",
        timeout: float = 100,
        **said: str,
    ) -> Element:
        """Send a command, with a form that is filled in like this; gives the command of the answer."""
        asked = Element(f"{{{COMMANDS}}}command", {"node": node, **said})
        if form is not None:
            filled = SubElement(asked, f"{{{FORMS}}}x", {"type": kind})
            for var, values in form.items():
                field = SubElement(filled, f"{{{FORMS}}}field", {"var": var})
                for value in values:
                    SubElement(field, f"{{{FORMS}}}value").text = value
        answer = await self.connection.ask("set", self.asks, asked, timeout)
        assert answer is not None
        return answer


@asynccontextmanager
async def tool(bus: MemoryBus, address: str, asks: str) -> AsyncGenerator[Tool]:
    """Let one on the bus."""
    program = Tool(bus.connection(address), asks)
    await program.connection.open(program)
    try:
        yield program
    finally:
        await program.connection.close()


def nodes(answer: Element) -> dict[str, str]:
    """Give the nodes that a list of items has, and their names."""
    return {i.get("node", ""): i.get("name", "") for i in answer.findall(f"{{{ITEMS}}}item")}


def value(answer: Element) -> Any:
    """Give the text of the field ``value`` of a form."""
    assert answer.get("status") == "completed"
    (found,) = (
        one.findtext(f"{{{FORMS}}}value")
        for one in answer.findall(f"{{{FORMS}}}x/{{{FORMS}}}field")
        if one.get("var") == "value"
    )
    return found


def asked_for(answer: Element) -> dict[str, str]:
    """Give the fields of a form that is to be filled in, and their types."""
    assert answer.get("status") == "executing"
    fields = answer.findall(f"{{{FORMS}}}x/{{{FORMS}}}field")
    return {one.get("var", ""): one.get("type", "") for one in fields}
