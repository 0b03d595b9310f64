"""Operations as ad-hoc commands (XEP-0050), for programs that do not speak our language.

A command has one step, so between its form and the form that comes back there is nothing to
remember: what is submitted says which command it is for.  What is remembered is what runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Final
from xml.etree.ElementTree import Element

from spinal import protocols
from spinal.protocols import Json, Operation, Problem, RemoteProtocolError
from spinal.protocols import address as addresses
from spinal.protocols.elements import child
from spinal.protocols.forms import FORMS, MAX_TEXT, Form, result

from .jsontext import dumps
from .session import Session

COMMANDS: Final = "http://jabber.org/protocol/commands"

#: Seconds until a command is given up, because whoever asked waits for one IQ.
MAX_SECONDS: Final = 60.0
#: Commands that run at once for one account, and for all of them.
MAX_EACH: Final = 10
MAX_RUNNING: Final = 100
#: Longest name of a session that somebody else chose.
MAX_SESSION: Final = 256

#: What may be done with a command -> whether that runs it, once its form is filled in.
_ACTIONS: Final[Mapping[str, bool]] = {
    "execute": True,
    "complete": True,
    "next": True,
    "cancel": False,
    "prev": False,
}

#: Reason -> the condition of XEP-0050 (4.4) that says it to whoever does not know our reasons.
_CONDITIONS: Final[Mapping[str, str]] = {"bad-arguments": "bad-payload"}


class CommandError(RemoteProtocolError):
    """A command that cannot be taken, with a condition of XEP-0050."""

    def __init__(self, text: str, condition: str) -> None:
        super().__init__(text)
        self.condition = condition


class Commands:
    """The commands of one session: operations whose arguments a form can ask for.

    Args:
        session: runs them, with the rights of whoever asked.
        operation: finds an operation by its path.
    """

    def __init__(self, session: Session, operation: Callable[[str], Operation | None]) -> None:
        self._session = session
        self._operation = operation
        #: Who asked, and the session that it is in -> what stops it.
        self._running: dict[tuple[str, str], Callable[[], None]] = {}

    def take(self, sender: str, id: str, command: Element) -> None:
        """Answer a ``command``: with its form, its end, or a problem."""
        try:
            self._take(sender, id, command)
        except RemoteProtocolError as exc:
            condition = exc.condition if isinstance(exc, CommandError) else ""
            self._refuse(sender, id, exc.problem, condition)

    def _take(self, sender: str, id: str, command: Element) -> None:
        path = command.get("node", "")
        action = command.get("action") or "execute"
        name = command.get("sessionid") or secrets.token_hex(8)
        if len(name) > MAX_SESSION:
            raise CommandError("the name of the session is too long", "bad-sessionid")
        if action not in _ACTIONS:
            raise CommandError(f"there is no action '{action[:60]}'", "malformed-action")
        filled = command.find(f"{{{FORMS}}}x")
        if action == "cancel" or (filled is not None and filled.get("type") == "cancel"):
            stop = self._running.get((sender, name))
            if stop is not None:
                stop()
            self._session.connection.reply(sender, id, _command(path, name, "canceled"))
            return
        if not _ACTIONS[action]:
            raise CommandError("a command has one step", "bad-action")
        operation = self._operation(path)
        form = None if operation is None else Form.of(operation)
        if operation is None or form is None:
            raise RemoteProtocolError(f"there is no command {path[:200]}", "unknown-op")
        if form.fields and filled is None and action == "execute":
            answer = _command(path, name, "executing")
            child(child(answer, "actions", {"execute": "complete"}), "complete")
            answer.append(form.element())
            self._session.connection.reply(sender, id, answer)
            return
        if form.fields and (filled is None or filled.get("type") != "submit"):
            raise RemoteProtocolError("its form must be filled in and submitted", "bad-arguments")
        args = {} if filled is None or not form.fields else form.read(filled)
        self._run(sender, id, name, operation, args)

    def _run(
        self, sender: str, id: str, name: str, operation: Operation, args: Mapping[str, Json]
    ) -> None:
        key = (sender, name)
        if key in self._running:
            raise CommandError("this session has a command that has not ended", "bad-sessionid")
        own = addresses.bare(sender)
        each = sum(addresses.bare(other) == own for other, _ in self._running)
        if each >= MAX_EACH or len(self._running) >= MAX_RUNNING:
            raise RemoteProtocolError("too many commands are running here", "busy")
        ended = False

        def told(final: protocols.Final) -> None:
            nonlocal ended
            ended = True
            self._running.pop(key, None)
            if final.problem is not None:
                self._refuse(sender, id, final.problem)
            else:
                done = _done(operation.path, name, final.value)
                self._session.connection.reply(sender, id, done)

        stop = self._session.serve(sender, operation.path, args, MAX_SECONDS, told)
        if not ended:
            self._running[key] = stop

    def _refuse(self, sender: str, id: str, problem: Problem, condition: str = "") -> None:
        word = condition or _CONDITIONS.get(problem.reason, "")
        more = Element(f"{{{COMMANDS}}}{word}") if word else None
        self._session.connection.reply(sender, id, problem=problem, more=more)


def _command(path: str, name: str, status: str) -> Element:
    said = {"node": path, "sessionid": name, "status": status}
    return Element(f"{{{COMMANDS}}}command", said)


def _done(path: str, name: str, value: Json) -> Element:
    """Say a result: to people in a note, to programs in a form."""
    form = result(value, dumps)
    answer = _command(path, name, "completed")
    words = value if isinstance(value, str) else "".join(form.itertext())
    child(answer, "note", {"type": "info"}, "done" if value is None else words[:MAX_TEXT])
    answer.append(form)
    return answer
