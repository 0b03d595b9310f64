"""What the five have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

from .ledger import Ledger, Machine
from .wire import Ask, Reply, Request, View

#: The one credential that is right: token, access key id or password.
TOKEN: Final = "spinal-test-token"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of a vendor: HTTP status, code and words."""

    status: int
    code: str
    said: str


@dataclass(slots=True)
class Settings:
    """What can be set while a vendor runs."""

    #: Seconds from accepted to running.
    boot: float = 0.5
    #: How many machines the account may have at a time.
    limit: int = 25
    #: How many machines of (region, type) there is room for; "*" is any.
    room: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])


class Vendor(ABC):
    """One cloud as its API shows it."""

    name: ClassVar[str]
    #: The vendor's own errors, by the kind of fault.
    refusals: ClassVar[Mapping[str, Refusal]]
    #: Whether its lists of sizes have prices.
    prices: ClassVar[bool] = True

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.ledger = Ledger()

    @abstractmethod
    def read(self, request: Request) -> Ask:
        """Say what a request is for; ValueError if it cannot be read."""

    @abstractmethod
    def knows(self, request: Request) -> bool:
        """Say whether it carries the right credential."""

    @abstractmethod
    async def answer(self, request: Request, ask: Ask, view: View) -> Reply:
        """Carry it out."""

    @abstractmethod
    def refuse(self, refusal: Refusal, ask: Ask, headers: Mapping[str, str]) -> Reply:
        """Say an error as the vendor does."""

    async def reset(self) -> None:
        """Forget everything."""
        self.ledger = Ledger()

    def full(self, ask: Ask) -> str:
        """Say why there is no room for one more, as a kind of fault, or nothing."""
        living = self.ledger.living(self.ledger.now())
        if len(living) >= self.settings.limit:
            return "quota"
        for (region, type_), most in self.settings.room.items():
            if not _fits((region, type_), ask.region, ask.type):
                continue
            if sum(_fits((region, type_), m.region, m.type) for m in living) >= most:
                return "capacity"
        return ""

    def state(self, machine: Machine, view: View) -> str:
        """Say what a machine is to be shown as."""
        at = self.ledger.now() if view.at is None else view.at
        return machine.state(at, self.settings.boot)


def _fits(room: tuple[str, str], region: str, type_: str) -> bool:
    return room[0] in ("*", region) and room[1] in ("*", type_)
