"""The three kinds of releases: how each is made ready on disk, and what starts it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

from .. import process
from ..errors import CommandFailed, Refused, one_line
from ..process import Guard
from . import unpack
from .command import PATH, Command
from .config import Config
from .errors import DeployFailed
from .fetch import Fetcher
from .layout import write
from .spec import Release, Spec, fill, url_name

T = TypeVar("T")

#: Seconds that a program of ours may take: to make an environment, install a wheel, pull an image.
WITHIN: Final = 1200.0
#: Seconds that an engine may take to remove a container.
REMOVE_WITHIN: Final = 30.0

#: Told what is done now, and how much of it if that is known.
Tell = Callable[[str, float | None, float | None], None]


@dataclass(frozen=True, slots=True)
class Site:
    """Where and how a release runs."""

    spec: Spec
    #: Its name on disk.
    name: str
    folder: Path
    data: Path
    port: int | None
    #: With secrets read.
    env: Mapping[str, str] = field(repr=False)


class Kind(Protocol):
    """One kind of releases."""

    async def prepare(self, spec: Spec, folder: Path, tell: Tell) -> None:
        """Bring a release onto this machine, in a folder that is made.

        Cancelled or failed, it may leave the folder behind.

        Raises:
            Refused: it may not be had, or is not what it should be.
            DeployFailed: it cannot be had now.
        """
        ...

    def command(self, site: Site) -> Command:
        """Give what starts a release."""
        ...

    def check(self, site: Site) -> Command:
        """Give what tells by its exit code whether it is well, where the service says so."""
        ...

    async def clear(self, site: Site) -> None:
        """Remove what its process may have left running when it was killed."""
        ...


class Archive:
    """A tar or ZIP file with the program in it."""

    def __init__(self, config: Config, fetcher: Fetcher, guard: Guard | None) -> None:
        self._config = config
        self._fetcher = fetcher
        self._guard = guard

    async def prepare(self, spec: Spec, folder: Path, tell: Tell) -> None:
        """Fetch and unpack it."""
        file = await _fetch(self._fetcher, spec.release, tell)
        tell("unpack", None, None)
        name = url_name(spec.release.url)
        limits = self._config.limits
        bounds = unpack.Bounds(limits.unpacked, limits.files)
        try:
            await in_thread(lambda check: unpack.unpack(file, name, folder, bounds, check))
        except OSError as exc:
            raise DeployFailed(f"cannot unpack {name!r}: {exc.strerror or exc}") from exc

    def command(self, site: Site) -> Command:
        """Give the program in its folder."""
        return self._here(site, site.spec.start)

    def check(self, site: Site) -> Command:
        """Give the check in the same folder."""
        return self._here(site, site.spec.health.what)

    def _here(self, site: Site, argv: tuple[str, ...]) -> Command:
        values = _values(site, str(site.folder), str(site.data))
        path = f"{site.folder / 'bin'}:{PATH}"
        env = {"PATH": path, "HOME": str(site.data), "LANG": "C.UTF-8"}
        env |= {name: fill(text, values) for name, text in site.env.items()}
        filled = tuple(fill(argument, values) for argument in argv)
        return Command(filled, env, site.folder, self._config.user)

    async def clear(self, site: Site) -> None:
        """Nothing outlives its process group and our guard."""


class Wheel(Archive):
    """A Python package, in an environment of its own."""

    async def prepare(self, spec: Spec, folder: Path, tell: Tell) -> None:
        """Fetch it, and install it with pip; no code of it runs."""
        fetched = await _fetch(self._fetcher, spec.release, tell)
        name = url_name(spec.release.url)
        limits = self._config.limits
        bounds = unpack.Bounds(limits.unpacked, limits.files)
        await asyncio.to_thread(unpack.survey, fetched, name, bounds)
        tell("make an environment", None, None)
        # Where it will be: programs in an environment know its path.
        await _run([sys.executable, "-I", "-m", "venv", str(folder)], self._guard)
        tell("install", None, None)
        # pip goes by the name of the file.
        wheel = folder / name
        await asyncio.to_thread(shutil.copyfile, fetched, wheel)
        try:
            await _run(pip_argv(folder, wheel, self._config.index), self._guard)
        finally:
            wheel.unlink(missing_ok=True)


def pip_argv(folder: Path, wheel: Path, index: str) -> list[str]:
    """Give what installs a wheel into the environment in a folder.

    Never from a source distribution, because making a wheel out of one runs its code.
    """
    where = ["--index-url", index] if index else ["--no-index"]
    options = ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--isolated"]
    only = ["--only-binary", ":all:"]
    python = str(folder / "bin" / "python")
    return [python, "-I", "-m", "pip", "install", *options, *where, *only, "--", str(wheel)]


class Image:
    """A container image, run by docker or podman in the foreground."""

    def __init__(self, config: Config, guard: Guard | None) -> None:
        self._config = config
        self._guard = guard

    @property
    def _engine(self) -> str:
        engine = self._config.engine
        if not engine:
            raise Refused("this agent runs no images: its file names no engine")
        found = shutil.which(engine)
        if found is None:
            raise Refused(f"this machine has no {engine!r}, which this agent runs images with")
        return found

    async def prepare(self, spec: Spec, folder: Path, tell: Tell) -> None:
        """Have the engine pull it; the digest in its name is its hash."""
        tell("pull", None, None)
        await _run([self._engine, "pull", "--quiet", spec.release.url], self._guard)
        folder.mkdir()

    def command(self, site: Site) -> Command:
        """Give what runs the image."""
        values = _values(site, "/", "/data")
        lines = [f"{name}={fill(text, values)}\n" for name, text in sorted(site.env.items())]
        if odd := [line for line in lines if line.count("\n") > 1 or "\r" in line]:
            name = odd[0].partition("=")[0]
            raise Refused(f"env.{name}: a variable of a container may have one line only")
        write(variables(site), "".join(lines).encode())
        return Command(image_argv(self._engine, site, self._config), _engine_env(), site.folder)

    def check(self, site: Site) -> Command:
        """Give what runs the check in the container."""
        values = _values(site, "/", "/data")
        what = (fill(argument, values) for argument in site.spec.health.what)
        argv = (self._engine, "exec", container(site), *what)
        return Command(argv, _engine_env(), site.folder)

    async def clear(self, site: Site) -> None:
        """Remove the container, which the engine and not we keeps alive."""
        variables(site).unlink(missing_ok=True)
        argv = [self._engine, "rm", "--force", container(site)]
        # That there is none is how it should be.
        await _run(argv, self._guard, REMOVE_WITHIN, check=False)


def container(site: Site) -> str:
    """Name the container of a release."""
    return f"spinal-{site.spec.service}-{site.name}"


def variables(site: Site) -> Path:
    """Give the file that a container's variables are read from.

    Not the environment of the engine's program, which would heed some of them with our rights.
    """
    return site.folder / ".env"


def image_argv(engine: str, site: Site, config: Config) -> tuple[str, ...]:
    """Give what runs an image."""
    argv = [engine, "run", "--rm", "--name", container(site), "--pull", "never", "--init"]
    argv += ["--security-opt", "no-new-privileges", "--volume", f"{site.data}:/data"]
    argv += ["--env-file", str(variables(site))]
    if site.port is not None:
        argv += ["--publish", f"{config.publish}:{site.port}:{site.port}"]
    if config.user is not None:
        argv += ["--user", f"{config.user.uid}:{config.user.gid}"]
    if config.limits.memory is not None:
        argv += ["--memory", str(config.limits.memory)]
    values = _values(site, "/", "/data")
    return (*argv, site.spec.release.url, *(fill(one, values) for one in site.spec.start))


def _engine_env() -> dict[str, str]:
    # Where the engine finds its daemon and its images; nothing else of ours.
    names = ("HOME", "XDG_RUNTIME_DIR", "DOCKER_HOST", "CONTAINER_HOST", "DOCKER_CONFIG")
    return {"PATH": PATH, **{name: os.environ[name] for name in names if name in os.environ}}


def kinds(config: Config, fetcher: Fetcher, guard: Guard | None) -> dict[str, Kind]:
    """Give all kinds, by their name in a service file."""
    return {
        "archive": Archive(config, fetcher, guard),
        "wheel": Wheel(config, fetcher, guard),
        "image": Image(config, guard),
    }


def _values(site: Site, release: str, data: str) -> dict[str, str]:
    return {"port": str(site.port), "release": release, "data": data}


async def _fetch(fetcher: Fetcher, release: Release, tell: Tell) -> Path:
    tell("fetch", None, None)
    file = await fetcher.fetch(
        release.url, release.sha256, lambda size, total: tell("fetch", size, total)
    )
    tell("hash is right", None, None)
    return file


async def _run(
    argv: list[str], guard: Guard | None, timeout: float = WITHIN, *, check: bool = True
) -> None:
    try:
        await process.run(
            argv, timeout=timeout, cwd="/", env=_engine_env(), check=check, guard=guard
        )
    except (CommandFailed, TimeoutError) as exc:
        raise DeployFailed(one_line(str(exc), 500)) from exc


class _Stopped(Exception):
    """Ends work in a thread that nobody waits for."""


async def in_thread(work: Callable[[Callable[[], None]], T]) -> T:
    """Run work in a thread that can be cancelled.

    It is handed a function that raises once this is cancelled, and has ended when this returns.
    """
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise _Stopped

    task = asyncio.ensure_future(asyncio.to_thread(work, check))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise
