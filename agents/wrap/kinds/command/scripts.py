"""Programs that read one of their arguments as a script, and where it stands.

What a caller gave must not become part of one: there it could be anything.  The table knows the
usual ones; a program of which only its owner knows that it reads scripts is the owner's to mind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from ...template import Template


@dataclass(frozen=True, slots=True)
class Reader:
    """Where a program reads scripts."""

    #: Options whose value is one, as a regular expression.
    options: str = "(?!)"
    #: Which argument that is no option is one, from 0; none if none.
    place: int | None = None
    #: All after that are as well.
    onwards: bool = False
    #: Other options that have a value of their own.
    values: str = "(?!)"


_SHELL: Final = Reader(
    r"-[a-zA-Z]*c|--command", 0, values=r"[-+][a-zA-Z]*[oO]|--rcfile|--init-file"
)
_AWK: Final = Reader("-e|--source", 0, values="-[Fvf]|--assign|--field-separator|--file")

READERS: Final[Mapping[str, Reader]] = {
    **dict.fromkeys(("sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "csh", "tcsh"), _SHELL),
    **dict.fromkeys(("su", "runuser", "script", "flock"), Reader("-c|--command|--session-command")),
    **dict.fromkeys(("awk", "gawk", "mawk", "nawk"), _AWK),
    **dict.fromkeys(("perl", "ruby"), Reader("-[a-zA-Z]*[eE]", 0, values="-I|-r")),
    **dict.fromkeys(
        ("node", "nodejs"), Reader("-[a-z]*[ep]|--eval|--print", 0, values="-r|--require")
    ),
    **dict.fromkeys(("lua", "luajit", "osascript", "R", "Rscript"), Reader("-e", 0)),
    **dict.fromkeys(("mysql", "mariadb"), Reader("-e|--execute|--init-command")),
    **dict.fromkeys(("tclsh", "wish", "jq", "watch", "parallel"), Reader(place=0)),
    "python": Reader("-[a-zA-Z]*c", 0, values="-[WX]"),
    "pypy": Reader("-[a-zA-Z]*c", 0, values="-[WX]"),
    "php": Reader("-[rBRE]", 0, values="-[dc]"),
    "pwsh": Reader("(?i:-c|-command|-encodedcommand)", 0),
    "expect": Reader("-c", 0),
    "sed": Reader("-[a-zA-Z]*e|--expression", 0, values="-f|-l|--file|--line-length"),
    "psql": Reader("-c|--command|-v|--set|--variable"),
    "sqlite": Reader("-cmd", 1, onwards=True, values="-init|-separator|-nullvalue"),
    "ssh": Reader("-o", 0, onwards=True, values="-[bcDEeFIiJLlmOpQRSWw]"),
    "make": Reader("--eval", 0, onwards=True, values="-[CfIjlo]"),
    "eval": Reader(place=0, onwards=True),
    "env": Reader("-S|--split-string", values="-[uC]"),
    "find": Reader("-exec|-execdir|-ok|-okdir"),
    "git": Reader("-c|--upload-pack|--receive-pack|--exec|--config-env"),
    "tar": Reader("-I|--checkpoint-action|--to-command|--use-compress-program|--rsh-command"),
}

#: Programs that run one of their arguments.
RUNNERS: Final = frozenset(
    [
        "bwrap",
        "busybox",
        "chroot",
        "chrt",
        "docker",
        "doas",
        "env",
        "find",
        "firejail",
        "flock",
        "ionice",
        "kubectl",
        "nice",
        "nohup",
        "nsenter",
        "parallel",
        "podman",
        "runuser",
        "script",
        "setpriv",
        "setsid",
        "stdbuf",
        "strace",
        "sudo",
        "systemd-run",
        "taskset",
        "time",
        "timeout",
        "unshare",
        "watch",
        "xargs",
    ]
)

#: Of those, the ones whose first argument is what they run.
FIRST: Final = frozenset({"busybox", "nohup", "setsid", "time", "xargs", "watch", "doas"})


def name_of(text: str) -> str:
    """Give the name by which a program is known here: without folder and version."""
    name = PurePath(text).name
    return re.sub(r"[0-9.]+$", "", name) or name


@dataclass(frozen=True, slots=True)
class Found:
    """An argument that would become part of a script."""

    #: Which of the argument list.
    place: int
    argument: str
    #: Of whom.
    program: str


def find(argv: Sequence[Sequence[Template]]) -> Iterator[Found]:
    """Give what would become part of a script.

    Args:
        argv: the argument list from the program on, each entry with the arguments that it stands for.
    """
    first = name_of(_literal(argv[0][0]))
    for place, entry in enumerate(argv):
        for template in entry:
            name = "" if template.names else name_of(_literal(template))
            if name in READERS:
                # Elsewhere than in a program's place it may be any word; then only its options count.
                whole = place == 0 or first in RUNNERS
                yield from _scripts(name, READERS[name], argv[place + 1 :], place + 1, whole)


def _scripts(
    name: str, reader: Reader, rest: Sequence[Sequence[Template]], offset: int, whole: bool
) -> Iterator[Found]:
    count, expected = 0, ""
    for place, entry in enumerate(rest, offset):
        for template in entry:
            text, names = _literal(template), template.names
            kind, expected = expected, ""
            if kind == "value":
                continue
            if kind != "script":
                if text.startswith(("-", "+")) and len(text) > 1:
                    head, joined, _ = text.partition("=")
                    if re.fullmatch(reader.options, head) and not joined:
                        if not names:
                            expected = "script"
                            continue
                    elif not re.match(reader.options, text):
                        if re.fullmatch(reader.values, text):
                            expected = "value"
                        continue
                else:
                    position, count = count, count + 1
                    if not whole or reader.place is None or position < reader.place:
                        continue
                    if position > reader.place and not reader.onwards:
                        return
            if names:
                yield Found(place, names[0], name)


def _literal(template: Template) -> str:
    """Give the text of it that stands in the manifest."""
    return "".join(piece for piece in template.pieces if isinstance(piece, str))
