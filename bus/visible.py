"""What ordinary tools see of us: service discovery, entity capabilities, ad-hoc commands.

XEP-0030, XEP-0128, XEP-0115 and XEP-0050, as docs/protocol.md, section 17, says.  All of it is read
from the operations that are offered at that moment; nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final
from xml.etree.ElementTree import Element

from spinal.protocols import NS, VERSION, Operation, RemoteProtocolError
from spinal.protocols import address as addresses
from spinal.protocols.discovery import CAPS, INFO, ITEMS, PAGES, Info, Item, caps, items, name_of
from spinal.protocols.forms import FORMS, VALIDATE, Form

from .commands import COMMANDS, Commands
from .session import Session

#: What ``disco#info`` names.
FEATURES: Final = (CAPS, COMMANDS, FORMS, INFO, ITEMS, NS, PAGES, VALIDATE, "urn:xmpp:ping")


class Visible:
    """Shows the owner of a session to programs that do not speak our language.

    Args:
        session: moves the answers, runs the commands, and says who may ask.
        category, type: what it is (the registry of XEP-0030).
        paths: the paths of the operations, sorted.
        operation: finds an operation by its path.
        name: what to call it; by default the name of its account.
        hash: gives the hash of its description, if it has one.
        agents: full addresses of those it knows, sorted; without it what it lists are its own
            operations.
    """

    def __init__(
        self,
        session: Session,
        category: str,
        type: str,
        *,
        paths: Callable[[], Sequence[str]],
        operation: Callable[[str], Operation | None],
        name: str = "",
        hash: Callable[[], str] | None = None,
        agents: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self._session = session
        self._category, self._type = category, type
        self._paths = paths
        self._operation = operation
        self._name = name
        self._hash = hash
        self._agents = agents
        #: Kind and tag of what is asked -> what answers it; none is answered later.
        self._answers: Mapping[tuple[str, str], Callable[[str, str, Element], Element | None]] = {
            ("get", f"{{{INFO}}}query"): self._answer_info,
            ("get", f"{{{ITEMS}}}query"): self._answer_items,
            ("set", f"{{{COMMANDS}}}command"): Commands(session, operation).take,
        }
        #: What was hashed last, and what presence carries of it.
        self._told: tuple[Info, bytes] | None = None
        session.on_asked = self.asked
        session.caps = self._caps

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        """Answer a get or set; false if it is about something else."""
        answer = self._answers.get((kind, payload.tag))
        if answer is None:
            return False
        reply = self._session.connection.reply
        try:
            said = answer(sender, id, payload)
        except RemoteProtocolError as exc:
            reply(sender, id, problem=exc.problem)
        else:
            if said is not None:
                reply(sender, id, said)
        return True

    @property
    def info(self) -> Info:
        """What is said of all of it."""
        form: dict[str, str | Sequence[str]] = {
            "features": sorted(self._session.hello().features),
            "version": VERSION,
        }
        if self._hash is not None:
            form["hash"] = self._hash()
        name = self._name or _account(self._session.address)
        return Info(self._category, self._type, name_of(name), FEATURES, form)

    def _caps(self) -> bytes:
        info = self.info
        if self._told is None or self._told[0] != info:
            self._told = (info, caps(info.ver))
        return self._told[1]

    def _answer_info(self, sender: str, id: str, query: Element) -> Element:
        node = query.get("node", "")
        info = self.info
        if node == COMMANDS:
            info = Info("automation", "command-list", "operations", (COMMANDS, INFO, ITEMS))
        elif node not in ("", f"{NS}#{info.ver}"):
            operation = self._need(node)
            features = (INFO, *((COMMANDS, FORMS) if Form.of(operation) else ()))
            name = name_of(operation.summary or node)
            info = Info("automation", "command-node", name, features)
        return info.element(node)

    def _answer_items(self, sender: str, id: str, query: Element) -> Element:
        node = query.get("node", "")
        if node == COMMANDS:
            return items(query, self._paths(), self._command)
        if node:
            self._need(node)
            return items(query, (), self._listed)
        if self._agents is not None:
            return items(query, self._agents(), _agent)
        return items(query, self._paths(), self._listed)

    def _need(self, path: str) -> Operation:
        operation = self._operation(path)
        if operation is None:
            raise RemoteProtocolError(f"there is no {path[:200]} here", "unknown-op")
        return operation

    def _listed(self, path: str) -> Item | None:
        operation = self._operation(path)
        if operation is None:
            return None
        return Item(self._session.address, path, operation.summary or path)

    def _command(self, path: str) -> Item | None:
        operation = self._operation(path)
        return self._listed(path) if operation is not None and Form.of(operation) else None


def _account(address: str) -> str:
    return addresses.local(address) or addresses.domain(address)


def _agent(address: str) -> Item:
    return Item(address, name=_account(address))
