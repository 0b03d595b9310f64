"""From a program's help to an operation: what callers may give, and what they had better not.

A draft is careful.  What would run other programs, name files and folders of the machine, or hold a
secret is left out and told, because whoever may call the operation could then do as much as the
agent; its owner puts it back where that is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from spinal.protocols import Json

from .help import Help, Option, Positional, choices
from .write import Op, short

#: Most options that a draft takes over.
MAX_OPTIONS: Final = 40

#: Characters of a text that a caller may give, if nothing says more.
TEXT: Final = 1000

#: Characters of what is said of an argument.
ABOUT: Final = 72

_ABOUT_ITSELF: Final = re.compile(
    r"-+(?:help|help-all|fullhelp|usage|\?|version|licen[sc]e|copyright|about"
    r"|(?:generate-)?completion.*|(?:html|man|info)-path)"
)
_SAYS_SO: Final = re.compile(
    r"(?:show|print|display|output|give|get)s?\b.{0,24}\b(?:help|version|usage|licen[sc]e)\b.*",
    re.IGNORECASE,
)
_TERMINAL: Final = re.compile(
    r"interactive|prompt|paginate|pager|daemon(?:ize)?|tty|edit(?:or)?|browser"
)

#: Type of a value, by the words that stand for it.
_TYPES: Final[Sequence[tuple[str, re.Pattern[str]]]] = (
    (
        "integer",
        re.compile(
            r"(?:n|num|nums|number|nr|count|int|integer|uint|u?int(?:8|16|32|64)?|lines?|cols|columns"
            r"|width|height|digits|depth|levels?|port|bytes|kb|mb|days|year|jobs|threads|len|length"
            r"|indent|max|min|octnum|#)"
        ),
    ),
    (
        "number",
        re.compile(
            r"(?:float(?:32|64)?|double|real|ratio|secs?|seconds|fractional seconds|factor)"
        ),
    ),
)
_FILE: Final = re.compile(
    r"(?:.*[-_ ])?(?:(?:in|input|data|source|src)?[-_]?files?(?:name)?|infile|document|image)s?",
    re.IGNORECASE,
)
_OUTPUT: Final = re.compile(
    r"(?:.*[-_ ])?(?:out(?:put)?(?:[-_ ]?file(?:name)?)?|dest(?:ination)?|target|result)",
    re.IGNORECASE,
)

_RUNS: Final = "it would run what the caller gives"

#: Why a value of a caller's choice is not taken over: words in its name, and in what is said of it.
_REASONS: Final[Sequence[tuple[str, str, str]]] = (
    (
        _RUNS,
        (
            r"command(?:line)?|cmd|exec|execute|shell|rsh|program(?:file)?|prog|script(?:[-.].*)?|to-command"
            r"|compress-program|hook|eval|module|plugin|preload|require|import|loader|expression|code|upload-pack"
        ),
        r"\b(?:run|execute|invoke|pipe|filter)s?\b.*\b(?:command|program|script|module)|\|pipe",
    ),
    (
        "a secret: give it by env, from {env: NAME} or {file: PATH}",
        r".*(?:password|passwd|passphrase|secret|token|user:password|api-?key|credentials?)",
        r"\b(?:password|passphrase)\b",
    ),
    (
        "it names files of this machine",
        r"files\w*-from|.*-from-files?|from-files?|include-from",
        r"(?!)",
    ),
    (
        "it names a folder of this machine",
        r"dir|dirs|directory|folder|chdir|cwd|root|prefix|.*-(?:dir|directory|folder)|.*[a-z]dir",
        r"(?!)",
    ),
    (
        "it sets what the program does",
        r"config|config-file|rcfile|conf|.*-config|settings|config-env|.*=.*path.*",
        r"\b(?:config(?:uration)?) (?:file|value)",
    ),
)
_WRITES: Final = re.compile(
    r"\b(?:out|output|write|save|log|dump|record|trace|backup|create|pid|sock|socket|append|store)",
    re.IGNORECASE,
)
_PATH: Final = re.compile(
    r"(?:.*[-_ ])?(?:path|pathspec|socket|file|filename)s?|.*file", re.IGNORECASE
)
_TAKES_VALUE: Final = re.compile(r"^specify\b|\bto (?:a )?specified\b", re.IGNORECASE)

#: Programs of which the first argument is a script, and those that hand what they get to a shell
#: elsewhere; for them nothing of a caller may stand there.
_SCRIPTED: Final = ("awk", "gawk", "mawk", "sed", "sqlite3")
#: Programs that run what they are given, whatever stands there.
_INTERPRETERS: Final = re.compile(
    r"(?:ba|da|z|k|a|fi|c|tc|s)?sh|perl|ruby|node(?:js)?|lua|php|python|psql|mysql|su|script|eval|osascript"
    r"|env|nice|timeout|sudo|nohup|xargs|doas|setsid|stdbuf|chroot|watch|strace|ltrace|gdb|exec|busybox"
)
_HOST: Final = re.compile(
    r"(?:.*[-_ ])?(?:urls?|uri|repo(?:sitory)?|host(?:name)?|address|addr|server)", re.IGNORECASE
)
_WRITES_ITSELF: Final = re.compile(r"\bwrite\w* .*\bfile\b", re.IGNORECASE)

#: What sub-commands do, where their name leaves no doubt.
_EFFECTS: Final[Mapping[str, Sequence[str]]] = {
    "reads": (
        "list", "ls", "show", "status", "log", "info", "inspect", "search", "ps", "version", "cat", "get",
        "describe", "history", "diff", "is-active", "is-enabled", "is-failed", "images", "logs", "top", "stats",
    ),
    "deletes": ("rm", "remove", "delete", "purge", "destroy", "drop", "clean", "prune", "uninstall", "rmi"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Program:
    """A program whose help was read."""

    #: Argument list that runs it: its name, and a sub-command's.
    argv: tuple[str, ...]
    #: It was built with getopt_long(3), which takes ``--`` as the end of the options.
    getopt: bool = False


def operation(program: Program, said: Help, path: str) -> Op:
    """Make the operation of a program, or of one of its sub-commands."""
    return _Maker(program, said, path).make()


class _Maker:
    def __init__(self, program: Program, said: Help, path: str) -> None:
        self._program = program
        self._help = said
        self._name = re.sub(r"[0-9.]+$", "", program.argv[0].rpartition("/")[2])
        # A module is a program of its own.
        self._runs = "-m" not in program.argv and _INTERPRETERS.fullmatch(self._name) is not None
        self._args: dict[str, Json] = {}
        self._command: list[Json] = list(program.argv)
        self._left: list[str] = []
        self._output: Json = None
        self._op = Op(path, {})
        self._groups: dict[int, list[Json]] = {}

    def make(self) -> Op:
        op, said = self._op, self._help
        about = said.summary or f"Runs {' '.join(self._program.argv)}."
        itself: list[str] = []
        taken = 0
        for option in said.options:
            if any(_ABOUT_ITSELF.fullmatch(name) for name in option.names) or (
                not option.value and _SAYS_SO.match(option.about)
            ):
                itself.append(option.long)
                continue
            why = self._unwanted(option)
            if not why and taken >= MAX_OPTIONS:
                why = f"a draft takes {MAX_OPTIONS} options"
            if why:
                self._left.append(f"{option.long}: {why}")
                continue
            taken += 1
            self._add_option(option)
        self._add_positionals()
        if itself:
            op.left.append(f"{', '.join(itself)}: about the program itself")
        op.left += _grouped(self._left)
        if said.reads_input and not self._runs:
            op.left.append(
                'standard input: put {text: {}} into args, and stdin: "{text}" beside the command'
            )
        effects = next(
            (
                word
                for word, names in _EFFECTS.items()
                if self._program.argv[-1] in names and len(self._program.argv) > 1
            ),
            "writes",
        )
        op.keys["summary"] = about
        if self._args:
            op.keys["args"] = self._args
        op.keys["command"] = self._command
        if self._output is not None:
            op.keys["output"] = self._output
        op.keys["timeout"] = "60s"
        op.keys["effects"] = effects
        op.notes["effects",] = (
            "by its name; is that so?"
            if effects != "writes"
            else "reads, if it changes nothing; deletes or spends, if it does"
        )
        return op

    # -- options

    def _unwanted(self, option: Option) -> str:
        name = option.long.lstrip("-").lower()
        value = option.value or self._guessed_value(option)
        if _TERMINAL.fullmatch(name):
            return "it wants a terminal, or leaves the process"
        if not value:
            return "it writes a file of this machine" if _WRITES_ITSELF.search(option.about) else ""
        if self._runs:
            return _RUNS
        return _reason(name, value, option.about)

    def _guessed_value(self, option: Option) -> str:
        """Give a word for a value that only the sentence tells of."""
        if any(other.value for other in self._help.options):
            # Then it would be shown for this one, too.
            return ""
        return option.long.lstrip("-") if _TAKES_VALUE.search(option.about) else ""

    def _add_option(self, option: Option) -> None:
        value = option.value or self._guessed_value(option)
        name = self._free(option.long)
        flag = option.long
        if not value:
            self._args[name] = _about({"type": "boolean", "default": False}, option.about)
            self._command.append({"if": name, "argv": [flag]})
            return
        self._args[name] = _about(
            {**_typed(option.long, value, option), "optional": True}, option.about
        )
        filled = "{" + name + "}"
        long = flag.startswith("--")
        if long and (option.joined or self._program.getopt or self._help.ends_options):
            self._command.append([f"{flag}={filled}"])
        elif option.joined and not long and option.maybe:
            self._command.append([f"{flag}{filled}"])
        else:
            self._command.append([flag, filled])

    # -- positional arguments

    def _add_positionals(self) -> None:
        said = self._help.positionals
        if self._help.commands and any(
            one.name.lower() in ("command", "subcommand", "cmd") for one in said
        ):
            self._left.append("its commands: name each that is wanted with --sub")
            said = ()
        optional = 0
        ended = False
        for place, one in enumerate(said):
            if one.several and any(two.name == one.name for two in said[:place]):
                continue
            key = f"{one.name}{'...' if one.several else ''}"
            if not one.required:
                if optional and optional != one.group:
                    self._left.append(f"{key}: it stands after another that may be missing")
                    continue
                optional = one.group
            elif optional:
                self._left.append(f"{key}: it stands after one that may be missing")
                continue
            if not one.required and self._is_option(one):
                continue
            why = self._bad_place(one, place)
            if why and not one.required:
                self._left.append(f"{key}: {why}")
                optional = -1
                continue
            if not ended and self._ends(one, place):
                self._command.append("--")
                ended = True
            self._add_positional(one, why, place)

    def _is_option(self, one: Positional) -> bool:
        """Whether it is but another way to give the value of an option."""
        return any(
            one.name.lower() == option.long.lstrip("-")
            for option in self._help.options
            if option.value
        )

    def _bad_place(self, one: Positional, place: int) -> str:
        if self._runs or (self._name in _SCRIPTED and place == 0):
            return _RUNS
        return _reason(one.name.lower(), one.name, one.about, positional=True)

    def _ends(self, one: Positional, place: int) -> bool:
        """Whether ``--`` goes before it: only where it is known to end the options."""
        if one.dashes:
            return place == 0
        shown = any(other.dashes for other in self._help.positionals)
        if shown or place or self._help.long_single or self._runs or self._name in _SCRIPTED:
            return False
        return self._help.ends_options or (
            self._program.getopt
            and any(name.startswith("--") for o in self._help.options for name in o.names)
        )

    def _add_positional(self, one: Positional, why: str, place: int) -> None:
        if why == _RUNS:
            self._command.append(re.sub(r"[^A-Z0-9]+", "_", one.name.upper()))
            self._note_last("write here what it is; a caller must not choose it")
            return
        if one.required and (
            _OUTPUT.fullmatch(one.name) or (place and self._last_of_same(one, place))
        ):
            self._command.append("{tmp}/out")
            self._output = {"blob": "application/octet-stream", "file": "{tmp}/out"}
            self._note_last("the file that it writes, which becomes the result")
            return
        name = self._free(one.name)
        said = _typed(one.name, one.name, None)
        if not one.required:
            said["optional"] = True
        self._args[name] = _about(said, one.about)
        filled = "{" + name + "}"
        if one.required:
            self._command.append(filled)
        elif one.group in self._groups:
            self._groups[one.group].append(filled)
        else:
            self._groups[one.group] = [filled]
            self._command.append(self._groups[one.group])
        if why:
            self._op.notes["args", name] = f"{why}; bound it with a pattern or an enum"
        elif _HOST.fullmatch(one.name):
            self._op.notes["args", name] = "callers may name any of them: bound it with a pattern"
        elif one.several:
            self._op.notes["args", name] = "one of several that it takes"

    def _last_of_same(self, one: Positional, place: int) -> bool:
        """Whether it is the second ``file`` of ``convert file ... file``, which is written."""
        said = self._help.positionals
        return place == len(said) - 1 and said[0].name == one.name and not one.several

    def _note_last(self, text: str) -> None:
        self._op.notes["command", len(self._command) - 1] = text

    def _free(self, said: str) -> str:
        name = re.sub(r"[^A-Za-z0-9]+", "_", said.strip("-")).strip("_")[:60] or "value"
        # -A is not -a.
        name = name if len(name) == 1 else name.lower()
        if not name[0].isalpha():
            name = f"opt_{name}"
        if name == "tmp":
            name = "tmp_"
        found, number = name, 2
        while found in self._args:
            found, number = f"{name}_{number}", number + 1
        return found


def _reason(name: str, value: str, about: str, *, positional: bool = False) -> str:
    """Say why a value had better not come from a caller; empty if nothing speaks against it."""
    word = value.strip("<>[]{}'\"").lower()
    if choices(value) or (not positional and choices(about)):
        return ""
    for why, names, words in _REASONS:
        if (
            re.fullmatch(names, name)
            or re.fullmatch(names, word)
            or (not positional and re.search(words, about, re.IGNORECASE))
        ):
            return why
    if not positional and (_OUTPUT.fullmatch(word) or _OUTPUT.fullmatch(name)):
        return "it names a file of this machine that is written"
    path = (
        _PATH.fullmatch(word)
        or _PATH.fullmatch(name)
        or (not positional and re.search(r"\bfile(?:name)?\b", about) and word == name)
    )
    if not path and positional and re.fullmatch(r"(?:.*[-_ ])?dir(?:ectory)?", word):
        return "it names a folder of this machine"
    if not path:
        return ""
    if not positional and (
        _WRITES.search(name)
        or re.search(r"\b(?:write|save|log|output)\w*\b.*", about, re.IGNORECASE)
    ):
        return "it names a file of this machine that is written"
    if not _FILE.fullmatch(word):
        return "it names a path of this machine"
    return ""


def _typed(name: str, value: str, option: Option | None) -> dict[str, Any]:
    """Say what a value is, by the word that stands for it."""
    found = choices(value) or (option.choices if option is not None else ())
    if found:
        return {"enum": list(found)}
    word = value.strip("<>[]{}'\"").lower()
    for kind, pattern in _TYPES:
        if pattern.fullmatch(word):
            return {"type": kind}
    if option is not None and not option.value and re.search(r"\bnumber of\b", option.about):
        return {"type": "integer"}
    if _FILE.fullmatch(word) or (
        option is not None and not option.value and re.search(r"\bfile\b", option.about)
    ):
        return {"type": "file"}
    return {"max_length": TEXT}


def _about(said: dict[str, Any], about: str) -> dict[str, Any]:
    text = short(about, ABOUT)
    return {**said, "summary": text} if text else said


def _grouped(left: Sequence[str]) -> Iterator[str]:
    """Put those with the same reason into one line."""
    reasons: dict[str, list[str]] = {}
    for line in left:
        name, _, why = line.partition(": ")
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        yield f"{shown}: {why}"
