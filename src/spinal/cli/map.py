"""``spinal map``: one operation over many files."""

from __future__ import annotations

import asyncio
import mimetypes
import time
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from glob import iglob
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from spinal.bus.arguments import ArgumentError, Given, Schema, convert, parse
from spinal.protocols import Json, path

from .burst import Burst, burst_options, wished
from .call import describe, patience, save
from .common import (
    CONTEXT,
    Ended,
    client,
    json_option,
    place_option,
    places,
    plain,
    policy_option,
    print_json,
    run,
    say,
    show_home,
    tag_option,
    text,
    timeout_option,
)
from .progress import Progress

if TYPE_CHECKING:
    from spinal.bus import Client, Mapped

#: Results that are being saved at once.
SAVING: Final = 8


@click.command(name="map", context_settings=CONTEXT)
@click.argument("op")
@click.option(
    "--over",
    required=True,
    metavar="KEY=GLOB",
    help="The argument that is different each time, and the files; quote it for the shell. ** "
    "goes into folders. KEY@=GLOB sends the text of each file.",
)
@click.option(
    "--set",
    "fixed",
    multiple=True,
    metavar="KEY=VALUE",
    help="An argument that is always the same.",
)
@click.option(
    "--window",
    type=click.IntRange(1, 10_000),
    help="Calls under way at once: 64, with --durable 512, if it is left out.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write one file per input there, and nothing else.",
)
@click.option(
    "--durable",
    is_flag=True,
    help="Make jobs of the calls, and one of the whole: they wait for agents, and go on after a "
    "restart of anything.",
)
@click.option(
    "--key", help="Of a durable map: the same key goes on with it, and runs nothing twice."
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="WORD",
    help="Of a durable map: a word to find its job by; may be repeated.",
)
@policy_option
@place_option
@tag_option
@timeout_option
@burst_options
@json_option
@show_home
def map_command(
    op: str,
    over: str,
    fixed: tuple[str, ...],
    window: int | None,
    out: Path | None,
    durable: bool,
    key: str | None,
    labels: tuple[str, ...],
    policy: str | None,
    place: tuple[str, ...],
    tags: tuple[str, ...],
    timeout: float | None,
    as_json: bool,
    **burst: Any,
) -> None:
    """Call the operation OP once for each file that matches.

    Ctrl-C cancels what has not ended. A durable map whose terminal died is gone on with by the same
    command, if it had a --key.

    Exit code 1 if any call failed; each failure is a line on stderr. With --json: one object per
    input as it ends, {"input", "value" or "error", "agent", "file", "job"}, and a last one {"done",
    "failed", "seconds", "job"}.

    With --burst machines are rented for it, as few as meet the deadline, and returned whatever ends
    it (docs/pools.md). Without --each the first machine does the first inputs, and what they took
    says how many more there have to be. The bill is compared with the same machine time at the
    dearest offer that fits, and at one vendor, unseen: the mean of what each vendor takes for its
    cheapest that fits. With --json it is a line {"burst": {...}} before the last one.

    \b
    spinal map /image/resize --over photo='photos/*.jpg' --set width=320 --out small
    spinal map /image/resize --over photo='photos/*.jpg' --durable --key album-7 --out small
    spinal map /image/resize --over photo='*.jpg' --burst --max 0.4/h --deadline 20m --with work.py
    """
    path.parts(op)
    wish = wished(op, burst)
    if wish is not None:
        if key:
            raise click.UsageError("--key goes with --durable alone: a burst is not gone on with")
        durable = True
    if not durable and (key or labels):
        raise click.UsageError("--key and --label go with --durable")
    (each,) = parse([over])
    always = parse(fixed)
    wanted = places(place)
    files = matches(each)

    async def work() -> int:
        results = Results(files, out, as_json)
        async with client() as bus:
            rented = None if wish is None else Burst(bus, op, wish, len(files), as_json)
            if rented is not None:
                await rented.ask()
            with Progress(op, len(files)) as progress:
                async with nullcontext() if rented is None else rented.rented(progress):
                    await fill(bus, results, progress, rented)
        failed = results.summary()
        if rented is not None and rented.late:
            say(f"spinal: the deadline came first: {len(files) - results.done} inputs are not done")
            return 1
        return failed

    async def fill(bus: Client, results: Results, progress: Progress, rented: Burst | None) -> None:
        described = (
            await describe(bus, op, may_miss=durable) if rented is None else rented.described
        )
        if "op" not in described:
            say(
                f"nobody offers {op} now: {each.name} goes as a file, and other arguments as "
                "text; key:=json sends anything else"
            )
            described["args"] = unknown(each)
        inputs = [
            convert([replace(each, text=str(file)), *always], described["args"]) for file in files
        ]
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        chosen = bus.options(
            policy=policy,
            place={**wanted, **(rented.place if rented is not None else {})} or None,
            tags=tags or None,
            timeout=timeout or (None if durable else patience(described)),
            durable=durable or None,
            key=key,
            labels=labels or None,
            deadline=None if rented is None else rented.left,
        )
        if not durable:
            await results.collect(chosen.map(op, inputs, window=window), progress)
            return
        started = await chosen.start_map(op, inputs, window=window)
        results.job = started.id
        progress.line(f"job {started.id}")
        await results.collect(started if rented is None else rented.watched(started), progress)

    if run(work()):
        raise Ended(1)


def unknown(each: Given) -> Schema:
    """Give what an operation takes that nobody offers yet: files, and anything else as it comes."""
    return {"properties": {each.name: {"format": "blob"}}, "additionalProperties": True}


def matches(each: Given) -> list[Path]:
    """Give the files that ``--over`` names, in order.

    Raises :class:`ArgumentError` if there are none.
    """
    if each.form == ":":
        raise ArgumentError(f"--over takes files: write {each.name}=GLOB", each.name)
    pattern = str(Path(each.text).expanduser())
    found = sorted(Path(name) for name in iglob(pattern, recursive=True) if Path(name).is_file())
    if not found:
        raise ArgumentError(f"no file matches {each.text}: check the path", each.name)
    return found


def names(files: Iterable[Path]) -> Iterator[str]:
    """Name the results after the inputs, each name once."""
    taken: set[str] = set()
    for file in files:
        name, number = file.stem, 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}"
        taken.add(name)
        yield name


def suffix(value: Any) -> str:
    """Say how a file with this value ends."""
    from spinal.bus import Blob

    if isinstance(value, Blob):
        return mimetypes.guess_extension(value.media_type) or ".bin"
    return ".txt" if isinstance(value, str) else ".json"


@dataclass(slots=True)
class Results:
    """What became of the inputs: printed or saved as it comes, counted in the end."""

    files: Sequence[Path]
    out: Path | None
    as_json: bool
    done: int = 0
    failed: int = 0
    began: float = 0.0
    #: Id of the job of them all, if the map is durable.
    job: str | None = None

    async def collect(
        self,
        mapped: AsyncIterable[Mapped],
        progress: Progress,
    ) -> None:
        """See to every result."""
        self.began = time.monotonic()
        stems = list(names(self.files))
        saving = asyncio.Semaphore(SAVING)

        async def finish(one: Mapped) -> None:
            try:
                await self._take(one, stems[one.index], progress)
            finally:
                saving.release()
            progress.at(self.done + self.failed, len(self.files))

        async with asyncio.TaskGroup() as group:
            async for one in mapped:
                await saving.acquire()
                group.create_task(finish(one))

    async def _take(self, mapped: Mapped, stem: str, progress: Progress) -> None:
        from spinal.bus import BusError

        file = self.files[mapped.index]
        shown: dict[str, Json] = {"input": str(file), "agent": mapped.agent}
        if mapped.job is not None:
            shown["job"] = mapped.job
        error: Exception | None = mapped.error
        if error is None:
            try:
                if self.out is not None:
                    target = self.out / f"{stem}{suffix(mapped.value)}"
                    await save(mapped.value, target)
                    shown["file"] = str(target)
            except (BusError, OSError) as caught:
                error = caught
        if error is None:
            self.done += 1
            shown["value"] = plain(mapped.value)
        else:
            self.failed += 1
            shown["error"] = {"text": " ".join(str(error).split())}
            if mapped.error is not None:
                shown["error"] = mapped.error.problem.to_json()
            progress.line(f"spinal: {file}: {' '.join(str(error).split())}")
        if self.as_json:
            print_json(shown)
        elif error is None and self.out is None:
            click.echo(f"{file}\t{text(mapped.value)}")

    def summary(self) -> int:
        """Say how it went, and give the number of failures."""
        seconds = time.monotonic() - self.began
        if self.as_json:
            counts = {"done": self.done, "failed": self.failed, "seconds": round(seconds, 3)}
            print_json(counts if self.job is None else {**counts, "job": self.job})
        else:
            where = f", results in {self.out}" if self.out is not None else ""
            failed = f", {self.failed} failed" if self.failed else ""
            say(f"{self.done} of {len(self.files)} done{failed} in {seconds:.1f} s{where}")
        return self.failed
