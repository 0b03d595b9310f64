from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spinal.agents.errors import AgentError
from spinal.agents.files import load_file, load_module


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    path, modules = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]


def write(folder: Path, text: str, name: str = "some_worker.py") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_the_agent_of_a_file_is_named_after_it(tmp_path: Path) -> None:
    file = write(tmp_path, "from spinal.agents import Agent\nagent = Agent()\n")
    agent = load_file(file)

    assert (agent.name, agent.file) == ("some_worker", file)
    assert load_file(file) is agent, "a file is loaded once"


def test_a_file_may_import_its_neighbours_and_use_dataclasses(tmp_path: Path) -> None:
    write(tmp_path, "width = 3\n", "neighbour_of_worker.py")
    file = write(
        tmp_path,
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from neighbour_of_worker import width\n"
        "from spinal.agents import Agent\n"
        "agent = Agent('x')\n"
        "@dataclass\nclass Size:\n    width: int = width\n"
        "@agent.op('/x')\nasync def x(size: Size) -> Size: return size\n",
    )

    assert list(load_file(file).operations) == ["/x"]


def test_a_file_named_like_a_library_leaves_the_library_alone(tmp_path: Path) -> None:
    file = write(tmp_path, "from spinal.agents import Agent\nagent = Agent()\n", "json.py")

    assert load_file(file).name == "json"
    assert load_module(file) is load_module(file)
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\nx.y\n", "line 2: AttributeError: 'int' object has no attribute 'y'"),
        ("def f(:\n", "line 1: SyntaxError"),
        ("import no_such_thing_at_all\n", "line 1: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("x = 1\n", 'has no agent: put "agent = Agent()"'),
        (
            "from spinal.agents import Agent\na = Agent('a')\nb = Agent('b')\n",
            "has 2 agents: name the one to run 'agent'",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    tmp_path: Path, text: str, words: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(AgentError) as caught:
        load_file(file)

    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="no file"):
        load_file(tmp_path / "nothing.py")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"must end with \.py"):
        load_file(write(tmp_path, "", "agent.txt"))
