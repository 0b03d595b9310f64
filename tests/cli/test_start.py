"""What a command imports before it does anything; modules are counted, and no time is taken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import environment

HELP = "from spinal.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
#: All that `spinal agents` has imported when it connects.
AGENTS = """
import spinal.cli.agents, spinal.logs, spinal.bus.asking, spinal.bus.client
import spinal.bus.transports.slixmpp
"""
IMPORTED = "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"

#: Ours and everybody's, with some room for other versions of libraries; measured: 145 and 479.
LIMITS = [(HELP, 180), (AGENTS, 560)]

#: What no client needs before it moves a blob, keeps jobs or makes certificates.
HEAVY = {
    "aiohttp",
    "alembic",
    "cronsim",
    "cryptography",
    "msgspec",
    "scramp",
    "spinal.agents",
    "spinal.dispatcher",
    "spinal.testing",
    "sqlalchemy",
}


@pytest.mark.parametrize(("code", "limit"), LIMITS, ids=["spinal --help", "spinal agents"])
def test_a_command_imports_no_more_than_it_needs(code: str, limit: int, place: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", code + IMPORTED],
        env=environment(place),
        capture_output=True,
        text=True,
        check=True,
    )
    modules: list[str] = json.loads(ended.stdout.splitlines()[-1])

    assert HEAVY.intersection(modules) == set()
    ours = [name for name in modules if name.startswith("spinal")]
    assert len(modules) <= limit, (
        f"{len(modules)} modules are imported, {len(ours)} of them ours; see who imports what with "
        f"`python -X importtime -c {code!r}`"
    )
