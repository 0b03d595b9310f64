"""``spinal up``: server and dispatcher in the foreground, kept running."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from spinal import __version__

from .common import CONTEXT, home_path, json_option, print_json, say, show_home, start_logging

if TYPE_CHECKING:
    from spinal.agents.provider.settings import Account
    from spinal.bus.home import Home

    from .supervisor import Part


@click.command(context_settings=CONTEXT)
@click.option(
    "--server",
    metavar="KIND",
    help="embedded (default), prosody, ejabberd, or HOST[:PORT] of a server that runs already; "
    "several in one argument, separated by spaces, if it is a cluster (docs/servers.md).",
)
@click.option("--listen", metavar="ADDR", help="Address to listen on (default 127.0.0.1).")
@click.option("--domain", metavar="D", help="Domain of the bus; chosen once per home.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Certificate authority of a server that runs already, if the system does not know it.",
)
@click.option(
    "--store",
    metavar="URL",
    help="Where jobs are kept: postgresql://USER@HOST/DATABASE, which several dispatchers may "
    "share, or sqlite:////PATH (default: a file of the home). Its password is best left out of the "
    "URL: libpq finds it in ~/.pgpass, $PGPASSFILE, or the file of ?passfile=/PATH.",
)
@click.option(
    "--providers/--no-providers",
    "rents",
    default=True,
    help="Whether to run the provider agents of providers.yaml here (docs/providers.md).",
)
@json_option
@show_home
def up(
    server: str | None,
    listen: str | None,
    domain: str | None,
    ca: Path | None,
    store: str | None,
    rents: bool,
    as_json: bool,
) -> None:
    """Start the platform and keep it running until Ctrl-C.

    Makes the home if there is none. A part that dies or hangs is started again. Given again with
    another --server, --listen or --store, the home changes to it; accounts and ports stay.

    A further dispatcher has a home of its own: --server with the address of the first one's server,
    --store with the same PostgreSQL, and an account with the role dispatcher (docs/dispatchers.md).

    With --json: one object per line, the first {"event": "ready", "domain", "xmpp", "home"}, then
    "died", "restarted", "crash-loop" with "part", and "stopped". Logs go to stderr.
    """
    start_logging("warning" if sys.stderr.isatty() else "info")
    from spinal.bus.home import Home, NoHome

    place = home_path()
    wanted = {"server": server, "listen": listen, "domain": domain, "store": store}
    try:
        home = Home.find(place)
    except NoHome:
        home = Home.create(place, **_fresh(wanted), authority=ca)
    else:
        home = adapted(home, wanted, ca)
    with home.hold():
        asyncio.run(_up(home, rents, as_json))


def _fresh(wanted: Mapping[str, str | None]) -> dict[str, Any]:
    """Give what a new home is made with."""
    from spinal.bus.errors import HomeError
    from spinal.bus.home import MANAGED, split_endpoints

    given = {key: text for key, text in wanted.items() if text is not None}
    server = given.get("server")
    if server is not None and server not in MANAGED and "domain" not in given:
        host, _ = split_endpoints(server, "--server: ")[0]
        if host.replace(".", "").isdigit() or ":" in host or "." not in host:
            raise HomeError(
                f"--server {server} is no kind ({', '.join(MANAGED)}) and no domain: give the "
                f"domain that this server serves with --domain"
            )
        given["domain"] = host
    return given


def adapted(home: Home, wanted: Mapping[str, str | None], ca: Path | None) -> Home:
    """Bring a home that exists to what was asked for now.

    Raises :class:`~spinal.bus.errors.HomeError` for what cannot be changed.
    """
    from spinal.bus.errors import HomeError
    from spinal.bus.home import MANAGED, split_endpoints

    domain, server, listen = wanted["domain"], wanted["server"], wanted["listen"]
    store = wanted.get("store")
    if domain is not None and domain != home.domain:
        raise HomeError(
            f"the home {home.path} has the domain {home.domain} and keeps it: choose another "
            f"--home for {domain}"
        )
    if (
        server not in (None, home.server)
        or listen not in (None, home.listen)
        or store not in (None, home.store)
    ):
        pid = home.holder()
        if pid is not None:
            raise HomeError(f"{home.path} is up (pid {pid}): stop it before you change it")
        if server is not None and server not in MANAGED:
            split_endpoints(server, "--server: ")
        home = home.changed(server=server, listen=listen, store=store)
    return home if ca is None else home.with_authority(ca)


async def _up(home: Home, rents: bool, as_json: bool) -> None:
    from .supervisor import Platform

    emit: Callable[[str, Mapping[str, object]], None]
    emit = _emit_json if as_json else _emit_text
    platform = Platform(parts(home), emit, Providers(home) if rents else None)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    try:
        if await _until(stopped, _start(home, platform)):
            host, port = home.endpoint
            emit(
                "ready",
                {"domain": home.domain, "xmpp": f"{host}:{port}", "home": str(home.path)},
            )
            if not as_json:
                click.echo(welcome(home))
            await _until(stopped, platform.watch())
        if not as_json and sys.stderr.isatty():
            say("stopping ...")
    finally:
        await platform.stop()
    emit("stopped", {})


async def _until(stopped: asyncio.Event, work: Any) -> bool:
    """Run the work until it ends or we are to stop; tells whether it ended.

    Raises what the work raises.
    """
    waiting = asyncio.ensure_future(stopped.wait())
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait([waiting, working], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (waiting, working):
            task.cancel()
        await asyncio.gather(waiting, working, return_exceptions=True)


async def _start(home: Home, platform: Any) -> None:
    from spinal.bus import Client

    await platform.start()
    # Ready means that somebody else can use it, so we try as somebody else does.
    async with Client(home=home.path) as bus:
        await bus.options(timeout=10).agents()


def parts(home: Home) -> list[Part]:
    """Say what has to run for a home.

    Raises :class:`~spinal.bus.errors.HomeError` if a server that runs elsewhere needs accounts
    that nobody has put in yet.
    """
    from .supervisor import ChildProcess, ManagedServer

    if not home.managed:
        for name in (home.dispatcher_account, "owner"):
            home.credentials(name)  # Says how to put it in.
    dispatcher = ChildProcess(
        "dispatcher",
        [sys.executable, "-m", "spinal.dispatcher", "--home", str(home.path)],
        os.environ,
    )
    if home.server in ("prosody", "ejabberd"):
        server = ManagedServer(
            home.server,
            home.server_config(),
            lambda: {name: home.password(name) for name in home.accounts()},
        )
        return [server, dispatcher]
    return [dispatcher]


#: What people call the agent of an account, before the account's name.
PROVIDER: Final = "provider "


class Providers:
    """The provider agents of a home's accounts, as ``providers.yaml`` says now.

    Raises:
        BadDocument: it has mistakes; later ones are logged, and what it said before holds.
    """

    def __init__(self, home: Home) -> None:
        from spinal.agents.provider.market import Market

        self._home = home
        self._market = Market(home.path)

    def wanted(self) -> Mapping[str, object]:
        """Give the accounts, by what people call their agents."""
        home = self._home
        return {
            f"{PROVIDER}{name}": account
            for name, account in self._market().accounts.items()
            # A server that runs elsewhere knows only the accounts that somebody has made there.
            if home.managed or account.agent in home.accounts()
        }

    def make(self, name: str) -> Part:
        """Make the part that runs one of them."""
        from .supervisor import ChildProcess

        argv = [sys.executable, "-m", "spinal", "--home", str(self._home.path), "provider", "run"]
        return ChildProcess(name, [*argv, name.removeprefix(PROVIDER)], os.environ)

    async def over(self, name: str, made_by: object) -> None:
        """End the machines of a local account: what ``spinal up`` started, it leaves nothing of."""
        from spinal.agents.provider.settings import Account

        assert isinstance(made_by, Account)
        if made_by.driver != "local":
            return
        folder = Path(made_by.word("folder"))
        # Each machine has a folder there; without one, the driver need not be loaded.
        if folder.is_dir() and any(one.is_dir() for one in folder.iterdir()):
            await asyncio.to_thread(_end_machines, made_by)


def _end_machines(account: Account) -> None:
    from libcloud.common.types import LibcloudError

    from spinal.agents.provider.vendors.local import Local
    from spinal.protocols import SpinalError

    try:
        Local(account).connect("").end_all()
    except (LibcloudError, OSError) as exc:
        raise SpinalError(f"machines of {account.name} may still be there: {exc}") from exc


def _emit_json(event: str, detail: Mapping[str, object]) -> None:
    print_json({"event": event, **detail})


def _emit_text(event: str, detail: Mapping[str, object]) -> None:
    if event in ("died", "crash-loop"):
        word = "keeps dying" if event == "crash-loop" else "is started again"
        say(f"spinal: the {detail['part']} {word}: {detail['reason']}")
    elif event == "restarted":
        say(f"spinal: the {detail['part']} is back")


def welcome(home: Home) -> str:
    """Say that it is up and what to try next."""
    from spinal.bus.home import masked

    host, port = home.endpoint
    other = "" if home.path == type(home).locate() else f" --home {home.path}"
    width = max(27, 18 + len(other))
    rows = (
        (f"spinal{other} agent run FILE.py", "serve operations"),
        (f"spinal{other} ops", "see what can be called"),
        (f"spinal{other} call /op key=value", "call it"),
    )
    lines = [
        f"Spinal {__version__} is up: {home.domain} at {host}:{port} ({home.server})",
        f"Home: {home.path}",
        *([f"Jobs: {masked(home.store)}"] if home.store_url else []),
        "Try in another terminal:",
        *(f"  {command:{width}}  {about}" for command, about in rows),
        "Ctrl-C stops it.",
    ]
    return "\n".join(lines)
