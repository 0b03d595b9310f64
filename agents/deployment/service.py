"""One service on this machine, and every change of it.

Theory of operation.  Changes come one at a time.  A change makes a release ready beside the others,
begins it, and commits: first the state, which is the truth, then the link ``current``.  Until the
commit everything can be taken back, and is, when something fails or the caller cancels: the new
release is ended and removed, and the old one runs on or is started again.  From the commit on
nothing is taken back; what remains to be done is also done by the next life.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog

from spinal.protocols import Json

from ..errors import Refused, one_line
from ..secret import Secret
from . import layout, state, unpack
from .command import Launcher
from .config import Config
from .errors import DeployFailed
from .finish import finish
from .instance import Instance
from .kinds import Kind, Site, Tell
from .layout import Folder
from .logs import LogFile, older
from .ports import Ports
from .spec import Spec
from .state import Deployed, State

log = structlog.get_logger()

#: Seconds that whoever has the port of a service, such as its last life, may take to leave it.
PORT_WITHIN: Final = 3.0


@dataclass(frozen=True, slots=True)
class Means:
    """What all services of a machine share."""

    config: Config
    kinds: Mapping[str, Kind]
    launcher: Launcher
    ports: Ports


class Service:
    """A service by name: what is known of it, and what runs.

    Args:
        name: its name, which fits ``spec.NAME``.
        folder: where it is.
        means: what it shares with others.
    """

    def __init__(self, name: str, folder: Folder, means: Means) -> None:
        self.name = name
        self.folder = folder
        self._means = means
        self._known = state.load(folder)
        self._instance: Instance | None = None
        #: State of one that is wanted and does not run, and why.
        self._held = ("waiting", "")
        self._change = asyncio.Lock()

    @property
    def wanted(self) -> bool:
        """Whether it is to run here."""
        return self._known.wanted

    @property
    def generation(self) -> int:
        """The highest that is known here."""
        return self._known.generation

    @property
    def forgettable(self) -> bool:
        """Whether nothing of it is worth keeping."""
        if self._known.wanted or self._known.generation or self._instance is not None:
            return False
        return not self.folder.data.is_dir() or not any(self.folder.data.iterdir())

    @property
    def running(self) -> bool:
        """Whether it runs and is well."""
        return self._instance is not None and self._instance.state == "running"

    # -- life

    async def resume(self) -> None:
        """Go on with what a former life left; it is started and kept, whether well or not."""
        async with self._change:
            await asyncio.to_thread(self._clean)
            if not self._known.wanted or self._instance is not None:
                return
            spec = self._spec(self._known.current)
            port = spec.port
            if port == "auto":
                # Whoever asked a dispatcher was told this one.
                await self._means.ports.wait(self._known.port, PORT_WITHIN)
                port = self._means.ports.take(self._known.port)
                if port != self._known.port:
                    await asyncio.to_thread(self._save, replace(self._known, port=port))
            self._instance = self._make(self._known.current, spec, port)
            self._instance.keep()

    def hold(self, status: str, why: str) -> None:
        """Note why it is not started: ``superseded`` by a newer generation, or it ``failed``."""
        self._held = status, why

    async def close(self) -> None:
        """End what runs; the next life starts it again."""
        async with self._change:
            if self._instance is not None:
                instance, self._instance = self._instance, None
                await instance.stop()

    def _clean(self) -> None:
        """Finish what a former life may have left half-way."""
        known = self._known
        releases = self.folder.releases
        for path in [*releases.iterdir()] if releases.is_dir() else []:
            # One that was put aside to be made anew is as good as what may be half of it.
            if path.name.endswith(".old") and path.name.removesuffix(".old") in known.releases:
                whole = path.with_suffix("")
                unpack.remove(whole)
                path.rename(whole)
            elif path.name not in known.releases:
                unpack.remove(path)
        if known.wanted:
            self.folder.make()
            if self.folder.current.resolve() != self.folder.release(known.current).resolve():
                self.folder.switch(known.current)

    # -- changes

    async def deploy(
        self, spec: Spec, arguments: Mapping[str, Json], generation: int, tell: Tell
    ) -> bool:
        """Have a release run; false if it did already.

        Cancelled or failed, what ran before runs again when this raises.

        Raises:
            Refused: the generation is older than the one here, or the release may not be run.
            DeployFailed: it cannot be had, or is not well in time.
        """
        async with self._turn(tell):
            if generation < self._known.generation:
                raise Refused(
                    f"{self.name} has generation {self._known.generation} here, "
                    f"and {generation} is older"
                )
            if self._known.wanted and self._spec(self._known.current) == spec:
                if self._instance is not None:
                    await self._instance.settled()
                changed = not self.running
                if generation != self._known.generation:
                    fresh = replace(self._known, generation=generation)
                    await asyncio.to_thread(self._save, fresh)
                if changed:
                    await self._start_again(tell)
                return changed
            # Before anything is stopped for a release that could not be started.
            await asyncio.to_thread(self._env, spec)
            await asyncio.to_thread(self._make_folder)
            number = self._known.number + 1
            # Given once, even if it comes to nothing.
            self._known = replace(self._known, number=number)
            release = layout.release_name(number, spec.release.sha256)
            path = self.folder.release(release)
            try:
                await self._kind(spec).prepare(spec, path, tell)
                deployed = Deployed(dict(arguments), time.time())
                releases = {**self._known.releases, release: deployed}
                await self._switch(release, spec, generation, releases, tell)
            except BaseException:
                if self._known.current != release:
                    await finish(self._drop(release))
                raise
            return True

    async def roll_back(self, to: str | None, tell: Tell) -> None:
        """Have an earlier release run, as it was deployed.

        Raises:
            Refused: it is not there, or runs already.
            DeployFailed: it is not well in time.
        """
        async with self._turn(tell):
            known = self._check_wanted()
            if to is None:
                to = layout.before(known.releases, known.current)
                if to is None:
                    raise Refused(f"{self.name} has no release before {known.current}")
            if to not in known.releases:
                raise Refused(f"{self.name} has no release {to!r}: {_listed(known.releases)}")
            if to == known.current and self.running:
                raise Refused(f"{self.name} runs release {to} already")
            await self._switch(to, self._spec(to), known.generation, known.releases, tell)

    async def restart(self, tell: Tell) -> None:
        """Stop and start it.

        Raises:
            Refused: it is not here.
            DeployFailed: it is not well in time; it is tried again, with back-off.
        """
        async with self._turn(tell):
            self._check_wanted()
            await self._start_again(tell)

    async def undeploy(self, below: int | None, purge: bool, tell: Tell) -> bool:
        """End it and remove its releases; false if there was nothing to end.

        Args:
            below: only if its generation is lower; and remember that such are not wanted.
            purge: remove its data as well.
            tell: told what is done.

        Once begun it is done to the end, also when cancelled.
        """
        async with self._turn(tell):
            known = self._known
            if below is not None and known.generation >= below:
                return False
            had = known.wanted
            generation = 0 if below is None else max(known.generation, below - 1)
            await finish(self._undeploy(generation, purge, tell))
            return had

    async def _undeploy(self, generation: int, purge: bool, tell: Tell) -> None:
        # First, so that a life that ends in the middle is not followed by one that starts it.
        fresh = State(generation=generation, number=self._known.number)
        if self.folder.path.is_dir():
            await asyncio.to_thread(self._save, fresh)
        instance, self._instance = self._instance, None
        if instance is not None:
            tell("stop", None, None)
            await instance.stop()
            self._give_back(instance)
        await asyncio.to_thread(self._remove, purge)

    def _remove(self, purge: bool) -> None:
        self.folder.current.unlink(missing_ok=True)
        unpack.remove(self.folder.releases)
        unpack.remove(self.folder.logs)
        if purge:
            unpack.remove(self.folder.data)

    # -- how

    def _turn(self, tell: Tell) -> asyncio.Lock:
        if self._change.locked():
            tell("wait for another change", None, None)
        return self._change

    def _check_wanted(self) -> State:
        if not self._known.wanted:
            raise Refused(f"there is no service {self.name!r} here")
        return self._known

    async def _switch(
        self,
        release: str,
        spec: Spec,
        generation: int,
        releases: Mapping[str, Deployed],
        tell: Tell,
    ) -> None:
        """Have a release that is on disk run in place of the present one."""
        old = self._instance
        beside = old is None or spec.port == "auto"
        port = self._means.ports.take() if spec.port == "auto" else spec.port
        fresh = self._make(release, spec, port)
        try:
            if old is not None and not beside:
                tell("stop the old one", None, None)
                await old.stop()
            tell("start", None, None)
            await fresh.begin()
            tell("healthy", None, None)
        except BaseException:
            await finish(self._take_back(fresh, old))
            raise
        gone = layout.surplus(releases, release, spec.keep)
        kept = {name: one for name, one in releases.items() if name not in gone}
        known = State(generation, True, self._known.number, release, port, kept)
        await finish(self._commit(fresh, old, known, gone, tell))

    async def _commit(
        self, fresh: Instance, old: Instance | None, known: State, gone: Sequence[str], tell: Tell
    ) -> None:
        before = self._known
        try:
            await asyncio.to_thread(self._save, known)
            await asyncio.to_thread(self.folder.switch, known.current)
        except OSError as exc:
            if self._known is not before:
                await asyncio.to_thread(self._save, before)
            await fresh.stop()
            await self._take_back(fresh, old)
            raise DeployFailed(f"cannot switch: {exc.strerror or exc}") from exc
        self._instance = fresh
        fresh.keep()
        tell("switched", None, None)
        if old is not None:
            await old.stop()
            self._give_back(old)
        for release in gone:
            try:
                await self._drop(release)
            except OSError as exc:
                log.warning("release_not_removed", service=self.name, error=str(exc))
        log.info(
            "service_switched",
            service=self.name,
            release=known.current,
            generation=known.generation,
            port=known.port,
        )

    async def _take_back(self, fresh: Instance, old: Instance | None) -> None:
        """Be as before: the new one has ended, the old one goes on or is started again."""
        self._give_back(fresh)
        if old is not None and old.state == "stopped":
            old.keep()

    async def _start_again(self, tell: Tell) -> None:
        """Stop and start the present release; it is kept whatever comes of it."""
        known, instance = self._known, self._instance
        tell("start", None, None)
        if instance is None:
            spec = self._spec(known.current)
            port = self._means.ports.take(known.port) if spec.port == "auto" else spec.port
            instance = self._instance = self._make(known.current, spec, port)
            if port != known.port:
                await finish(asyncio.to_thread(self._save, replace(known, port=port)))
        else:
            await instance.stop()
        try:
            await instance.begin()
        finally:
            instance.keep()
        tell("healthy", None, None)

    def _give_back(self, instance: Instance) -> None:
        if instance.spec.port == "auto":
            self._means.ports.give_back(instance.port)

    async def _drop(self, release: str) -> None:
        """Remove a release, and what it wrote."""

        def remove() -> None:
            unpack.remove(self.folder.release(release))
            file = self.folder.log(release)
            file.unlink(missing_ok=True)
            older(file).unlink(missing_ok=True)

        await asyncio.to_thread(remove)

    def _make_folder(self) -> None:
        self.folder.make()
        user = self._means.config.user
        if user is not None and os.geteuid() == 0:
            os.chown(self.folder.data, user.uid, user.gid)

    def _save(self, fresh: State) -> None:
        fresh.save(self.folder)
        self._known = fresh

    def _spec(self, release: str) -> Spec:
        return Spec.of(self._known.releases[release].arguments)

    def _kind(self, spec: Spec) -> Kind:
        return self._means.kinds[spec.release.kind]

    def _make(self, release: str, spec: Spec, port: int | None) -> Instance:
        log_file = LogFile(self.folder.log(release), self._means.config.limits.log)
        make = partial(self._site, release, spec, port)
        renew = partial(self._renew, release, spec)
        kind, launcher = self._kind(spec), self._means.launcher
        return Instance(spec, release, port, make, renew, kind, launcher, log_file)

    async def _renew(self, release: str, spec: Spec) -> None:
        """Make a release anew in place of one that may have been damaged.

        Raises:
            Refused, DeployFailed: it cannot be had; what was there still is.
        """
        path = self.folder.release(release)
        # No name of a release, so that a life that ends here is cleaned up by the next.
        aside = path.with_name(f"{release}.old")

        def put_aside() -> None:
            unpack.remove(aside)
            if path.exists():
                path.rename(aside)

        def put_back() -> None:
            if aside.exists():
                unpack.remove(path)
                aside.rename(path)

        try:
            # Cancelled or not, it is aside when this is over.
            await finish(asyncio.to_thread(put_aside))
            await self._kind(spec).prepare(spec, path, lambda step, done, total: None)
        except BaseException:
            await finish(asyncio.to_thread(put_back))
            raise
        await finish(asyncio.to_thread(unpack.remove, aside))

    def _site(self, release: str, spec: Spec, port: int | None) -> Site:
        """Give where a release runs, with its secrets; reads files."""
        # Without links: what was begun in a folder stays in it.
        folder = self.folder.path.resolve()
        return Site(
            spec, release, folder / "releases" / release, folder / "data", port, self._env(spec)
        )

    def _env(self, spec: Spec) -> dict[str, str]:
        secrets = self._means.config.secrets
        return {
            name: secrets.read(value) if isinstance(value, Secret) else value
            for name, value in spec.env
        }

    # -- what is told

    def row(self) -> dict[str, Json]:
        """Give how it goes, in short."""
        known, instance = self._known, self._instance
        status, why = self._held if instance is None else (instance.state, instance.ailment)
        if not known.wanted:
            status, why = "undeployed", ""
        return {
            "service": self.name,
            "state": status,
            "why": why,
            "release": known.current,
            "generation": known.generation,
            "port": known.port,
            "pid": None if instance is None else instance.pid,
            "since": None if instance is None else instance.since,
            "restarts": 0 if instance is None else instance.restarted,
        }

    def page(self) -> dict[str, Json]:
        """Give all that is known of it."""
        known, instance = self._known, self._instance
        releases: list[Json] = [
            {
                "release": name,
                "url": one_line(deployed.arguments["release"]["url"], 200),
                "deployed": deployed.at,
                "current": name == known.current,
            }
            for name, deployed in sorted(
                known.releases.items(), key=lambda one: layout.number_of(one[0])
            )
        ]
        restarts: list[Json] = []
        failures = 0
        if instance is not None:
            restarts = [{"at": one.at, "why": one.why} for one in instance.restarts]
            failures = instance.failures
        health: Json = None
        if known.wanted:
            said = self._spec(known.current).health
            health = {
                "how": said.how,
                "what": list(said.what),
                "every": said.every,
                "fail_after": said.fail_after,
                "well": self.running and not (instance and instance.ailment),
            }
        return {
            **self.row(),
            "failures": failures,
            "renewed": None if instance is None else instance.renewed,
            "health": health,
            "restarted": restarts,
            "releases": releases,
            "folder": str(self.folder.path),
        }

    def log_of(self, release: str | None) -> LogFile:
        """Give the log of a release, by default of the current one.

        Raises:
            Refused: there is none.
        """
        known = self._known
        instance = self._instance
        if release is None or release == known.current:
            self._check_wanted()
            if instance is not None:
                return instance.log
            release = known.current
        if release not in known.releases:
            raise Refused(f"{self.name} has no release {release!r}: {_listed(known.releases)}")
        return LogFile(self.folder.log(release), self._means.config.limits.log)


def _listed(releases: Mapping[str, object]) -> str:
    return f"there are {', '.join(releases)}" if releases else "there are none"
