from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import LocalProtocolError
from spinal.protocols.path import (
    MAX_PARTS,
    MAX_PATH,
    check_places,
    is_ancestor,
    parts,
    places_match,
    related,
    selects,
)

# Few letters, so that equal parts and common beginnings are frequent.
PART = st.text("ab1é-", min_size=1, max_size=3)
PARTS = st.lists(PART, max_size=4)
PATH = PARTS.map(lambda found: "/" + "/".join(found))
PLACES = st.dictionaries(st.sampled_from(["site", "role", "rack"]), PATH, max_size=3)


def test_comparing_is_by_whole_parts_and_never_as_text() -> None:
    assert is_ancestor("/slice/1", "/slice/1/disk")
    assert is_ancestor("/slice/1", "/slice/1")
    assert not is_ancestor("/slice/1", "/slice/15")
    assert not is_ancestor("/slice/1/disk", "/slice/1")
    assert not related("/slice/1", "/slice/15")
    assert not selects("/slice/1/**", "/slice/15")


@given(PARTS)
def test_parts_are_what_a_path_was_made_of(found: list[str]) -> None:
    assert parts("/" + "/".join(found)) == tuple(found)


@given(PATH)
def test_the_root_is_an_ancestor_of_every_path_and_every_path_of_itself(path: str) -> None:
    assert is_ancestor("/", path)
    assert is_ancestor(path, path)


@given(PATH, PATH)
def test_two_paths_that_are_ancestors_of_each_other_are_equal(one: str, other: str) -> None:
    both = is_ancestor(one, other) and is_ancestor(other, one)

    assert both == (one == other)


@given(PATH, PATH, PATH)
def test_an_ancestor_of_an_ancestor_is_an_ancestor(one: str, two: str, three: str) -> None:
    if is_ancestor(one, two) and is_ancestor(two, three):
        assert is_ancestor(one, three)


@given(PARTS, PARTS)
def test_what_is_below_a_path_has_it_as_an_ancestor(above: list[str], below: list[str]) -> None:
    head = "/" + "/".join(above)

    assert is_ancestor(head, "/" + "/".join(above + below))


@given(PATH, PATH)
def test_places_match_in_both_directions_alike(one: str, other: str) -> None:
    assert related(one, other) == related(other, one)
    assert places_match({"site": one}, {"site": other}) == related(one, other)


@given(PLACES, PLACES, PLACES)
def test_each_wanted_key_must_be_offered_and_related(
    wanted: Mapping[str, str], offered: Mapping[str, str], more: Mapping[str, str]
) -> None:
    matched = places_match(wanted, offered)

    assert matched == all(k in offered and related(wanted[k], offered[k]) for k in wanted)
    assert places_match({}, offered)
    if matched:
        assert places_match(wanted, {**more, **offered})


@given(PATH, PATH)
def test_a_pattern_without_stars_selects_just_its_path(pattern: str, path: str) -> None:
    assert selects(pattern, path) == (pattern == path)


@given(PATH, PATH)
def test_two_last_stars_select_the_path_and_everything_below(above: str, path: str) -> None:
    assert selects(above.rstrip("/") + "/**", path) == is_ancestor(above, path)


@given(PARTS, st.data())
def test_a_star_stands_for_exactly_one_part(found: list[str], data: st.DataObject) -> None:
    path = "/" + "/".join(found)
    starred = ["*" if data.draw(st.booleans()) else part for part in found]

    assert selects("/" + "/".join(starred), path)
    assert not selects("/" + "/".join([*starred, "*"]), path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "slice",
        "slice/1",
        "//",
        "/a/",
        "/a//b",
        "/.",
        "/a/../b",
        "/a b",
        "/a\n",
        "/a*",
        "/*",
        "/{a}",
        "/<a>",
        "/'",
        '/"',
        "/a\\b",
        "/\ud800",
        "/\ufffe",
        "/\u2003",
        "/" + "a" * MAX_PATH,
        "/a" * (MAX_PARTS + 1),
    ],
)
def test_what_is_not_a_path_is_refused(path: str) -> None:
    with pytest.raises(LocalProtocolError, match="not a path"):
        parts(path)


@pytest.mark.parametrize(
    "pattern", ["", "*", "**", "a/b", "/a*", "/**/b", "/a/**b", "/a//**", "/a/", "/a/***"]
)
def test_a_pattern_that_could_never_select_is_refused(pattern: str) -> None:
    with pytest.raises(LocalProtocolError, match="not a path"):
        selects(pattern, "/a/b")


@given(st.text(max_size=8), PATH)
def test_any_text_is_a_pattern_or_refused_as_one(pattern: str, path: str) -> None:
    try:
        found = selects(pattern, path)
    except LocalProtocolError:
        return
    assert found in (True, False)


def test_the_longest_path_has_as_many_parts_and_bytes_as_the_limits_say() -> None:
    assert len(parts("/a" * MAX_PARTS)) == MAX_PARTS
    assert parts("/" + "a" * (MAX_PATH - 1))
    with pytest.raises(LocalProtocolError):
        parts("/" + "é" * (MAX_PATH // 2))


def test_a_bare_place_gets_the_key_site() -> None:
    assert check_places("/eu/fra") == {"site": "/eu/fra"}
    assert check_places({"role": "/web"}) == {"role": "/web"}
    with pytest.raises(LocalProtocolError):
        check_places({"role": "web"})
