from __future__ import annotations

import subprocess
import sys

IMPORTED = """
import sys
import spinal.dispatcher
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_vendors_libraries_are_for_their_agents_alone() -> None:
    argv = [sys.executable, "-c", IMPORTED]
    ended = subprocess.run(argv, capture_output=True, text=True, check=True)
    modules = ended.stdout.split()
    assert "spinal" in modules
    assert not {"libcloud", "requests", "lxml"}.intersection(modules)
