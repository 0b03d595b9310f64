"""What every server in a child process has in common, whatever its program is."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from . import ports
from .contract import ServerConfig
from .probe import probe
from .told import Told


class Launched(ABC):
    """The part of :class:`~spinal.bus.server.contract.Server` that needs no process.

    Accounts are set and dropped by class methods, because any process that may enter the folder
    can do it, also one that did not start the server.
    """

    #: Name of the kind.
    name: ClassVar[str]
    #: How long it may take until it answers, and to end in good order, in seconds.
    start_within: ClassVar[float]
    stop_within: ClassVar[float]
    #: Accounts of many that it is told of at once.
    lanes: ClassVar[int] = 8

    config: ServerConfig

    # What differs from server to server.

    @classmethod
    @abstractmethod
    async def _set(cls, config: ServerConfig, name: str, password: str) -> None:
        """Make the account, or give it this password."""

    @classmethod
    @abstractmethod
    async def _drop(cls, config: ServerConfig, name: str) -> None:
        """Remove the account and end its streams."""

    @classmethod
    @abstractmethod
    async def _names(cls, config: ServerConfig) -> Collection[str]:
        """Give the names of all accounts."""

    @classmethod
    @abstractmethod
    def place(cls, config: ServerConfig) -> Path:
        """Give the folder that the server itself writes to."""

    @abstractmethod
    async def stop(self, *, hung: bool = False) -> None:
        """End it and wait until its ports are free; one that hangs is not asked, but killed.

        Calling it again does nothing.
        """

    # What does not.

    @classmethod
    async def set_account(cls, config: ServerConfig, name: str, password: str) -> None:
        """Make the account, or give it this password, on the server of that folder.

        Any process that may enter the folder can call it.  Raises :class:`ServerError`.
        """
        cls._told(config).forget(name)
        await cls._set(config, name, password)

    @classmethod
    async def set_accounts(cls, config: ServerConfig, accounts: Mapping[str, str]) -> None:
        """Make many accounts, name to password; those that it has cost next to nothing.

        The same applies as to :meth:`set_account`.
        """
        told = cls._told(config)
        left = iter(told.news(accounts, set(await cls._names(config))).items())

        async def lane() -> None:
            for name, password in left:
                await cls._set(config, name, password)
                told.note(name, password)

        lanes = [asyncio.ensure_future(lane()) for _ in range(cls.lanes)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for each in lanes:
                each.cancel()
            await asyncio.wait(lanes)

    @classmethod
    async def drop_account(cls, config: ServerConfig, name: str) -> None:
        """Remove the account and end its streams; the same applies as to :meth:`set_account`."""
        cls._told(config).forget(name)
        await cls._drop(config, name)

    @classmethod
    def _told(cls, config: ServerConfig) -> Told:
        return Told(cls.place(config) / "told")

    async def add_account(self, name: str, password: str) -> None:
        """Make the account, or give it this password.  It can log in when this returns."""
        await self.set_account(self.config, name, password)

    async def remove_account(self, name: str) -> None:
        """Remove the account and end its streams.  Unknown names are no error."""
        await self.drop_account(self.config, name)

    async def probe(self, timeout: float = 3.0) -> None:
        """Raise :class:`ServerError` unless a new stream is answered with features in time."""
        host = ports.reachable(self.config.listen)
        await probe(host, self.config.ports.c2s, self.config.domain, timeout)

    async def __aenter__(self) -> Self:
        """Give the server itself; :meth:`stop` is called at the end of the block."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
