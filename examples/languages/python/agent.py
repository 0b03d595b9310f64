"""An agent for a Spinal bus on aioxmpp: the core profile, cancel and progress. See README.md."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import re
import signal
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path

import aiosasl
import aioxmpp

log = logging.getLogger("agent")
FEATURES, EPOCH = ["cancel"], int(time.time() * 1000)
SLOTS, CALLS, PEERS, WAITING = 64, 10_000, 10_000, 8
READ, STANZA, INLINE, LEVELS = 1 << 20, 61_440, 32_768, 32


class Problem(Exception):
    """The operation was started and ended badly: one of the reasons of section 9.1, and why."""

    def __init__(self, reason, text, **more):
        super().__init__(text)
        self.problem = {"reason": reason, "text": text, **more}


class Refused(Problem):
    """The operation was not started."""


# The operations. The arguments of a function and their description are one thing.

OPERATIONS = {}
TEXT = {"type": "string", "maxLength": 1000}
NAME = {"type": "string", "maxLength": 64}
TIMES = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1}
STEPS = {"type": "integer", "minimum": 1, "maximum": 100}
SECONDS = {"type": "number", "minimum": 0, "maximum": 600, "default": 0}


def operation(path, *, safe=True, timeout=60, **arguments):
    required = [name for name, schema in arguments.items() if "default" not in schema]
    schema = {"type": "object", "properties": arguments, "required": required}
    about = {"effects": "reads" if safe else "writes", "safe": safe, "timeout": timeout}

    def register(function):
        OPERATIONS[path] = function, {"summary": function.__doc__, "args": schema, **about}

    return register


@operation("/conform/echo", value={})
async def echo(tell, value):
    """Give the value back."""
    return value


@operation("/conform/repeat", text=TEXT, times=TIMES)
async def repeat(tell, text, times):
    """Give the text so many times."""
    return text * times


begun = {}


@operation("/conform/work", safe=False, timeout=600, name=NAME, seconds=SECONDS)
async def work(tell, name, seconds):
    """Wait, and count the beginnings under this name."""
    count = begun[name] = begun.pop(name, 0) + 1
    if len(begun) > 10_000:
        del begun[next(iter(begun))]
    await asyncio.sleep(seconds)
    return count


@operation("/conform/fail", text=TEXT)
async def fail(tell, text):
    """Begin, and fail."""
    raise Problem("failed", text)


@operation("/conform/refuse", text=TEXT)
async def refuse(tell, text):
    """Refuse."""
    raise Refused("refused", text)


@operation("/conform/report", steps=STEPS)
async def report(tell, steps):
    """Tell of each step."""
    for step in range(1, steps + 1):
        tell(type="progress", done=step, total=steps)
        tell(type="log", text=f"step {step}")
    return steps


# What comes is checked, and events (section 5) in the same way as arguments (section 8.1).
# Of an event only those members stand here that this agent uses.

TYPES = {"string": str, "integer": int, "number": int | float, "object": dict, "array": list}
ID = {"type": "string", "pattern": r"^[!-~]{1,128}\Z"}
ATTEMPT = {"type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 1}
PATH = {"type": "string", "pattern": r"^(/|(/[^/\s*?{}\[\]<>\"'\\]+)+)\Z", "maxLength": 512}
LEFT = {"type": "integer", "minimum": 0, "maximum": 31_622_400_000}
MUST, ARGS = {"type": "array", "default": []}, {"type": "object", "default": {}}
LIFE = {"type": "integer", "minimum": 0, "default": EPOCH}
OP = {"id": ID, "attempt": ATTEMPT, "op": PATH, "left": LEFT}
OP |= {"args": ARGS, "epoch": LIFE, "must": MUST}
CANCEL = {"id": ID, "attempt": ATTEMPT, "left": {**LEFT, "default": 60_000}}
EVENTS = {"op": OP, "cancel": CANCEL, "describe": {"hash": NAME}}


def fits(schema, value):
    wanted = TYPES[schema["type"]] if "type" in schema else object
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not object):
        return False
    if isinstance(value, str):
        right = re.search(schema.get("pattern", ""), value)
        return right is not None and len(value) <= schema.get("maxLength", len(value))
    if isinstance(value, int | float):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return True


def fitting(schemas, values):
    """The values that the schemas name, with their defaults."""
    for name, schema in schemas.items():
        if name not in values and "default" not in schema:
            raise Refused("bad-arguments", f"'{name}' is missing", argument=name)
        if name in values and not fits(schema, values[name]):
            raise Refused("bad-arguments", f"'{name}' does not fit", argument=name)
    return {name: values.get(name, schema.get("default")) for name, schema in schemas.items()}


def number(kind, limit, digits):
    if not abs(value := kind(digits)) < limit:
        raise ValueError("a number is too large")
    return value


whole, real = partial(number, int, 2**53), partial(number, float, float("inf"))
decode = json.JSONDecoder(parse_int=whole, parse_float=real, parse_constant=real).decode


def levels(value):
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(levels, inner), default=0) if isinstance(value, dict | list) else 0


UNREADABLE = ValueError, RecursionError, Refused


def read(text):
    """The type and the members of each event that is known; raises what `UNREADABLE` lists."""
    events = decode(text)
    write(events).encode()  # refuses lone surrogates
    if not isinstance(events, list) or levels(events) > 1 + LEVELS:
        raise ValueError("the text is not a list of events")
    for event in events:
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise ValueError("an event is an object with a type")
    said = [{name: value for name, value in e.items() if value is not None} for e in events]
    return [(e["type"], fitting(EVENTS[e["type"]], e)) for e in said if e["type"] in EVENTS]


def write(value):
    """JSON text without what XML cannot hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "&<>\ufffe\uffff"})


# Stanzas.


class Element(aioxmpp.xso.XSO):
    UNKNOWN_CHILD_POLICY = aioxmpp.xso.UnknownChildPolicy.DROP
    UNKNOWN_ATTR_POLICY = aioxmpp.xso.UnknownAttrPolicy.DROP
    text = aioxmpp.xso.Text(default="")

    def __init__(self, text):
        super().__init__()
        self.text = text


class X(Element):
    TAG = "urn:spinal:1", "x"


class Reason(Element):
    TAG = "urn:spinal:1", "reason"


aioxmpp.IQ.as_payload_class(X)
aioxmpp.Message.spinal = aioxmpp.xso.Child([X])
aioxmpp.Presence.spinal = aioxmpp.xso.Child([X])
aioxmpp.stanza.Error.as_application_condition(Reason)


def error_stanza(reason, text):
    """What to raise so that none of the stanza is taken; section 9.2."""
    condition = {"too-large": "POLICY_VIOLATION", "not-allowed": "FORBIDDEN"}.get(reason)
    kind = aioxmpp.XMPPAuthError if reason == "not-allowed" else aioxmpp.errors.XMPPModifyError
    condition = aioxmpp.ErrorCondition[condition or "BAD_REQUEST"]
    return kind(condition, text, application_defined_condition=Reason(reason))


class Call:
    """An exchange: its task, who asked last, and the stanzas that wait."""

    def __init__(self, task):
        self.task, self.sender, self.waiting = task, None, deque()

    def answer(self):
        if self.task.cancelled():
            return {"type": "final", "problem": {"reason": "cancelled"}}
        if (error := self.task.exception()) is None:
            return {"type": "final", "value": self.task.result()}
        problem = getattr(error, "problem", {"reason": "failed"})
        return {"type": "error" if isinstance(error, Refused) else "final", "problem": problem}


class Agent:
    def __init__(self, client, dispatchers):
        self.client, self.dispatchers = client, dispatchers
        self.calls, self.running, self.greeted, self.state = {}, set(), set(), "available"
        self.changed = asyncio.Event()
        self.description = write({"ops": {path: about for path, (_, about) in OPERATIONS.items()}})
        self.hash = hashlib.sha256(self.description.encode()).hexdigest()
        self.handlers = {"op": self.op, "cancel": self.cancel, "describe": self.describe}
        client.stream.register_iq_request_handler(aioxmpp.IQType.SET, X, self.on_iq)
        client.stream.on_presence_received.connect(self.on_presence)
        client.on_stream_established.connect(self.on_stream)

    def send(self, stanza, **event):
        """What cannot be sent now is not missed: on a new stream it is said again, or asked for."""
        stanza.spinal = X(write([event])) if event else None
        if self.client.established:
            self.client.enqueue(stanza)

    def on_stream(self):
        self.greeted.clear()
        self.send(aioxmpp.Presence())
        self.changed.set()
        print("online", self.client.local_jid, flush=True)

    def on_presence(self, presence):
        sender = presence.from_
        if presence.type_ is not aioxmpp.PresenceType.AVAILABLE:
            self.greeted.discard(sender)
        elif presence.spinal is None or not self.may_ask(sender):
            return
        elif sender in self.dispatchers:
            self.changed.set()
        elif sender not in self.greeted and len(self.greeted) < PEERS:
            self.greeted.add(sender)
            told = {"role": "agent", "epoch": EPOCH, "features": FEATURES}
            self.send(aioxmpp.Presence(to=sender), type="hello", **told)

    async def advertise(self):
        """On change, at most once a second, and every 5 s; section 7."""
        while True:
            self.changed.clear()
            told = {"hash": self.hash, "epoch": EPOCH, "features": FEATURES}
            told |= {"state": self.state, "slots": SLOTS, "busy": len(self.running)}
            for dispatcher in self.dispatchers:
                self.send(aioxmpp.Presence(to=dispatcher), type="advertisement", **told)
            await asyncio.sleep(1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), random.uniform(3.5, 4.5))

    def may_ask(self, sender):
        return sender in self.dispatchers or sender.domain == self.client.local_jid.domain

    async def on_iq(self, iq):
        if iq.from_ is None or not self.may_ask(iq.from_):
            raise error_stanza("not-allowed", "you may not ask here")
        if len(iq.payload.text) > READ:
            raise error_stanza("too-large", "the text is too large")
        try:
            events = read(iq.payload.text)
        except UNREADABLE as error:
            raise error_stanza("malformed", str(error)[:200]) from None
        if sum(kind == "op" for kind, _ in events) > 1:
            raise error_stanza("too-large", "one op in a stanza")
        answers = await asyncio.gather(*(self.answer(iq.from_, *event) for event in events))
        text = write([answer for answer in answers if answer])
        if len(text.encode()) > STANZA:
            raise error_stanza("too-large", "the answers are too large")
        return X(text) if any(answers) else None

    async def answer(self, sender, kind, event):
        said = await self.handlers[kind](sender, event)
        return said and {**said, **exchange(event)}

    async def describe(self, sender, event):
        if event["hash"] == self.hash:
            return {"type": "description", "hash": self.hash, "text": self.description}

    def key(self, sender, event):
        """All dispatchers are one caller; section 5."""
        owner = "dispatchers" if sender in self.dispatchers else sender.bare()
        return owner, event["id"], event["attempt"]

    def begin(self, key, left, work):
        """Start a call, and know it until its deadline and 10 s more."""
        call = self.calls[key] = Call(asyncio.create_task(work))
        asyncio.get_running_loop().call_later(left / 1000 + 10, self.calls.pop, key)
        self.running.add(call.task)
        call.task.add_done_callback(self.ended)
        self.changed.set()

    def ended(self, task):
        self.running.discard(task)
        self.changed.set()
        if not task.cancelled() and not isinstance(task.exception(), Problem | None):
            log.error("an operation failed: %r", task.exception())

    async def op(self, sender, op):
        key = self.key(sender, op)
        if key not in self.calls:
            full = len(self.running) >= SLOTS or len(self.calls) >= CALLS
            causes = {"expired": not op["left"], "draining": self.state == "draining", "busy": full}
            for reason in filter(causes.get, causes):
                return {"type": "error", "problem": {"reason": reason}}
            self.begin(key, op["left"], self.perform(key, op))
        call = self.calls[key]
        call.sender = sender
        again = {"again": True} if call.task.done() else {}
        waiter = asyncio.get_running_loop().create_future()
        call.waiting.append(waiter)
        if len(call.waiting) > WAITING:
            call.waiting.popleft().cancel()
        await asyncio.wait([call.task, waiter], return_when=asyncio.FIRST_COMPLETED)
        return {**call.answer(), **again} if call.task.done() else None

    async def perform(self, key, op):
        function, about = OPERATIONS.get(op["op"], (None, None))
        if op["epoch"] != EPOCH:
            raise Refused("stale-epoch", "the agent was restarted")
        if any(name not in OP.keys() | FEATURES for name in op["must"]):
            raise Refused("not-understood", "it must not be asked what it does not understand")
        if function is None:
            raise Refused("unknown-op", "the agent does not offer this operation")
        schemas = about["args"]["properties"]
        for name in op["args"].keys() - schemas.keys():
            raise Refused("bad-arguments", "there is no such argument", argument=name[:256])
        args = fitting(schemas, op["args"])

        def tell(**event):
            headline = aioxmpp.Message(aioxmpp.MessageType.HEADLINE, to=self.calls[key].sender)
            self.send(headline, **event, **exchange(op))

        try:
            async with asyncio.timeout(min(op["left"] / 1000, about["timeout"])):
                value = await function(tell, **args)
        except TimeoutError:
            raise Problem("deadline", "the deadline passed") from None
        if len(write(value).encode()) > INLINE:
            raise Problem("too-large", "the result is too large")
        return value

    async def cancel(self, sender, event):
        key = self.key(sender, event)
        if call := self.calls.get(key):
            state = "late" if call.task.done() else "cancelled"
            call.task.cancel()
        else:
            state = "unknown"
            if len(self.calls) < CALLS:
                self.begin(key, event["left"], overtaken())
        return {"type": "cancelled", "state": state}


async def overtaken():
    raise Refused("cancelled", "it was cancelled before it came")


def exchange(event):
    return {name: event[name] for name in ("id", "attempt") if name in event}


# The connection.


class OwnAuthority(aioxmpp.security_layer.PKIXCertificateVerifier):
    """Checks chain and name, and believes SPINAL_CA only, not the system's authorities too."""

    def setup_context(self, context, transport):
        aioxmpp.security_layer.CertificateVerifier.setup_context(self, context, transport)
        context.load_verify_locations(os.environ["SPINAL_CA"])


class Scram(aioxmpp.security_layer.PasswordSASLProvider):
    """Without PLAIN, which aioxmpp offers where it knows of TLS."""

    async def execute(self, jid, features, xmlstream, tls_transport):
        return await super().execute(jid, features, xmlstream, None)


async def no_discovery(*_args, **_options):
    """SPINAL_SERVER says where the server is; DNS is not asked."""
    return []


async def main():
    aioxmpp.node.discover_connectors = no_discovery
    address = aioxmpp.JID.fromstr(os.environ["SPINAL_ADDRESS"]).replace(resource="agent")
    password = Path(os.environ["SPINAL_PASSWORD_FILE"]).read_text().strip()
    dispatchers = {aioxmpp.JID.fromstr(each) for each in os.environ["SPINAL_DISPATCHER"].split()}
    servers = [server.rsplit(":", 1) for server in os.environ["SPINAL_SERVER"].split()]
    starttls = aioxmpp.connector.STARTTLSConnector()

    async def give_password(_jid, _attempt):
        return password

    make_context = aioxmpp.security_layer.default_ssl_context
    scram = Scram(give_password, max_auth_attempts=1)
    client = aioxmpp.Client(
        address,
        aioxmpp.security_layer.SecurityLayer(make_context, OwnAuthority, True, [scram]),
        override_peer=[(host, int(port), starttls) for host, port in servers],
        max_initial_attempts=None,
    )
    client.resumption_timeout = 0  # a dead agent is seen as dead at once
    agent = Agent(client, dispatchers)
    failure, stopped = client.on_failure.future(), client.on_stopped.future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, failure.cancel)
    client.start()
    advertising = asyncio.create_task(agent.advertise())
    with contextlib.suppress(asyncio.CancelledError):
        await failure
    agent.state = "draining"
    agent.changed.set()
    while agent.running:
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)  # the last answers leave, and who advertises says it
    advertising.cancel()
    client.stop()
    await stopped


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    try:
        asyncio.run(main())
    except KeyError as missing:
        sys.exit(f"{missing} is not set")
    except (OSError, ValueError, aiosasl.SASLError) as error:
        sys.exit(f"cannot go on: {error}")
