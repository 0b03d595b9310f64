"""An agent for a Spinal bus on aioxmpp, with the core profile. README.md says more."""

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
from math import inf
from pathlib import Path

import aiosasl
import aioxmpp
from aioxmpp import security_layer
from aioxmpp.security_layer import default_ssl_context

EPOCH = int(time.time() * 1000)
SLOTS, CALLS, PEERS, STANZAS = 64, 10_000, 10_000, 8
INLINE, LEVELS = 32_768, 32


class Problem(Exception):
    """It was started and ended badly: a reason of section 9.1, a sentence, perhaps an argument."""

    def __str__(self):
        return self.args[1]


class Refused(Problem):
    """It was not started."""


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


# What comes is checked: arguments by the keywords of their schema (section 8.1), and of an event
# (section 5) those members that this agent uses by the same.

TYPES = {"string": [str], "integer": [int], "number": [int, float]}
TYPES |= {"object": [dict], "array": [list]}
KEYWORDS = {
    "type": lambda value, kind: type(value) in TYPES[kind],
    "minimum": lambda value, least: value >= least,
    "maximum": lambda value, most: value <= most,
    "maxLength": lambda value, most: len(value) <= most,
    "pattern": lambda value, pattern: re.search(pattern, value),
    "items": lambda values, schema: all(fits(schema, value) for value in values),
}
OP = {
    "id": {"type": "string", "pattern": r"\A[!-~]{1,128}\Z"},
    "attempt": {"type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 1},
    "op": {"type": "string", "maxLength": 512, "pattern": r"\A(/|(/[^/\s*?{}\[\]<>\"'\\]+)+)\Z"},
    "left": {"type": "integer", "minimum": 0, "maximum": 31_622_400_000},
    "args": {"type": "object", "default": {}},
    "epoch": {"type": "integer", "minimum": 0, "default": EPOCH},
    "must": {"type": "array", "items": NAME, "default": []},
}
EVENTS = {"op": OP, "describe": {"hash": NAME}}


def fits(schema, value):
    return all(holds(value, schema[word]) for word, holds in KEYWORDS.items() if word in schema)


def fitting(schemas, values):
    """The values that the schemas name, with their defaults."""
    for name, schema in schemas.items():
        if not (fits(schema, values[name]) if name in values else "default" in schema):
            raise Refused("bad-arguments", f"'{name}' is missing or does not fit", name)
    return {name: values.get(name, schema.get("default")) for name, schema in schemas.items()}


def check(value, levels):
    """Sections 4 and 11: numbers that all languages can hold, and not too many levels."""
    if isinstance(value, int | float) and not abs(value) < (2**53 if type(value) is int else inf):
        raise ValueError("a number is too large")
    if isinstance(value, dict | list):
        if not levels:
            raise ValueError("there are too many levels")
        for item in value.values() if isinstance(value, dict) else value:
            check(item, levels - 1)


def read(text):
    """The events that this agent knows; raises one of `MALFORMED` if any breaks a rule."""
    events = json.loads(text)
    check(events, 1 + LEVELS)
    encode(events).encode()  # refuses lone surrogates
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise ValueError("the text is not a list of events")
    said = [{name: value for name, value in e.items() if value is not None} for e in events]
    kinds = [fitting({"type": {"type": "string"}}, event)["type"] for event in said]
    return [(k, fitting(EVENTS[k], e)) for k, e in zip(kinds, said, strict=True) if k in EVENTS]


MALFORMED = ValueError, RecursionError, Refused


def encode(value):
    """JSON text without what XML cannot hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "&<>\ufffe\uffff"})


# Stanzas.


class Element(aioxmpp.xso.XSO):
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


ERRORS = {
    "malformed": (aioxmpp.errors.XMPPModifyError, "BAD_REQUEST"),
    "not-allowed": (aioxmpp.errors.XMPPAuthError, "FORBIDDEN"),
    "not-understood": (aioxmpp.errors.XMPPCancelError, "FEATURE_NOT_IMPLEMENTED"),
}


def untaken(reason, text):
    """What to raise so that nothing of a stanza is taken; section 9.2."""
    kind, condition = ERRORS[reason]
    condition = aioxmpp.ErrorCondition[condition]
    return kind(condition, text, application_defined_condition=Reason(reason))


class Agent:
    description = encode({"ops": {path: about for path, (_, about) in OPERATIONS.items()}})
    hash = hashlib.sha256(description.encode()).hexdigest()

    def __init__(self, client, dispatchers):
        self.client, self.dispatchers = client, dispatchers
        self.state, self.running, self.calls, self.greeted = "available", 0, {}, set()
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
                self.tell(sender, {"type": "hello", "role": "agent", "epoch": EPOCH})

    def tell(self, to, event):
        presence = aioxmpp.Presence(to=to)
        presence.spinal = X(encode([event]))
        self.client.enqueue(presence)

    async def advertise(self):
        """On change, at most once a second, and every 5 s; section 7."""
        while True:
            self.changed.clear()
            said = {"type": "advertisement", "hash": self.hash, "epoch": EPOCH}
            said |= {"state": self.state, "slots": SLOTS, "busy": self.running}
            for dispatcher in self.dispatchers if self.client.established else ():
                self.tell(dispatcher, said)
            await asyncio.sleep(1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), random.uniform(3.5, 4.5))

    def may_ask(self, sender):
        return sender in self.dispatchers or sender.domain == self.client.local_jid.domain

    async def on_iq(self, iq):
        if iq.from_ is None or not self.may_ask(iq.from_):
            raise untaken("not-allowed", "you may not ask here")
        try:
            events = read(iq.payload.text)
        except MALFORMED as error:
            raise untaken("malformed", str(error)[:200]) from None
        if len(events) > 1:
            raise untaken("not-understood", "one event at a time")
        answers = [await getattr(self, kind)(iq.from_, event) for kind, event in events]
        return X(encode(answers)) if any(answers) else None

    async def describe(self, sender, event):
        said = {"type": "description", "hash": self.hash, "text": self.description}
        return said if event["hash"] == self.hash else None

    async def op(self, sender, op):
        # All dispatchers are one caller, section 5.
        owner = "dispatchers" if sender in self.dispatchers else sender.bare()
        key = owner, op["id"], op["attempt"]
        if key not in self.calls:
            if reason := self.refusal(op):
                return ended(op, Refused(reason, f"it is refused as {reason}"))
            self.calls[key] = asyncio.create_task(self.perform(op)), deque()
            asyncio.get_running_loop().call_later(op["left"] / 1000 + 10, self.calls.pop, key)
        # Of the stanzas that ask for it the newest get the answer, older ones an empty result.
        task, stanzas = self.calls[key]
        newest = asyncio.get_running_loop().create_future()
        stanzas.append(newest)
        if len(stanzas) > STANZAS:
            stanzas.popleft().cancel()
        await asyncio.wait([task, newest], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None

    def refusal(self, op):
        causes = {
            "expired": op["left"] == 0,
            "stale-epoch": op["epoch"] != EPOCH,
            "not-understood": not OP.keys() >= set(op["must"]),
            "unknown-op": op["op"] not in OPERATIONS,
            "draining": self.state == "draining",
            "busy": self.running >= SLOTS or len(self.calls) >= CALLS,
        }
        return next((reason for reason, holds in causes.items() if holds), None)

    async def perform(self, op):
        """Run an operation, and give the event that says how it ended."""
        self.running += 1
        self.changed.set()
        try:
            function, about = OPERATIONS[op["op"]]
            schemas = about["args"]["properties"]
            for name in op["args"].keys() - schemas.keys():
                raise Refused("bad-arguments", "there is no such argument", name[:256])
            async with asyncio.timeout(op["left"] / 1000):
                value = await function(**fitting(schemas, op["args"]))
            if len(encode(value).encode()) > INLINE:
                raise Problem("too-large", "the result is too large")
            return {"type": "final", "id": op["id"], "attempt": op["attempt"], "value": value}
        except TimeoutError:
            return ended(op, Problem("deadline", "the deadline passed"))
        except Problem as problem:
            return ended(op, problem)
        except Exception:
            logging.getLogger("agent").exception("an operation failed")
            return ended(op, Problem("failed", "the operation failed"))
        finally:
            self.running -= 1
            self.changed.set()


def ended(op, problem):
    kind = "error" if isinstance(problem, Refused) else "final"
    said = dict(zip(("reason", "text", "argument"), problem.args, strict=False))
    return {"type": kind, "id": op["id"], "attempt": op["attempt"], "problem": said}


# The connection.


class OwnAuthority(security_layer.PKIXCertificateVerifier):
    """Checks chain and name, and believes SPINAL_CA only, not the system's authorities too."""

    def setup_context(self, context, transport):
        security_layer.CertificateVerifier.setup_context(self, context, transport)
        context.load_verify_locations(os.environ["SPINAL_CA"])


class Scram(security_layer.PasswordSASLProvider):
    """Without PLAIN, which aioxmpp offers where it knows of TLS."""

    async def execute(self, jid, features, xmlstream, tls_transport):
        return await super().execute(jid, features, xmlstream, None)


async def no_discovery(*_args, **_options):
    """SPINAL_SERVER says where the server is; DNS is not asked."""
    return []


def connection():
    address = aioxmpp.JID.fromstr(os.environ["SPINAL_ADDRESS"]).replace(resource="agent")
    secret = Path(os.environ["SPINAL_PASSWORD_FILE"]).read_text().strip()
    Path(os.environ["SPINAL_CA"]).open().close()  # it has to be there; aioxmpp would try forever
    host, port = os.environ["SPINAL_SERVER"].split()[0].rsplit(":", 1)

    async def password(_address, _attempt):
        return secret

    server = host, int(port), aioxmpp.connector.STARTTLSConnector()
    scram = Scram(password, max_auth_attempts=1)
    security = security_layer.SecurityLayer(default_ssl_context, OwnAuthority, True, [scram])
    client = aioxmpp.Client(address, security, override_peer=[server], max_initial_attempts=None)
    client.resumption_timeout = 0  # a dead agent is seen as dead at once
    return client


async def main():
    aioxmpp.node.discover_connectors = no_discovery
    client = connection()
    agent = Agent(client, set(map(aioxmpp.JID.fromstr, os.environ["SPINAL_DISPATCHER"].split())))
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


def shown(record):
    """aioxmpp logs a trace of what is said below in a line, and every IQ that it cannot handle."""
    return record.name == "agent" or not (record.exc_info or "StanzaStream" in record.name)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.root.handlers[0].addFilter(shown)
    for name in ("ADDRESS", "PASSWORD_FILE", "CA", "SERVER", "DISPATCHER"):
        if f"SPINAL_{name}" not in os.environ:
            sys.exit(f"SPINAL_{name} is not set")
    try:
        asyncio.run(main())
    except (OSError, ValueError, aiosasl.SASLError, asyncio.InvalidStateError) as error:
        # aioopenssl raises InvalidStateError when a certificate is refused for the second time.
        sys.exit(f"the connection failed: {error}")
