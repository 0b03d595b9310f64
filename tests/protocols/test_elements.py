from __future__ import annotations

from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import Codec, Problem, Stanza, elements
from spinal.protocols.elements import child

NAMES = st.sampled_from(["a", "query", "x"])
SPACES = st.sampled_from(["urn:example:a", "urn:example:b&'<c>"])
TEXT = st.text(
    st.sampled_from("a&<>]'\"\n\t\u2028é😀 ")
    | st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc", "Cn"]),
    max_size=12,
)


def tree(tag: str, text: str, said: str, children: list[Element]) -> Element:
    made = Element(tag, {"said": said})
    made.text = text
    made.extend(children)
    return made


TAGS = st.builds("{{{}}}{}".format, SPACES, NAMES)
TREES = st.recursive(
    st.builds(tree, TAGS, TEXT, TEXT, st.just([])),
    lambda inner: st.builds(tree, TAGS, TEXT, TEXT, st.lists(inner, max_size=3)),
    max_leaves=8,
)


def seen(element: Element) -> object:
    return (element.tag, element.attrib, element.text or "", [seen(one) for one in element])


@given(TREES)
def test_what_is_written_is_read_as_the_same_and_has_no_prefix(made: Element) -> None:
    written = elements.write(made)

    assert seen(fromstring(written)) == seen(made)
    assert b"xmlns:" not in written


def test_a_namespace_is_declared_where_it_is_not_that_of_the_parent() -> None:
    made = Element("{urn:example:a}a")
    child(child(made, "b", {"c": "1"}), "d", text="e")
    made.append(Element("{urn:example:b}f"))

    assert elements.write(made) == (
        b"<a xmlns='urn:example:a'><b c='1'><d>e</d></b><f xmlns='urn:example:b'/></a>"
    )


@pytest.mark.parametrize("bad", ["\x00", "a\x1f", "\ud800", "\ufffe", "\uffff"])
def test_what_xml_cannot_hold_becomes_a_space(bad: str) -> None:
    made = tree("a", bad, bad, [])

    found = fromstring(elements.write(made))

    assert found.text == found.get("said") == bad[:-1] + " "


@given(TREES)
def test_other_elements_travel_beside_ours_and_in_errors(made: Element) -> None:
    other = elements.write(made)
    problem = Problem("busy")

    beside = fromstring(Codec.encode(Stanza("presence", "", body=b"[]", other=other)))
    within = fromstring(Codec.encode(Stanza("iq", "error", problem=problem, other=other)))

    assert Codec.decode(beside).body == b"[]"
    assert seen(beside[-1]) == seen(made)
    assert Codec.decode(within).problem == problem
    assert seen(within[0][-1]) == seen(made)


def test_what_stands_beside_our_element_is_not_taken_for_it() -> None:
    stanza = Stanza("presence", "", body=b"[]", other=b"<c xmlns='urn:example:a'/>")

    assert Codec.body_of(Codec.inner(stanza)) is None
