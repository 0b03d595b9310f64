"""``spinal wrap install``: a manifest's agent as a service of systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from spinal.protocols import LocalProtocolError

from .common import CONTEXT, home_path, json_option, print_json, run, say, show_home

if TYPE_CHECKING:
    from spinal.agents.wrap import Manifest
    from spinal.agents.wrap.unit import Unit

#: There while systemd runs the machine (sd_booted(3)).
BOOTED: Final = Path("/run/systemd/system")

#: Seconds that a command to systemd may take.
SYSTEMCTL_WITHIN: Final = 90

#: Where the system's units are, and what only root may read.
UNITS: Final = Path("/etc/systemd/system")
SECRETS: Final = Path("/etc/spinal")

#: Where systemd looks for credentials, for those that the manifest names.
STORE: Final = Path("/etc/credstore")

#: Folders of which a service has its own (PrivateTmp=).
PRIVATE: Final = ("/tmp", "/var/tmp")

_PASSWORD: Final = "spinal-password"
_AUTHORITY: Final = "spinal-ca"


@dataclass
class _Plan:
    """What is to be done."""

    unit: Unit
    #: Path -> content and mode.
    files: dict[Path, tuple[str, int]] = field(default_factory=dict[Path, tuple[str, int]])
    commands: list[list[str]] = field(default_factory=list[list[str]])


@click.command(context_settings=CONTEXT, short_help="Make a service of systemd of a manifest.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--user", metavar="NAME", help="Run as this user (default: one of its own, made by systemd)."
)
@click.option(
    "--write",
    "write",
    multiple=True,
    metavar="DIR",
    help="A folder that it may write to; nothing else is.",
)
@click.option(
    "--credential",
    "credentials",
    multiple=True,
    metavar="NAME=PATH",
    help="File of a {credential: NAME} of the manifest (default /etc/credstore/NAME).",
)
@click.option("--now/--no-start", "start", default=True, help="Start it as well (default), or not.")
@click.option("--print", "prints", is_flag=True, help="Show the unit and touch nothing.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Write into the image of a machine at DIR; nothing is started.",
)
@click.option("--uninstall", is_flag=True, help="Stop it and take it away; its account stays.")
@json_option
@show_home
def install(
    file: Path,
    user: str | None,
    write: tuple[str, ...],
    credentials: tuple[str, ...],
    start: bool,
    prints: bool,
    root: Path | None,
    uninstall: bool,
    as_json: bool,
) -> None:
    """Make a service of systemd of a manifest, which starts with the machine.

    As root it becomes a service of the system, with a user of its own that can write nothing but its
    state folder and --write folders. Else it becomes a service of yours (systemctl --user). It logs
    in with the SPINAL_* variables if they are set, else with an account of the home; passwords are
    handed over by systemd as credentials, and never stand in the unit.

    With --json: {"unit", "wrote": [...], "ran": [...]}.
    """
    if prints and uninstall:
        raise click.UsageError("--print shows what is installed, so not with --uninstall")
    if not prints and root is None and not BOOTED.is_dir():
        raise LocalProtocolError(
            "systemd does not run this machine, so nothing was written: --print shows the unit, "
            "--root DIR writes it into an image"
        )
    found = _checked(file, uninstall)
    system = root is not None or os.geteuid() == 0
    if uninstall:
        _take_away(found.name, system, root, as_json)
        return
    plan = _Planner(found, file, system, root).plan(user, write, _named(credentials), prints)
    if prints:
        click.echo(plan.unit.text(), nl=False)
        return
    plan.commands = _commands(plan.unit.name, system, root, start)
    wrote = [_put(path, text, mode) for path, (text, mode) in plan.files.items()]
    for path in wrote:
        _tell(f"wrote {path}", as_json)
    ran = [_systemctl(argv, as_json) for argv in plan.commands]
    if as_json:
        print_json({"unit": plan.unit.name, "wrote": [str(path) for path in wrote], "ran": ran})
        return
    own = "" if system else "--user "
    if root is None:
        say(f"look: systemctl {own}status {plan.unit.name}")
        say(f"      journalctl {own}--unit {plan.unit.name} --follow")
    if not system:
        say("it runs while you are logged in, and always after: loginctl enable-linger")


def _checked(file: Path, uninstall: bool) -> Manifest:
    from spinal.agents.document import BadDocument
    from spinal.agents.wrap import load

    found = load(file)
    # Credentials are there once systemd starts it.
    missing = [one for one in found.missing() if "the secret {credential:" not in one.text]
    if missing and not uninstall:
        raise BadDocument(missing)
    return found


def _named(said: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in said:
        name, equals, path = one.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise click.UsageError(f"--credential {one!r}: write NAME=PATH")
        found[name] = str(Path(path).absolute())
    return found


class _Planner:
    """Works out what an installation is made of."""

    def __init__(self, manifest: Manifest, file: Path, system: bool, root: Path | None) -> None:
        self._manifest = manifest
        self._file = file.absolute()
        if root is not None and self._file.is_relative_to(root.absolute()):
            # As it will be there.
            self._file = Path("/", self._file.relative_to(root.absolute()))
        self._system = system
        self._root = root

    def plan(
        self, user: str | None, write: Sequence[str], given: Mapping[str, str], prints: bool
    ) -> _Plan:
        """Give the unit and the files beside it.

        An account is made in the home if there is none, unless it is only shown.
        """
        from spinal.agents.wrap import unit as units

        name = self._manifest.name
        said = self._manifest.document.value
        secrets = {
            one: os.environ[one] for one in units.secrets(said, "env") if os.environ.get(one)
        }
        login = self._login(prints)
        variables = _kept(self._system) / f"wrap-{name}.env"
        credentials = {
            one: given.get(one, str(STORE / one)) for one in units.secrets(said, "credential")
        }
        for one in given:
            if one not in credentials:
                raise click.UsageError(
                    f"--credential {one}: the manifest has no {{credential: {one}}}"
                )
        files: dict[Path, tuple[str, int]] = {}
        paths: dict[str, str] = {}
        if self._system:
            for variable, credential in (
                ("SPINAL_PASSWORD_FILE", _PASSWORD),
                ("SPINAL_CA", _AUTHORITY),
            ):
                source = login.pop(variable, None)
                if source is None:
                    continue
                if self._root is not None:
                    # The image has no home of ours.
                    text = Path(source).read_text(encoding="utf-8")
                    source = str(SECRETS / f"wrap-{name}.{credential}")
                    files[Path(source)] = (text, 0o600)
                credentials[credential] = source
                paths[variable] = credential
        for one, path in credentials.items():
            if not prints and self._root is None and not Path(path).is_file():
                raise LocalProtocolError(
                    f"the credential {one} is not at {path}: --credential {one}=PATH"
                )
        runs_as = (user or units.own_user(name)) if self._system else None
        if user is not None and not self._system and user != _me():
            raise click.UsageError("only root can install a service for another user")
        dynamic = self._system and user is None
        if self._system and not prints:
            self._check_place()
        if self._system and not prints and self._root is None:
            self._check_machine(user, write)
        if dynamic and not prints and self._root is None:
            self._check_readable(runs_as or "")
        unit = units.Unit(
            name,
            (*_spinal(), "wrap", "run", str(self._file)),
            runs_as,
            dynamic,
            login,
            str(variables) if secrets else None,
            credentials,
            paths,
            [str(Path(one).absolute()) for one in write],
            _below_homes(self._file, Path(sys.prefix), *map(Path, write)),
            _version(),
        )
        if secrets:
            files[variables] = (units.variables(secrets), 0o600)
        # Last, because it refers to the others.
        files[_units(self._system) / unit.name] = (unit.text(), 0o644)
        return _Plan(unit, {_there(path, self._root): what for path, what in files.items()})

    def _login(self, prints: bool) -> dict[str, str]:
        """Give the SPINAL_* variables that it logs in with."""
        from spinal.bus.errors import HomeError
        from spinal.bus.home import Credentials, Home
        from spinal.bus.registration import tell_server

        place = home_path()
        if place is None and "SPINAL_ADDRESS" in os.environ:
            Credentials.find()
            names = ("ADDRESS", "PASSWORD_FILE", "CA", "SERVER", "DISPATCHER", "UPLOAD")
            found = {f"SPINAL_{one}": os.environ.get(f"SPINAL_{one}", "") for one in names}
            return {name: value for name, value in found.items() if value}
        if not self._system:
            return {"SPINAL_HOME": str(Home.locate(place))}
        try:
            home = Home.find(place)
        except HomeError:
            if not prints:
                raise
            # What is shown then lacks how it logs in.
            return {}
        name = self._manifest.name
        if name not in home.accounts():
            if prints:
                return {"SPINAL_HOME": str(home.path)}
            home.add_account(name, "agent")
            run(tell_server(home, name))
        return dict(home.environment(name))

    def _check_place(self) -> None:
        if any(self._file.is_relative_to(folder) for folder in PRIVATE):
            raise LocalProtocolError(
                f"{self._file} would not be seen, because the service has a /tmp of its own: put it "
                "into /etc/spinal"
            )

    def _check_machine(self, user: str | None, write: Sequence[str]) -> None:
        """Make sure of what would keep systemd from starting it."""
        import pwd

        for folder in write:
            if not Path(folder).is_dir():
                raise LocalProtocolError(
                    f"--write {folder}: there is no such folder: make it first"
                )
        if user is not None:
            try:
                pwd.getpwnam(user)
            except KeyError as exc:
                raise LocalProtocolError(
                    f"there is no user {user} here: useradd --system {user}, or leave --user out"
                ) from exc

    def _check_readable(self, user: str) -> None:
        """Make sure that a user of its own can read what it is made of."""
        for path in (self._file, Path(_spinal()[0])):
            real = path.resolve()
            for part in (real, *real.parents):
                needed = 0o005 if part.is_dir() else 0o004
                if part.is_dir() and part != real:
                    needed = 0o001
                if part.stat().st_mode & needed != needed:
                    raise LocalProtocolError(
                        f"{user} cannot read {path}, because {part} is closed to others: put it into /etc or "
                        "/opt, or say --user"
                    )


def _me() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _config() -> Path:
    said = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(said) if said.startswith("/") else Path("~/.config").expanduser()


def _units(system: bool) -> Path:
    """Say where units are."""
    return UNITS if system else _config() / "systemd/user"


def _kept(system: bool) -> Path:
    """Say where the variables of a unit are, and what an image gets of a home."""
    return SECRETS if system else _config() / "spinal"


def _there(path: Path, root: Path | None) -> Path:
    """Give a path as it is from here, for the machine whose image is at ``root``."""
    return path if root is None else root / path.relative_to("/")


def _spinal() -> list[str]:
    """Give what starts Spinal again as it was started now."""
    first = Path(sys.argv[0])
    if first.name == "spinal" and first.is_file() and os.access(first, os.X_OK):
        return [str(first.absolute())]
    return [sys.executable, "-m", "spinal"]


def _below_homes(*paths: Path) -> bool:
    return any(path.absolute().is_relative_to(top) for path in paths for top in ("/home", "/root"))


def _version() -> int:
    """Give the version of systemd; that of Debian 12 where there is none."""
    from spinal.agents.wrap.unit import Unit

    found = shutil.which("systemctl")
    if found is None:
        return Unit.systemd
    said = subprocess.run(
        [found, "--version"], capture_output=True, text=True, timeout=SYSTEMCTL_WITHIN, check=False
    )
    match = re.match(r"systemd ([0-9]+)", said.stdout)
    return Unit.systemd if match is None else int(match[1])


# -- what is done


def _commands(unit: str, system: bool, root: Path | None, start: bool) -> list[list[str]]:
    if root is not None:
        return [["systemctl", f"--root={root}", "enable", unit]]
    base = ["systemctl"] if system else ["systemctl", "--user"]
    found = [[*base, "daemon-reload"], [*base, "enable", unit]]
    if start:
        # One that runs already takes up what is new.
        found.append([*base, "restart", unit])
    return found


def _take_away(agent: str, system: bool, root: Path | None, as_json: bool) -> None:
    from spinal.agents.wrap.unit import Unit

    unit = Unit(agent, ()).name
    place = _there(_units(system) / unit, root)
    if not place.exists():
        raise LocalProtocolError(f"{unit} is not installed: there is no {place}")
    base = ["systemctl"] if system else ["systemctl", "--user"]
    first = [f"--root={root}", "disable"] if root is not None else ["disable", "--now"]
    ran = [_systemctl([*base, *first, unit], as_json)]
    kept = _there(_kept(system), root)
    # Not with glob(): one agent's name may begin as another's.
    beside = [kept / f"wrap-{agent}.{end}" for end in ("env", _PASSWORD, _AUTHORITY)]
    removed = [place, *(path for path in beside if path.exists())]
    for path in removed:
        path.unlink()
        _tell(f"removed {path}", as_json)
    if root is None:
        ran.append(_systemctl([*base, "daemon-reload"], as_json))
    if as_json:
        print_json({"unit": unit, "removed": [str(path) for path in removed], "ran": ran})
    else:
        say(f"its state folder and its account stay (spinal account remove {agent})")


def _put(path: Path, text: str, mode: int) -> Path:
    from spinal.bus.server.files import write

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    write(path, text.encode(), mode)
    return path


def _systemctl(argv: Sequence[str], as_json: bool) -> str:
    """Run a command to systemd and give it as a line."""
    line = " ".join(argv)
    try:
        done = subprocess.run(
            list(argv), capture_output=True, text=True, timeout=SYSTEMCTL_WITHIN, check=False
        )
    except FileNotFoundError as exc:
        raise LocalProtocolError(f"{argv[0]} is not here: install systemd, or use --print") from exc
    except subprocess.TimeoutExpired as exc:
        raise LocalProtocolError(f"{line}: no answer for {SYSTEMCTL_WITHIN} s") from exc
    if done.returncode:
        last = (
            done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        ).splitlines()[-1]
        raise LocalProtocolError(f"{line}: {last}")
    _tell(f"ran {line}", as_json)
    return line


def _tell(line: str, as_json: bool) -> None:
    if not as_json:
        say(line)
