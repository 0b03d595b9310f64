"""What vendors refused lately: for everybody, and for pools of one image alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .launches import Launches, Offering, asked
from .machine import Machine
from .ranking import Blocked


class Refusals:
    """See the module.

    Args:
        now: milliseconds since 1970 UTC.
        images: gives the images of all pools.
        pauses: by how much blocks last longer than usual.
    """

    def __init__(
        self, now: Callable[[], int], images: Callable[[], Iterable[str]], pauses: float
    ) -> None:
        self._now = now
        self._images = images
        self._none = Launches(pauses=pauses)
        self._launches = self._none
        #: Image -> what does not take it: a pool whose image is misspelt is no other pool's matter.
        self._unfit: dict[str, Launches] = {}

    def blocked(self, image: str = "") -> Blocked:
        """Give what is not asked for now, nor for an image, until when, and why."""
        now = self._now()
        unfit = self._unfit.get(image, self._none).blocked(now)
        blocks = {**unfit, **self._launches.blocked(now)}
        return {key: (block.until, f"{block.kind}: {block.said}") for key, block in blocks.items()}

    def room(self, offering: Offering, machines: Iterable[Machine]) -> int:
        """Give how many more machines of an offering may be asked for now."""
        return self._launches.room(offering, asked(machines)[offering], self._now())

    def launched(self, offering: Offering) -> None:
        """Note that a vendor took an order."""
        self._launches = self._launches.launched(offering, self._now())

    def refused(
        self, offering: Offering, image: str, kind: str, said: str, after: float | None = None
    ) -> None:
        """Note a refusal; what a vendor does not understand may be the image.

        The arguments are those of :meth:`~.launches.Launches.refused`.
        """
        now = self._now()
        if kind != "invalid":
            self._launches = self._launches.refused(offering, kind, said, now, after)
            return
        images = {*self._images(), image}
        self._unfit = {each: known for each, known in self._unfit.items() if each in images}
        self._unfit[image] = self._unfit.get(image, self._none).unfit(offering, said, now)

    def broken(self, machine: Machine, said: str) -> None:
        """Note that a machine was of no use: where it came from is left alone for a while."""
        offering = machine.vendor, machine.region, machine.type
        self._launches = self._launches.refused(offering, "unknown", said, self._now())
