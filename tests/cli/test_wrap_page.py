"""The beginning of docs/wrap.md, as a new user would try it."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from tests.conftest import MISSING

from .conftest import Program, spinal_at

PAGE = (Path(__file__).resolve().parents[2] / "docs/wrap.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found[0]


def test_three_commands_and_one_file_give_the_first_answer(running: Path, tmp_path: Path) -> None:
    if shutil.which("units") is None:
        pytest.skip(f"{MISSING} units (Debian: units)")
    (tmp_path / "units.yaml").write_text(block("yaml"))
    up, run, call = (shlex.split(line)[1:] for line in block("sh").splitlines())
    # It runs already.
    assert up == ["up"]
    file = tmp_path / run.pop()
    spinal = spinal_at(running)

    agent = Program(running, *run, str(file), "--json")
    try:
        agent.until(event="ready")
        answer = spinal(*call)
        refused = spinal(call[0], call[1], "from=3 smiles")
    finally:
        assert agent.end() == 0, agent.err

    assert f"prints `{answer.out.strip()}`" in PAGE, answer.err
    assert refused.code == 1
    assert f"says `{refused.line.removeprefix('spinal: ').partition(' (at ')[0]}`" in PAGE
