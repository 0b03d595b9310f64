"""Records in memory, with versions as the store has them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from spinal.dispatcher.store.contract import FENCED, SAVED, Keep, Record, Result


class MemoryRecords:
    """Every call lets others go first, so that whatever may interleave does."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Record] = {}

    async def write(self, *changes: Keep) -> Sequence[Result]:
        await asyncio.sleep(0)
        results: list[Result] = []
        for change in changes:
            one = change.record
            known = self.kept.get((one.kind, one.name))
            if one.version != (0 if known is None else known.version):
                results.append(FENCED)
            elif change.drop:
                del self.kept[one.kind, one.name]
                results.append(SAVED)
            else:
                fresh = Record(one.kind, one.name, one.version + 1, one.body)
                self.kept[one.kind, one.name] = fresh
                results.append(SAVED)
        return results

    async def records(self, kind: str, names: Sequence[str] | None = None) -> list[Record]:
        await asyncio.sleep(0)
        return [
            record
            for (of, name), record in self.kept.items()
            if of == kind and (names is None or name in names)
        ]

    async def versions(self, kind: str) -> Mapping[str, int]:
        await asyncio.sleep(0)
        return {name: record.version for (of, name), record in self.kept.items() if of == kind}
