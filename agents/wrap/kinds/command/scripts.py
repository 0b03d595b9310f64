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
    **dict.fromkeys(
        ("su", "runuser", "script", "flock"), Reader("-[a-zA-Z]*c|--command|--session-command")
    ),
    **dict.fromkeys(("awk", "gawk", "mawk", "nawk"), _AWK),
    **dict.fromkeys(("perl", "ruby"), Reader("-[a-zA-Z]*[eE]", 0, values="-I|-r")),
    **dict.fromkeys(
        ("node", "nodejs"), Reader("-[a-z]*[ep]|--eval|--print", 0, values="-r|--require")
    ),
    **dict.fromkeys(("lua", "luajit", "osascript", "R", "Rscript"), Reader("-e", 0)),
    **dict.fromkeys(("mysql", "mariadb"), Reader("-[a-zA-Z]*e|--execute|--init-command")),
    **dict.fromkeys(("watch", "parallel"), Reader(place=0, onwards=True, values="-[nj]")),
    **dict.fromkeys(("tclsh", "wish"), Reader(place=0)),
    "jq": Reader(place=0, values="-L|--indent|--tab"),
    "python": Reader("-[a-zA-Z]*c", 0, values="-[WX]"),
    "pypy": Reader("-[a-zA-Z]*c", 0, values="-[WX]"),
    "php": Reader("-[rBRE]", 0, values="-[dc]"),
    "pwsh": Reader("(?i:-c|-command|-encodedcommand)", 0),
    "expect": Reader("-c", 0),
    "sed": Reader("-[a-zA-Z]*e|--expression", 0, values="-f|-l|--file|--line-length"),
    "psql": Reader("-[a-zA-Z]*c|--command|-v|--set|--variable"),
    "sqlite": Reader("-cmd", 1, onwards=True, values="-init|-separator|-nullvalue"),
    "ssh": Reader("-o", 0, onwards=True, values="-[bcDEeFIiJLlmOpQRSWw]"),
    "make": Reader("--eval", 0, onwards=True, values="-[CfIjlo]"),
    "eval": Reader(place=0, onwards=True),
    "env": Reader("-[a-zA-Z]*S|--split-string", values="-[uC]"),
    "find": Reader("-exec|-execdir|-ok|-okdir"),
    "git": Reader("-c|--upload-pack|--receive-pack|--exec|--config-env"),
    "tar": Reader("-I|--checkpoint-action|--to-command|--use-compress-program|--rsh-command"),
}


@dataclass(frozen=True, slots=True)
class Runner:
    """Where a program that runs another one has that."""

    #: Its own options that have a value, as a regular expression.
    values: str = "(?!)"
    #: How many arguments of its own stand before it; none if it may stand anywhere.
    own: int | None = 0


_ANYWHERE: Final = Runner(own=None)

#: Programs that run one of their arguments.
RUNNERS: Final[Mapping[str, Runner]] = {
    **dict.fromkeys(("busybox", "nohup", "setsid", "unbuffer", "chronic"), Runner()),
    **dict.fromkeys(("time",), Runner("-[fo]")),
    **dict.fromkeys(("bwrap", "docker", "find", "firejail", "kubectl", "podman"), _ANYWHERE),
    **dict.fromkeys(("script", "setpriv", "systemd-run", "prlimit", "setarch"), _ANYWHERE),
    "chroot": Runner(own=1),
    "chrt": Runner("-[TPD]", 1),
    "doas": Runner("-[uC]"),
    "env": Runner("-[uC]|--unset|--chdir"),
    "flock": Runner("-[wE]", 1),
    "gosu": Runner(own=1),
    "ionice": Runner("-[cnpPu]"),
    "nice": Runner("-n|--adjustment"),
    "nsenter": Runner("-[tSG]"),
    "parallel": Runner("-[jNnLs]|--jobs"),
    "pkexec": Runner("--user"),
    "runuser": Runner("-[ugG]", None),
    "stdbuf": Runner("-[ioe]|--input|--output|--error"),
    "strace": Runner("-[abeEIOopPsSuUX]"),
    "sudo": Runner("-[CDghpRrtTUu]|--user|--group"),
    "taskset": Runner("-p", 1),
    "timeout": Runner("-[ks]|--kill-after|--signal", 1),
    "unshare": Runner("-[SG]"),
    "watch": Runner("-n|--interval"),
    "xargs": Runner("-[adEILnPs]|--arg-file|--max-args|--max-procs"),
}


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


def chosen(argv: Sequence[Sequence[Template]]) -> int | None:
    """Give the place at which an argument would decide what is run; none if nowhere."""
    name = name_of(_literal(argv[0][0]))
    runner = RUNNERS.get(name)
    if runner is None or runner.own is None:
        return None
    own, value = runner.own, False
    for place, entry in enumerate(argv[1:], 1):
        for template in entry:
            text = _literal(template)
            if value:
                value = False
            elif text.startswith("-") and template.leads is None:
                value = re.fullmatch(runner.values, text) is not None
            elif name == "env" and template.leads is None and "=" in str(template.pieces[0]):
                continue
            elif own:
                own -= 1
            else:
                return place if template.names else None
    return None


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
