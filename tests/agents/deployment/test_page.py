"""What docs/deployment.md shows can be read by what it is for."""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import Any

from spinal.agents.deployment import config, spec

PAGE = Path(__file__).parents[3] / "docs" / "deployment.md"


def test_both_files_of_the_page_are_right(tmp_path: Path) -> None:
    service, agent = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert spec.read(service).name == "shop"
    # The page names an account that is not on every machine.
    file = tmp_path / "deployment.yaml"
    file.write_text(agent.replace("user: services", f"user: {getpass.getuser()}"))
    assert config.load(file).limits.memory == 2 * 2**30


def test_the_page_names_every_operation() -> None:
    text = PAGE.read_text()
    from spinal.agents.deployment import make

    for path in make().operations:
        assert path in text


def test_every_key_of_both_files_is_shown() -> None:
    service, agent = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for key in (*spec.ARGUMENTS, *spec.WANT):
        assert re.search(rf"^{key}:", service, re.MULTILINE), key
    properties: dict[str, Any] = config.SCHEMA["properties"]
    for key in properties:
        assert re.search(rf"^{key}:", agent, re.MULTILINE), key
