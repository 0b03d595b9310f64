"""The hash of XEP-0115 against its own example and two other implementations of it."""

from __future__ import annotations

import sys
from importlib import import_module
from io import BytesIO
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slixmpp import ClientXMPP
from slixmpp.plugins.xep_0030.stanza.info import DiscoInfo

from spinal.protocols import NS, RemoteProtocolError, elements
from spinal.protocols.discovery import (
    CAPS,
    INFO,
    ITEMS,
    MAX_NAME,
    PAGES,
    Info,
    Item,
    caps,
    items,
    name_of,
)
from spinal.protocols.elements import child
from spinal.protocols.forms import FORMS

WORDS = st.text("abcxyz:#/.äé日-0", min_size=1, max_size=8)
INFOS = st.builds(
    Info,
    st.just("client"),
    st.just("bot"),
    WORDS.map(name_of),
    st.lists(WORDS, min_size=1, max_size=5, unique=True),
    st.dictionaries(WORDS, WORDS | st.lists(WORDS, min_size=2, max_size=4), max_size=3),
)


def read(info: Info) -> bytes:
    return elements.write(info.element())


def test_the_example_of_the_extension_has_the_hash_that_it_says() -> None:
    features = (CAPS, INFO, ITEMS, "http://jabber.org/protocol/muc")

    info = Info("client", "pc", "Exodus 0.9.1", features)

    assert info.ver == "QgayPKawpkPSDYmwT/WM94uAlu0="
    assert caps(info.ver) == (
        f"<c xmlns='{CAPS}' hash='sha-1' node='{NS}' ver='QgayPKawpkPSDYmwT/WM94uAlu0='/>".encode()
    )


async def test_slixmpp_computes_the_same_hash_from_what_is_written() -> None:
    client: Any = ClientXMPP("ann@example.org", "")
    client.register_plugin("xep_0115")

    @settings(deadline=None)
    @given(INFOS)
    def same(info: Info) -> None:
        heard = DiscoInfo(xml=fromstring(read(info)))
        assert client.plugin["xep_0115"].generate_verstring(heard, "sha-1") == info.ver

    same()


if sys.version_info < (3, 13):  # There is no aioxmpp for later ones.

    def test_aioxmpp_computes_the_same_hash_from_what_is_written() -> None:
        pytest.importorskip("aioxmpp", reason="MISSING: aioxmpp")
        xml: Any = import_module("aioxmpp.xml")
        disco: Any = import_module("aioxmpp.disco.xso")
        caps115: Any = import_module("aioxmpp.entitycaps.caps115")

        @settings(deadline=None)
        @given(INFOS)
        def same(info: Info) -> None:
            heard = xml.read_single_xso(BytesIO(read(info)), disco.InfoQuery)
            assert caps115.hash_query(heard, "sha1") == info.ver

        same()


def test_the_answer_names_what_it_is_what_it_can_and_more_of_it() -> None:
    form = {"hash": "55c6", "features": ["batch", "cancel"]}

    query = Info("client", "bot", "thumbs", (NS, INFO), form).element("urn:x#1")

    assert query.attrib == {"node": "urn:x#1"}
    assert query[0].attrib == {"category": "client", "type": "bot", "name": "thumbs"}
    assert [one.get("var") for one in query.findall(f"{{{INFO}}}feature")] == [INFO, NS]
    fields = query.findall(f"{{{FORMS}}}x/{{{FORMS}}}field")
    found = {one.get("var"): ["".join(v.itertext()) for v in one] for one in fields}
    assert found == {"FORM_TYPE": [NS], "hash": ["55c6"], "features": ["batch", "cancel"]}
    assert fields[0].get("type") == "hidden"


def test_a_name_is_one_short_line() -> None:
    assert name_of("Scale <b> \n a photo.\x00") == "Scale b> a photo."
    assert len(name_of("x" * 1000)) == MAX_NAME


# -- pages


def ask(**wish: str) -> Element:
    query = Element(f"{{{ITEMS}}}query")
    if wish:
        page = Element(f"{{{PAGES}}}set")
        for name, text in wish.items():
            child(page, name, text=text)
        query.append(page)
    return query


KEYS = [f"/op/{number:03}" for number in range(250)]


def item(key: str) -> Item | None:
    """Every fifth is none."""
    return None if key.endswith(("0", "5")) else Item("a@x/1", key, "Do it. " * 20)


def page(answer: Element) -> tuple[list[str], str | None]:
    """Give the nodes of a page, and the key that the next one begins after."""
    nodes = [one.get("node", "") for one in answer.findall(f"{{{ITEMS}}}item")]
    return nodes, answer.findtext(f"{{{PAGES}}}set/{{{PAGES}}}last")


def test_a_short_list_is_one_page_and_says_nothing_of_pages() -> None:
    nodes, last = page(items(ask(), KEYS[:9], item))

    assert nodes == [key for key in KEYS[:9] if item(key)] and last is None


@pytest.mark.parametrize("most", [None, "1", "7", "1000"])
def test_all_pages_together_are_the_list(most: str | None) -> None:
    wish = {} if most is None else {"max": most}
    found, last = page(items(ask(**wish), KEYS, item, room=4000))
    while True:
        more, last = page(items(ask(after=last or "", **wish), KEYS, item, room=4000))
        if not more:
            break
        assert len(more) <= int(most or 4000)
        found += more

    assert found == [key for key in KEYS if item(key)]


def test_a_page_is_bounded_and_holds_one_item_at_least() -> None:
    answer = items(ask(), KEYS, item)
    assert len(elements.write(answer)) < 62 * 1024

    nodes, last = page(items(ask(), KEYS, item, room=10))
    assert len(nodes) == 1 and last == nodes[0]


def test_a_page_after_an_item_that_has_gone_begins_with_the_next_one() -> None:
    nodes, _ = page(items(ask(after="/op/0015x", max="2"), KEYS, item))

    assert nodes == ["/op/002", "/op/003"]


@pytest.mark.parametrize("wish", [{"before": ""}, {"index": "3"}, {"max": "-1"}, {"max": "x"}])
def test_other_pages_are_refused(wish: dict[str, str]) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        items(ask(**wish), KEYS, item)

    assert refused.value.problem.condition == "feature-not-implemented"
