from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.agents.chat import render
from spinal.agents.chat.alerts import Batch, Gone
from spinal.agents.chat.render import LINES, TOTAL, WIDTH
from spinal.protocols import Problem

ID = "01m7y7kg407zm76d34pn"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=40,
)


def short(text: str) -> bool:
    return (
        text.count("\n") < LINES + 1
        and len(text) <= TOTAL + 2 * WIDTH
        and not render.MISLEADING.search(text)
    )


def done(value: Any, **more: Any) -> dict[str, Any]:
    return {"id": ID, "op": "/x", "state": "done", "run": 0.2, "value": value, **more}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        ("one\ntwo", "one\ntwo"),
        (3, "3"),
        (True, "true"),
        ([1, [2]], "[\n 1,\n [\n  2\n ]\n]"),
        ({"a": "x", "b": 1.5, "c": None}, "a: x\nb: 1.5\nc: null"),
        (["x", "y"], "x\ny"),
        ("a\x00b\x1b[31mc\u202edcba\u2066", "a\ufffdb\ufffd[31mc\ufffddcba\ufffd"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
    ],
)
def test_a_value_is_shown_as_text(value: Any, shown: str) -> None:
    assert render.value(value) == shown


def test_a_blob_is_shown_as_where_to_get_it() -> None:
    blob = {"url": "https://up.example.org/1/a.png", "sha256": "a" * 64, "size": 51_200}
    assert render.value({"blob": {**blob, "media": "image/png"}}) == (
        "https://up.example.org/1/a.png  (51 kB, image/png)"
    )
    assert render.value({"blob": {**blob, "url": "file:///etc/passwd"}}).startswith("a file that")


def test_of_a_long_value_the_rest_is_a_count() -> None:
    shown = render.ended(done("\n".join(map(str, range(1000)))))
    assert shown.count("\n") == LINES - 1 and shown.endswith("\n… and 987 more lines")
    assert len(render.ended(done("x" * 1_000_000))) < 400
    assert render.ended(done(None, large=["value"])).endswith(f"spinal job get {ID}")


@given(JSON)
def test_whatever_the_value_is_the_message_is_short_and_misleads_nobody(value: Any) -> None:
    assert short(render.ended(done(value)))


@given(st.text())
def test_whatever_others_wrote_is_one_bounded_line(text: str) -> None:
    for shown in (
        render.problem(Problem("failed", text), text),
        render.problem(Problem("bad-arguments", "no"), text),
        render.one_line(text),
        render.agents([], 0, text),
        render.ended({**done(None), "state": "error", "problem": {"reason": "x", "text": text}}),
    ):
        assert short(shown) and "\n" not in shown and len(shown) <= 700


def test_a_megabyte_is_no_more_than_a_line() -> None:
    assert len(render.one_line("a\u202e" * 500_000)) <= WIDTH
    assert len(render.cut(" " * 1_000_000 + "x")) <= WIDTH


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        (Problem("no-agent", "nobody offers /x."), "no-agent: nobody offers /x; see !ops"),
        (Problem("bad-arguments", "a is missing"), "bad-arguments: a is missing; see !ops /x"),
        (Problem("busy", "no slot"), "busy: no slot; try again in a moment"),
        (Problem("refused", "no"), "refused: no"),
        (Problem("new-reason", "what"), "new-reason: what"),
    ],
)
def test_a_problem_is_told_with_what_to_do_next(problem: Problem, shown: str) -> None:
    assert render.problem(problem, "/x") == shown


def test_a_call_that_did_not_end_well_says_how_and_where_to_look() -> None:
    failed = {**done(None), "state": "error", "problem": {"reason": "failed", "text": "a\nb"}}
    assert render.ended(failed) == f"failed: a b; !why {ID}"
    assert render.ended({**done(None), "state": "killed"}) == f"it was cancelled, id {ID}"


def test_a_long_list_says_how_many_there_are() -> None:
    rows = [{"op": f"/a/{n}", "summary": "Do."} for n in range(100)]
    shown = render.ops(rows, 5000)
    assert shown.count("\n") == LINES - 1 and shown.endswith("… and 4986 more operations")
    assert render.ops(rows[:LINES], LINES).count("\n") == LINES - 1
    assert "more" not in render.ops(rows[:LINES], LINES)


def test_of_a_long_story_the_beginning_and_the_end_are_told() -> None:
    shown = render.why([f"line {n}" for n in range(100)]).split("\n")
    assert len(shown) == LINES
    assert shown[0] == "line 0" and shown[4] == "… 86 lines …" and shown[-1] == "line 99"


def gone(name: str, calls: int = 0) -> Gone:
    running = [{"id": ID, "op": "/a"}, {"id": "hub-1", "op": "/b"}][:calls]
    return Gone(f"{name}@x/agent", "silent for 12 s", running, calls)


def test_an_alert_names_the_agent_what_it_ran_and_where_to_look() -> None:
    assert render.alert(Batch([gone("a", 5)])).split("\n") == [
        "Agent a died (silent for 12 s).",
        f"It was running /a {ID}, /b and 3 more.",
        f"!why {ID} says what becomes of it.",
        "!agents shows who is there.",
    ]
    assert render.alert(Batch([gone("a")])).split("\n")[1] == "!agents shows who is there."
    assert render.alert(Batch(back=[("a@x/agent", 42.0)])) == "Agent a is back after 42 s."
    assert render.alert(Batch(restless=[("a@x/agent", 5)])) == "Coming and going: a (5 times)."


def test_an_alert_of_many_is_short() -> None:
    many = Batch([gone(f"agent-{n}", 2) for n in range(500)], [("b", 1.0)] * 90, more=7)
    shown = render.alert(many)
    assert short(shown)
    assert shown.startswith("507 agents died: agent-0, agent-1, ")
    assert "and 499 more." in shown and "500 of them were running 1000 calls" in shown
    assert render.alert(Batch(more=3)).startswith("3 agents died.\n")


def test_help_lists_the_commands_and_explains_one() -> None:
    assert render.help().count("\n") == 5
    assert render.help("!call").startswith("!call /OP [key=value]...\n")
    assert render.help("x\ny").startswith("There is no command 'x y'.")
