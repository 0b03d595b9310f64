import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from spinal import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def test_elsewhere_than_on_a_terminal_it_is_json() -> None:
    out = io.StringIO()
    logs.configure("info", stream=out, environ={})
    structlog.get_logger().info("agent_joined", agent="a@b/c")
    found = json.loads(out.getvalue())
    assert (found["event"], found["agent"], found["level"]) == ("agent_joined", "a@b/c", "info")
    assert found["timestamp"].endswith("Z")


def test_on_a_terminal_it_is_a_line_for_people() -> None:
    out = Terminal()
    logs.configure("info", stream=out, environ={"NO_COLOR": "1"})
    structlog.get_logger().info("agent_joined", agent="a@b/c")
    (line,) = out.getvalue().splitlines()
    assert "agent_joined" in line and "agent=a@b/c" in line and "\x1b" not in line


def test_what_is_below_the_level_is_left_out() -> None:
    out = io.StringIO()
    logs.configure("warning", stream=out, environ={})
    structlog.get_logger().info("agent_joined")
    assert out.getvalue() == ""
    logs.configure("warning", stream=out, environ={"SPINAL_LOG": "DEBUG"})
    structlog.get_logger().debug("agent_joined")
    assert "agent_joined" in out.getvalue()


def test_a_level_must_be_one() -> None:
    with pytest.raises(ValueError, match="SPINAL_LOG: 'loud' is no level"):
        logs.configure(environ={"SPINAL_LOG": "loud"})


def test_secrets_are_masked() -> None:
    out = io.StringIO()
    logs.configure("info", stream=out, environ={})
    structlog.get_logger().info("logged_in", password="hunter2", password_file="/x", token="t")
    found = json.loads(out.getvalue())
    assert (found["password"], found["token"], found["password_file"]) == ("***", "***", "/x")


def test_libraries_come_out_in_the_same_form() -> None:
    out = io.StringIO()
    logs.configure("info", stream=out, environ={})
    logging.getLogger("aiohttp").warning("odd: %s", "x")
    logging.getLogger("aiohttp").info("chatter")
    found = json.loads(out.getvalue())
    assert (found["event"], found["logger"], found["level"]) == ("odd: x", "aiohttp", "warning")


def test_a_traceback_stays_in_its_event() -> None:
    out = io.StringIO()
    logs.configure("info", stream=out, environ={})
    try:
        raise KeyError("x")
    except KeyError:
        structlog.get_logger().exception("task_died")
    assert "KeyError" in json.loads(out.getvalue())["exception"]
