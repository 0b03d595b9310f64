"""The operations of docs/protocol.md, 18, as an agent of the kit: what the checks are tried on.

``spinal conform NAME -- spinal agent run .../spinal/conform/reference.py`` tries Spinal itself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Annotated, Any, Final

import msgspec

from spinal.agents import Agent, Blob, Job, Refused

#: Names of ``/conform/work`` whose counts are kept.
NAMES: Final = 10_000

Text = Annotated[str, msgspec.Meta(max_length=1000)]

agent = Agent("conform", slots=64)
_begun: OrderedDict[str, int] = OrderedDict()


@agent.op("/conform/echo", effects="reads")
async def echo(value: Any) -> Any:
    """Give a value back."""
    return value


@agent.op("/conform/repeat", effects="reads")
async def repeat(text: Text, times: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1) -> str:
    """Give a text several times, one after the other."""
    return text * times


@agent.op("/conform/work", effects="writes", timeout="10m")
async def work(
    name: Annotated[str, msgspec.Meta(max_length=64)],
    seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 0.0,
) -> int:
    """Take some time; gives how often it was begun under this name."""
    count = _begun[name] = _begun.pop(name, 0) + 1
    if len(_begun) > NAMES:
        _begun.popitem(last=False)
    await asyncio.sleep(seconds)
    return count


@agent.op("/conform/fail", effects="reads")
async def fail(text: Text) -> None:
    """Fail with these words."""
    raise RuntimeError(text)


@agent.op("/conform/refuse", effects="reads")
async def refuse(text: Text) -> None:
    """Refuse with these words."""
    raise Refused(text)


@agent.op("/conform/report", effects="reads")
async def report(job: Job, steps: Annotated[int, msgspec.Meta(ge=1, le=100)]) -> int:
    """Tell how far it is, step by step."""
    for step in range(1, steps + 1):
        job.progress(step, steps)
        job.log(f"step {step}")
    return steps


@agent.op("/conform/stream", effects="reads")
async def stream(job: Job, count: Annotated[int, msgspec.Meta(ge=0, le=10_000)]) -> int:
    """Send the numbers from 0 to below ``count``."""
    for number in range(count):
        await job.data(number)
    return count


@agent.op("/conform/copy", effects="reads")
async def copy(file: Blob) -> Blob:
    """Give a copy of a blob."""
    return Blob.of(await file.read(), file.media_type)
