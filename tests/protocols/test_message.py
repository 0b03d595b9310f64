from __future__ import annotations

from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import Codec, Message
from spinal.protocols.message import MAX_BODY


def read(inner: str, type: str | None = "chat", stream: str = "jabber:client") -> Message | None:
    kind = "" if type is None else f" type='{type}'"
    return Message.read(
        fromstring(
            f"<message xmlns='{stream}' from='a@x/1' to='b@x' id='7'{kind}>{inner}</message>"
        )
    )


@pytest.mark.parametrize("stream", ["jabber:client", "jabber:component:accept"])
def test_what_was_said_is_read_on_every_stream(stream: str) -> None:
    inner = "<subject>s</subject><body>hi &amp; &lt;bye&gt;</body><thread>t</thread>"
    assert read(inner, stream=stream) == Message(
        "hi & <bye>", "b@x", "a@x/1", "chat", "7", thread="t"
    )


@pytest.mark.parametrize(
    ("type", "read_as"),
    [("chat", "chat"), ("normal", "normal"), (None, "normal"), ("nonsense", "normal")],
)
def test_a_type_that_is_missing_or_unknown_is_normal(type: str | None, read_as: str) -> None:
    message = read("<body>x</body>", type)
    assert message is not None and message.type == read_as


@pytest.mark.parametrize("type", ["error", "headline", "groupchat"])
def test_what_nobody_may_answer_is_not_read(type: str) -> None:
    assert read("<body>x</body>", type) is None


@pytest.mark.parametrize(
    "inner",
    [
        "",
        "<composing xmlns='http://jabber.org/protocol/chatstates'/>",
        "<body xmlns='urn:other'>x</body>",
        "<x xmlns='urn:other'><body xmlns='jabber:client'>x</body></x>",
        "<body>x</body><sent xmlns='urn:xmpp:carbons:2'/>",
        "<body>x</body><received xmlns='urn:xmpp:carbons:2'/>",
    ],
)
def test_where_nothing_is_said_nothing_is_read(inner: str) -> None:
    assert read(inner) is None


def test_marks_of_what_was_kept_or_is_encrypted_are_read() -> None:
    late = read("<body>x</body><delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/>")
    assert late is not None and late.delayed and not late.encrypted
    secret = read("<body>x</body><encryption xmlns='urn:xmpp:eme:0' namespace='urn:x'/>")
    assert secret is not None and secret.encrypted and not secret.delayed


def test_what_is_read_is_bounded() -> None:
    message = read(f"<body>{'x' * 1_000_000}</body><thread>{'t' * 10_000}</thread>")
    assert message is not None
    assert len(message.text) == MAX_BODY + 1 and len(message.thread) == 256
    assert read("<body/>") == Message("", "b@x", "a@x/1", "chat", "7")


@given(st.text(), st.text(max_size=100))
def test_whatever_is_said_arrives_but_for_what_xml_cannot_hold(text: str, thread: str) -> None:
    sent = Codec.encode(Message(text, "b@x", thread=thread).stanza(), "a@x/1").decode()
    element: Element = fromstring(sent.replace("<message", "<message xmlns='jabber:client'", 1))
    message = Message.read(element)
    assert message is not None and message.type == "chat"
    plain = "".join(
        " " if c in "\r\ufffe\uffff" or (c < " " and c not in "\n\t") else c for c in text
    )
    assert message.text == plain
