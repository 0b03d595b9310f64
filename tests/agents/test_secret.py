from __future__ import annotations

from pathlib import Path

import pytest

from spinal.agents import document, secret
from spinal.agents.document import BadDocument
from spinal.agents.errors import AgentError
from spinal.agents.secret import Secret


def test_a_secret_is_read_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from a file\n")
    environ = {"KEY": "from the environment", "CREDENTIALS_DIRECTORY": str(tmp_path)}

    assert Secret.of({"env": "KEY"}).read(environ) == "from the environment"
    assert Secret.of({"file": "key"}, tmp_path).read(environ) == "from a file"
    assert Secret.of({"credential": "key"}).read(environ) == "from a file"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ({"env": "NOT_SET"}, "set the variable NOT_SET"),
        ({"file": "/no/such/file"}, "No such file"),
        ({"file": "empty"}, "is empty"),
        ({"file": "binary"}, "not UTF-8"),
        ({"credential": "key"}, "/nowhere/key"),
    ],
)
def test_one_that_is_not_there_is_named_by_its_reference(
    tmp_path: Path, reference: dict[str, str], words: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(AgentError, match=words):
        Secret.of(reference, tmp_path).read({})


def test_it_does_not_show_itself(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hush")
    found = Secret.of({"file": "key"}, tmp_path)

    assert "hush" not in f"{found} {found!r}"


@pytest.mark.parametrize("text", ["hush", "{}", "{env: A, file: b}", "{vault: x}"])
def test_a_secret_by_itself_is_told_to_be_one_by_reference(text: str) -> None:
    with pytest.raises(BadDocument, match="by reference"):
        document.read(text, "f.yaml", secret.SCHEMA)
