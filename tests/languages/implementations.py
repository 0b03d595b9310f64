"""The agents that are tried: the reference, and one for each language in ``examples/languages``."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spinal.conform import reference

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "examples" / "languages"


@dataclass(frozen=True)
class Implementation:
    """One agent: how it is built, and the command that is the agent.

    Attributes:
        name: of its folder and its account.
        title: language and library, for the table.
        needs: programs that have to be there; without one the agent is left out, and named.
        builds: commands that build it, one after the other, run in its folder.
        run: the command that is the agent.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    builds: tuple[tuple[str, ...], ...]
    run: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it is built."""
        folder = FOLDER / self.name
        return folder if folder.is_dir() else ROOT

    @property
    def argv(self) -> list[str]:
        """The command with the files of the folder in full, so that it runs anywhere."""
        here = {word: str(self.folder / word) for word in self.run}
        return [here[word] if Path(here[word]).is_file() else word for word in self.run]

    @property
    def missing(self) -> list[str]:
        """Programs that it needs and that are not there."""
        return [program for program in self.needs if shutil.which(program) is None]


#: Has the ``aioxmpp`` of the example, apart from ours.
_VENV: Final = ".venv/bin/python"

IMPLEMENTATIONS: Final = (
    Implementation(
        "reference",
        "Python, the agent kit",
        (),
        (),
        (sys.executable, "-m", "spinal", "agent", "run", str(reference.__file__)),
    ),
    Implementation(
        "javascript",
        "JavaScript, @xmpp/client",
        ("node", "npm"),
        (("npm", "ci"),),
        ("node", "agent.js"),
    ),
    Implementation(
        "go", "Go, mellium.im/xmpp", ("go",), (("go", "build", "-o", "agent", "."),), ("./agent",)
    ),
    Implementation(
        "java",
        "Java, Smack",
        ("java", "mvn"),
        (("mvn", "--batch-mode", "--quiet", "package"),),
        ("java", "-jar", "target/agent.jar"),
    ),
    Implementation(
        "rust",
        "Rust, tokio-xmpp",
        ("cargo",),
        (("cargo", "build", "--quiet", "--locked"),),
        ("target/debug/spinal-agent",),
    ),
    Implementation("c", "C, libstrophe", ("cc", "make", "pkg-config"), (("make",),), ("./agent",)),
    Implementation(
        "python",
        "Python, aioxmpp",
        (),
        (
            (sys.executable, "-m", "venv", ".venv"),
            (_VENV, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"),
        ),
        (_VENV, "agent.py"),
    ),
)
