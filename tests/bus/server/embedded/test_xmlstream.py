from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.bus.server.embedded.limits import Limits
from spinal.bus.server.embedded.stanzas import encode
from spinal.bus.server.embedded.xmlstream import (
    CLIENT,
    END,
    Element,
    End,
    Header,
    Item,
    Slicer,
    StreamError,
)

ROOT = (
    b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' to='bus.test' version='1.0'"
    b" xmlns:stream='http://etherx.jabber.org/streams' xml:lang='de'>"
)


def slicer(size: int = 100_000, depth: int = 20, **limits: int) -> Slicer:
    return Slicer(CLIENT, size, depth, Limits(**limits))


def feed(*pieces: bytes, root: bytes = ROOT, to: Slicer | None = None) -> list[Item]:
    """Give what comes behind the header."""
    to = to or slicer()
    items = to.feed(root)
    assert isinstance(items[0], Header), items
    items = items[1:]
    for piece in pieces:
        items += to.feed(piece)
    return items


def one(data: bytes, root: bytes = ROOT) -> Element:
    (item,) = feed(data, root=root)
    assert isinstance(item, Element), item
    return item


def refusal(*pieces: bytes, root: bytes = ROOT, to: Slicer | None = None) -> str:
    item = feed(*pieces, root=root, to=to)[-1]
    assert isinstance(item, StreamError), item
    return item.condition


def test_the_header_tells_its_attributes_and_default_namespace() -> None:
    (header,) = slicer().feed(ROOT)
    assert isinstance(header, Header)
    assert header.attributes == {"to": "bus.test", "version": "1.0", "xml:lang": "de"}
    assert header.content == CLIENT


def test_what_is_inside_a_stanza_stays_as_it_came() -> None:
    inner = b" <a b='1' c = \"&quot;>\" ><![CDATA[<x>]]>&amp;&#x41;\r\n</a > <b/>"
    element = one(b"<iq  type='get'\n id = \"1\" >" + inner + b"</iq >")
    assert element.kind == "iq"
    assert element.attributes == {"type": "get", "id": "1"}
    assert element.inner == inner


@pytest.mark.parametrize("text", [b"<presence/>", b"<presence />", b"<presence></presence>"])
def test_an_empty_stanza_has_nothing_inside(text: bytes) -> None:
    assert one(text).inner == b""


def test_attribute_values_are_unescaped_and_may_hold_the_end_of_a_tag() -> None:
    element = one(b"""<message to='a>b"/>' id="&lt;&apos;&#10;&amp;'">x</message>""")
    assert element.attributes == {"to": 'a>b"/>', "id": "<'\n&'"}
    assert element.inner == b"x"


def test_space_between_stanzas_is_dropped_however_much_comes() -> None:
    to = slicer(size=100)
    items = feed(*[b" \r\n\t" * 20] * 50, b"<iq/>", b" " * 500, b"\n<iq/>\n", to=to)
    assert len(items) == 2


def test_the_end_of_the_stream_is_told_once_and_ends_everything() -> None:
    assert feed(b"<iq/></stream:stream>", b"<iq/>")[1:] == [END]
    assert feed(b"<iq/></stream:stream>garbage")[1:] == [END]


def test_an_element_of_another_namespace_is_no_stanza() -> None:
    element = one(b"<auth xmlns='urn:x' mechanism='PLAIN'>AA==</auth>")
    assert (element.kind, element.namespace, element.name) == ("", "urn:x", "auth")
    assert element.inner == b"AA=="


def test_a_stanza_name_in_another_default_namespace_is_no_stanza() -> None:
    assert one(b"<message xmlns='jabber:server'/>").kind == ""
    assert one(b"<message xmlns=''/>").kind == ""


def test_a_stanza_may_declare_its_own_namespace_again() -> None:
    element = one(b"<message xmlns='jabber:client' to='a'><body>x</body></message>")
    assert element.kind == "message"
    assert element.attributes == {"to": "a"}


@pytest.mark.parametrize(
    "text",
    [
        b"<c:message xmlns:c='jabber:client'/>",
        b"<iq:iq xmlns:iq='jabber:client'><iq:x/></iq:iq>",
        b"<iq x:y='1' xmlns:x='urn:x'/>",
        b"<iq stream:y='1'/>",
    ],
)
def test_prefixes_on_a_stanza_itself_are_refused(text: bytes) -> None:
    assert refusal(text) == "bad-namespace-prefix"


def test_prefixes_declared_outside_of_the_slice_come_along() -> None:
    root = ROOT.replace(b" to=", b" xmlns:r='urn:root&amp;' xmlns:unused='urn:u' to=")
    element = one(b"<iq xmlns:s='urn:s' id='xmlns:z=&quot;q&quot;'><r:a/><s:b/></iq>", root=root)
    assert element.attributes == {
        "id": 'xmlns:z="q"',
        "xmlns:s": "urn:s",
        "xmlns:r": "urn:root&",
    }
    again = one(encode(element.kind, element.attributes, element.inner))
    assert again == element


def test_the_language_of_a_stanza_is_kept() -> None:
    assert one(b"<message xml:lang='fr'/>").attributes == {"xml:lang": "fr"}


@pytest.mark.parametrize(
    "text",
    [
        b"<iq><a></b></iq>",
        b"<iq a='1' a='2'/>",
        b"<iq><nobody:declared/></iq>",
        b"<iq>&undefined;</iq>",
        b"<iq>\xff</iq>",
        b"<iq>\x00</iq>",
        b"<iq>&#0;</iq>",
        b"<iq>\xef\xbf\xbe</iq>",
        b"<iq><a xmlns:p='u' xmlns:q='u' p:x='' q:x=''/></iq>",
        b"</iq>",
    ],
)
def test_what_is_not_well_formed_is_refused(text: bytes) -> None:
    assert refusal(b"<iq/>", text) == "not-well-formed"


@pytest.mark.parametrize(
    "text",
    [b"<iq><!-- c --></iq>", b"<!-- c -->", b"<?x y?>", b"<iq><?x y?></iq>"],
)
def test_comments_and_processing_instructions_are_refused(text: bytes) -> None:
    assert refusal(text) == "restricted-xml"


def test_a_document_type_is_refused_before_it_can_declare_anything() -> None:
    (item,) = slicer().feed(b"<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'>]><x>&a;</x>")
    assert isinstance(item, StreamError)
    assert item.condition == "restricted-xml"


@pytest.mark.parametrize(
    ("data", "condition"),
    [
        (b"<?xml version='1.0' encoding='iso-8859-1'?><x/>", "unsupported-encoding"),
        (b"<?xml version='1.0' encoding='utf-16'?><x/>", "unsupported-encoding"),
        (ROOT.decode().encode("utf-16"), "unsupported-encoding"),
        (ROOT.decode().encode("utf-16-le"), "unsupported-encoding"),
        (ROOT.decode().encode("utf-16-be"), "unsupported-encoding"),
        (b"GET / HTTP/1.1\r\n\r\n", "not-well-formed"),
        (b"\x16\x03\x01\x02\x00\x01", "not-well-formed"),
        (b"<stream xmlns='urn:x'>", "invalid-namespace"),
        (b"<x/>", "invalid-namespace"),
    ],
)
def test_a_stream_that_does_not_begin_as_one_is_refused(data: bytes, condition: str) -> None:
    item = slicer().feed(data)[-1]
    assert isinstance(item, StreamError)
    assert item.condition == condition


def test_utf_8_may_be_declared() -> None:
    (header,) = slicer().feed(ROOT.replace(b"?>", b" encoding='utf-8'?>"))
    assert isinstance(header, Header)


@pytest.mark.parametrize(
    "text", [b"x", b"<iq/>x<iq/>", b"&amp;<iq/>", b"<![CDATA[x]]><iq/>", b"x</stream:stream>"]
)
def test_text_between_stanzas_is_refused(text: bytes) -> None:
    assert refusal(text) in ("bad-format", "not-well-formed")


def test_a_stanza_may_be_as_large_as_the_limit_and_no_larger() -> None:
    assert isinstance(feed(b"<iq>" + b"x" * 91 + b"</iq>", to=slicer(100))[0], Element)
    assert refusal(b"<iq>" + b"x" * 92 + b"</iq>", to=slicer(100)) == "policy-violation"


def test_a_stanza_that_never_ends_is_refused_at_the_limit() -> None:
    assert refusal(b"<iq>", *[b"x" * 50] * 3, to=slicer(100)) == "policy-violation"


def test_a_tag_that_never_ends_is_refused_at_its_limit() -> None:
    pieces = [b"<iq><a x='", *[b"y" * 50] * 10]
    assert refusal(*pieces, to=slicer(tag=300)) == "policy-violation"


def test_long_text_is_no_long_tag() -> None:
    pieces = [b"<iq>", *[b"y" * 50] * 50, b"</iq>"]
    assert isinstance(feed(*pieces, to=slicer(tag=300))[0], Element)


def test_nesting_is_bounded() -> None:
    def nested(depth: int) -> bytes:
        return b"<iq>" + b"<a>" * (depth - 1) + b"</a>" * (depth - 1) + b"</iq>"

    assert isinstance(feed(nested(20))[0], Element)
    assert refusal(nested(21)) == "policy-violation"


def test_attributes_are_bounded() -> None:
    many = b"".join(b" a%d=''" % number for number in range(65))
    assert refusal(b"<iq" + many + b"/>") == "policy-violation"
    assert refusal(b"<iq><a" + many + b"/></iq>") == "policy-violation"


def test_limits_can_be_widened_on_the_same_stream() -> None:
    to = slicer(100)
    to.widen(1000, 20)
    assert isinstance(feed(b"<iq>" + b"x" * 500 + b"</iq>", to=to)[0], Element)


def test_a_tag_in_two_reads_is_seen_with_the_second() -> None:
    # expat 2.6 and later would wait for more unless told otherwise.
    items = feed(b"<presence to='some", b"body'/>")
    assert [item.attributes for item in items if isinstance(item, Element)] == [{"to": "somebody"}]


# Any split of the bytes gives the same stanzas.

_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
_names = st.sampled_from(["iq", "message", "presence"])
_keys = st.sampled_from(["to", "id", "type", "xml:lang"])
_space = st.sampled_from([b"", b" ", b"\r\n", b"\t \n"])


@st.composite
def _inner(draw: st.DrawFn, depth: int = 2) -> bytes:
    name = draw(st.sampled_from([b"a", b"body", b"x"]))
    content = encode(
        "t", {}, draw(_text).replace("&", "").replace("<", "").replace("]", "").encode()
    )
    parts = [content, b"&lt;&#65;", b"<![CDATA[</iq>]]>", b"<e/>"]
    if depth:
        parts.append(draw(_inner(depth - 1)))
    inside = b"".join(draw(st.lists(st.sampled_from(parts), max_size=3)))
    return b"<%b xmlns='urn:x' k='>'>%b</%b >" % (name, inside, name)


@st.composite
def _stanza(draw: st.DrawFn) -> bytes:
    attributes = draw(st.dictionaries(_keys, _text, max_size=4))
    inner = draw(st.one_of(st.just(b""), _inner()))
    return encode(draw(_names), attributes, inner)


@given(stanzas=st.lists(st.tuples(_stanza(), _space), max_size=6), data=st.data())
def test_any_split_gives_the_same_stanzas(
    stanzas: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    stream = ROOT + b"".join(stanza + space for stanza, space in stanzas) + b"</stream:stream>"
    whole = slicer().feed(stream)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    to = slicer()
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [item for piece in pieces for item in to.feed(piece)] == whole
    assert isinstance(whole[-1], End)
    assert len(whole) == len(stanzas) + 2


@given(stanzas=st.lists(st.tuples(_stanza(), _space), max_size=3))
def test_byte_by_byte_gives_the_same_stanzas(stanzas: list[tuple[bytes, bytes]]) -> None:
    stream = ROOT + b"".join(stanza + space for stanza, space in stanzas)
    to = slicer()
    single = [item for n in range(len(stream)) for item in to.feed(stream[n : n + 1])]
    assert single == slicer().feed(stream)


@given(_stanza())
def test_a_forwarded_stanza_reads_as_the_one_that_came(stanza: bytes) -> None:
    first = one(stanza)
    assert one(encode(first.kind, first.attributes, first.inner)) == first


@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_never_raises_and_stops_at_the_first_error(data: bytes, cut: int) -> None:
    to = slicer(size=100)
    items = [*to.feed(ROOT + data[:cut]), *to.feed(data[cut:]), *to.feed(b"<iq/>")]
    errors = [n for n, item in enumerate(items) if isinstance(item, StreamError)]
    assert errors in ([], [len(items) - 1])
