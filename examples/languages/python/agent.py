"""An agent for a Spinal bus on aioxmpp: the core profile and cancel. README.md says more."""

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
EPOCH, FEATURES = int(time.time() * 1000), ["cancel"]
SLOTS, CALLS, PEERS, STANZAS = 64, 10_000, 10_000, 8
INLINE, LEVELS = 32_768, 32


class Problem(Exception):
    """The operation was started and ended badly: a reason of section 9.1, and why."""

    event = "final"

    def __init__(self, reason, text):
        super().__init__(text)
        self.said = {"type": self.event, "problem": {"reason": reason, "text": text}}


class Refused(Problem):
    """The operation was not started."""

    event = "error"


# The operations. What a function takes and what its description says are one thing.

OPERATIONS = {}
TEXT = {"type": "string", "maxLength": 1000}
NAME = {"type": "string", "maxLength": 64}
TIMES = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1}
SECONDS = {"type": "number", "minimum": 0, "maximum": 600, "default": 0}


def operation(path, *, safe=True, timeout=60, **arguments):
    required = [name for name, schema in arguments.items() if "default" not in schema]
    schema = {"type": "object", "properties": arguments, "required": required}
    about = {"effects": "reads" if safe else "writes", "safe": safe, "timeout": timeout}

    def register(function):
        OPERATIONS[path] = function, {"summary": function.__doc__, "args": schema, **about}

    return register


@operation("/conform/echo", value={})
async def echo(value):
    """Give the value back."""
    return value


@operation("/conform/repeat", text=TEXT, times=TIMES)
async def repeat(text, times):
    """Give the text so many times."""
    return text * times


begun = {}


@operation("/conform/work", safe=False, timeout=600, name=NAME, seconds=SECONDS)
async def work(name, seconds):
    """Wait, and count the beginnings under this name."""
    count = begun[name] = begun.pop(name, 0) + 1
    if len(begun) > 10_000:
        del begun[next(iter(begun))]
    await asyncio.sleep(seconds)
    return count


@operation("/conform/fail", text=TEXT)
async def fail(text):
    """Begin, and fail."""
    raise Problem("failed", text)


@operation("/conform/refuse", text=TEXT)
async def refuse(text):
    """Refuse."""
    raise Refused("refused", text)


# What comes is checked, and events (section 5) in the same way as arguments (section 8.1).
# Of an event only those members stand here that this agent uses.

TYPES = {"string": str, "integer": int, "number": int | float, "object": dict, "array": list}
ID = {"type": "string", "pattern": r"^[!-~]{1,128}\Z"}
ATTEMPT = {"type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 1}
PATH = {"type": "string", "pattern": r"^(/|(/[^/\s*?{}\[\]<>\"'\\]+)+)\Z", "maxLength": 512}
LEFT = {"type": "integer", "minimum": 0, "maximum": 31_622_400_000}
ARGS, MUST = {"type": "object", "default": {}}, {"type": "array", "items": NAME, "default": []}
LIFE = {"type": "integer", "minimum": 0, "default": EPOCH}
OP = {"id": ID, "attempt": ATTEMPT, "op": PATH, "left": LEFT}
OP |= {"args": ARGS, "epoch": LIFE, "must": MUST}
CANCEL = {"id": ID, "attempt": ATTEMPT, "left": {**LEFT, "default": 60_000}}
EVENTS = {"op": OP, "cancel": CANCEL, "describe": {"hash": NAME}}


def fits(schema, value):
    if not schema:
        return True
    if isinstance(value, bool) or not isinstance(value, TYPES[schema["type"]]):
        return False
    if isinstance(value, list):
        return all(fits(schema["items"], item) for item in value)
    if isinstance(value, str):
        right = re.search(schema.get("pattern", ""), value)
        return right is not None and len(value) <= schema.get("maxLength", 128)
    if isinstance(value, int | float):
        return schema["minimum"] <= value <= schema.get("maximum", value)
    return True


def fitting(schemas, values):
    """The values that the schemas name, with their defaults."""
    for name, schema in schemas.items():
        if not ("default" in schema if name not in values else fits(schema, values[name])):
            raise Refused("bad-arguments", f"'{name}' is missing or does not fit")
    return {name: values.get(name, schema.get("default")) for name, schema in schemas.items()}


def number(kind, limit, digits):
    if not abs(value := kind(digits)) < limit:
        raise ValueError("a number is too large")
    return value


whole, real = partial(number, int, 2**53), partial(number, float, float("inf"))
decode = json.JSONDecoder(parse_int=whole, parse_float=real, parse_constant=real).decode


def encode(value):
    """JSON text without what XML cannot hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "&<>\ufffe\uffff"})


def levels(value):
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(levels, inner), default=0) if isinstance(value, dict | list) else 0


def read(text):
    """The events that this agent knows; raises one of `MALFORMED` if any breaks a rule."""
    events = decode(text)
    encode(events).encode()  # refuses lone surrogates
    if not isinstance(events, list) or levels(events) > 1 + LEVELS:
        raise ValueError("the text is not a list of events")
    for event in events:
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise ValueError("an event is an object with a type")
    said = [{name: value for name, value in e.items() if value is not None} for e in events]
    return [(e["type"], fitting(EVENTS[e["type"]], e)) for e in said if e["type"] in EVENTS]


MALFORMED = ValueError, RecursionError, Refused


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
aioxmpp.Presence.spinal = aioxmpp.xso.Child([X])
aioxmpp.stanza.Error.as_application_condition(Reason)


def untaken(reason, text, condition="BAD_REQUEST", kind=aioxmpp.errors.XMPPModifyError):
    """What to raise so that nothing of a stanza is taken; section 9.2."""
    condition = aioxmpp.ErrorCondition[condition]
    return kind(condition, text, application_defined_condition=Reason(reason))


class Agent:
    description = encode({"ops": {path: about for path, (_, about) in OPERATIONS.items()}})
    hash = hashlib.sha256(description.encode()).hexdigest()

    def __init__(self, client, dispatchers):
        self.client, self.dispatchers = client, dispatchers
        self.state, self.calls, self.running, self.greeted = "available", {}, set(), set()
        self.changed = asyncio.Event()
        client.stream.register_iq_request_handler(aioxmpp.IQType.SET, X, self.on_iq)
        client.stream.on_presence_received.connect(self.on_presence)
        client.on_stream_established.connect(self.on_stream)

    def on_stream(self):
        self.greeted.clear()
        self.client.enqueue(aioxmpp.Presence())
        self.changed.set()
        print("online", self.client.local_jid, flush=True)

    def on_presence(self, presence):
        sender = presence.from_
        if presence.type_ is not aioxmpp.PresenceType.AVAILABLE:
            self.greeted.discard(sender)
        elif presence.spinal and self.may_ask(sender):
            self.changed.set()
            if sender not in self.greeted and len(self.greeted) < PEERS:
                self.greeted.add(sender)
                self.tell(sender, type="hello", role="agent")

    def tell(self, to, **said):
        presence = aioxmpp.Presence(to=to)
        presence.spinal = X(encode([{**said, "epoch": EPOCH, "features": FEATURES}]))
        self.client.enqueue(presence)

    async def advertise(self):
        """On change, at most once a second, and every 5 s; section 7."""
        while True:
            self.changed.clear()
            said = {"hash": self.hash, "state": self.state, "slots": SLOTS}
            for to in self.dispatchers if self.client.established else ():
                self.tell(to, type="advertisement", busy=len(self.running), **said)
            await asyncio.sleep(1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), random.uniform(3.5, 4.5))

    def may_ask(self, sender):
        return sender in self.dispatchers or sender.domain == self.client.local_jid.domain

    async def on_iq(self, iq):
        if iq.from_ is None or not self.may_ask(iq.from_):
            raise untaken("not-allowed", "not allowed", "FORBIDDEN", aioxmpp.XMPPAuthError)
        try:
            events = read(iq.payload.text)
        except MALFORMED as error:
            raise untaken("malformed", str(error)[:200]) from None
        if len(events) > 1:
            raise untaken("too-large", "one event at a time", "POLICY_VIOLATION")
        answer = None
        for kind, event in events:
            answer = await getattr(self, kind)(iq.from_, event)
        return X(encode([answer])) if answer else None

    async def describe(self, sender, event):
        said = {"type": "description", "hash": self.hash, "text": self.description}
        return said if event["hash"] == self.hash else None

    def key(self, sender, event):
        """All dispatchers are one caller; section 5."""
        owner = "dispatchers" if sender in self.dispatchers else sender.bare()
        return owner, event["id"], event["attempt"]

    def remember(self, key, left, task):
        """Until the deadline, and 10 s more."""
        self.calls[key] = task, deque()
        asyncio.get_running_loop().call_later(left / 1000 + 10, self.calls.pop, key)

    async def op(self, sender, op):
        key = self.key(sender, op)
        if key not in self.calls:
            full = len(self.running) >= SLOTS or len(self.calls) >= CALLS
            causes = {"expired": not op["left"], "draining": self.state == "draining", "busy": full}
            for reason in filter(causes.get, causes):
                return answer(op, Refused(reason, f"it is refused as {reason}").said)
            self.remember(key, op["left"], asyncio.create_task(self.perform(op)))
        task, stanzas = self.calls[key]
        stanzas.append(asyncio.get_running_loop().create_future())
        newest = stanzas[-1]
        if len(stanzas) > STANZAS:
            stanzas.popleft().cancel()
        await asyncio.wait([task, newest], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None

    async def perform(self, op):
        """Run an operation, and give the event that says how it ended."""
        self.running.add(asyncio.current_task())
        self.changed.set()
        try:
            function, args = chosen(**op)
            async with asyncio.timeout(op["left"] / 1000):
                said = {"type": "final", "value": await function(**args)}
            if len(encode(said).encode()) > INLINE:
                raise Problem("too-large", "the result is too large")
        except asyncio.CancelledError:
            said = Problem("cancelled", "it was cancelled").said
        except TimeoutError:
            said = Problem("deadline", "the deadline passed").said
        except Problem as problem:
            said = problem.said
        except Exception:
            log.exception("an operation failed")
            said = Problem("failed", "the operation failed").said
        self.running.discard(asyncio.current_task())
        self.changed.set()
        return answer(op, said)

    async def cancel(self, sender, event):
        key = self.key(sender, event)
        state = "unknown"
        if key in self.calls:
            task, _ = self.calls[key]
            state = "cancelled" if task.cancel() else "late"
        elif len(self.calls) < CALLS:
            tombstone = asyncio.get_running_loop().create_future()
            refused = Refused("cancelled", "it was cancelled before it came")
            tombstone.set_result(answer(event, refused.said))
            self.remember(key, event["left"], tombstone)
        return answer(event, {"type": "cancelled", "state": state})


def answer(event, said):
    return {**said, "id": event["id"], "attempt": event["attempt"]}


def chosen(op, args, epoch, must, **_):
    """The function and what it is called with, unless it is to be refused; section 3."""
    if epoch != EPOCH:
        raise Refused("stale-epoch", "the agent was restarted")
    if not OP.keys() | FEATURES >= set(must):
        raise Refused("not-understood", "something that must be understood is not")
    if op not in OPERATIONS:
        raise Refused("unknown-op", "the agent does not offer this operation")
    function, about = OPERATIONS[op]
    schemas = about["args"]["properties"]
    if not schemas.keys() >= args.keys():
        raise Refused("bad-arguments", "there is no such argument")
    return function, fitting(schemas, args)


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


async def password(*_):
    return Path(os.environ["SPINAL_PASSWORD_FILE"]).read_text().strip()


async def main():
    aioxmpp.node.discover_connectors = no_discovery
    address, servers, dispatchers = (
        os.environ[f"SPINAL_{name}"].split() for name in ("ADDRESS", "SERVER", "DISPATCHER")
    )
    starttls = aioxmpp.connector.STARTTLSConnector()
    peers = [(host, int(port), starttls) for host, port in (s.rsplit(":", 1) for s in servers)]
    context = aioxmpp.security_layer.default_ssl_context
    scram = Scram(password, max_auth_attempts=1)
    client = aioxmpp.Client(
        aioxmpp.JID.fromstr(address[0]).replace(resource="agent"),
        aioxmpp.security_layer.SecurityLayer(context, OwnAuthority, True, [scram]),
        override_peer=peers,
        max_initial_attempts=None,
    )
    client.resumption_timeout = 0  # a dead agent is seen as dead at once
    agent = Agent(client, set(map(aioxmpp.JID.fromstr, dispatchers)))
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
    try:
        asyncio.run(main())
    except KeyError as missing:
        sys.exit(f"{missing} is not set")
    except (OSError, ValueError, aiosasl.SASLError) as error:
        sys.exit(f"cannot go on: {error}")
