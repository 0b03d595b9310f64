"""Bytes that are too big for a stanza."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import replace
from typing import Final

from spinal.bus.blob import Store
from spinal.bus.errors import BlobError
from spinal.protocols import BlobRef, ProtocolError, parse_reference

from ..check import Chapter
from ..trial import Trial
from ..verdict import NotOffered, Wrong

CHAPTER: Final = Chapter(11, "Blobs", offer="/conform/copy")

#: Seconds that a small blob may take there and back.
FETCHED: Final = 20.0


async def _store(trial: Trial) -> Store:
    await trial.need("copy")
    if trial.store is None:
        raise NotOffered("there is no place to put blobs in this run")
    return trial.store


@CHAPTER.check("10", "a blob is fetched, and one is given back")
async def copied(trial: Trial) -> None:
    store = await _store(trial)
    data = secrets.token_bytes(100_000)
    ref = await store.upload(data, "image/png")
    exchange = trial.start("copy", {"file": ref.to_json()})
    try:
        found = parse_reference(await trial.value(exchange, FETCHED))
    except ProtocolError:
        found = None
    if found is None:
        raise Wrong("a reference to a blob", exchange.heard[-1].stanza, exchange.asked)
    if (found.sha256, found.size, found.media_type) != (ref.sha256, len(data), "image/png"):
        raise Wrong("hash, size and media type as sent", exchange.heard[-1].stanza, exchange.asked)
    try:
        if await store.fetch(found) != data:
            raise Wrong("the same bytes at the URL", exchange.heard[-1].stanza)
    except BlobError as exc:
        raise Wrong(f"the same bytes at the URL ({exc})", exchange.heard[-1].stanza) from exc


@CHAPTER.check("10", "bytes that do not have the announced hash are not used")
async def wrong_hash(trial: Trial) -> None:
    store = await _store(trial)
    ref = await store.upload(b"something", "text/plain")
    lie = replace(ref, sha256=hashlib.sha256(b"anything").hexdigest())
    await _refused(trial, lie)


@CHAPTER.check("10", "bytes that do not have the announced size are not used")
async def wrong_size(trial: Trial) -> None:
    store = await _store(trial)
    ref = await store.upload(b"something", "text/plain")
    for size in (4, 10**9):
        await _refused(trial, replace(ref, size=size))


@CHAPTER.check("10", "blobs are fetched only from upload hosts that the credentials name")
async def elsewhere(trial: Trial) -> None:
    await _store(trial)
    knocked = asyncio.Event()

    def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocked.set()
        writer.close()

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        digest = hashlib.sha256(b"x").hexdigest()
        url = f"https://elsewhere.localhost:{port}/x"
        await _refused(trial, BlobRef(url, digest, 1, "text/plain"))
        await _refused(trial, BlobRef(f"https://127.0.0.1:{port}/x", digest, 1, "text/plain"))
        if knocked.is_set():
            raise Wrong("that nobody connects to a host that the credentials do not name")


async def _refused(trial: Trial, ref: BlobRef) -> None:
    exchange = trial.start("copy", {"file": ref.to_json()})
    end = await exchange.end(FETCHED)
    if end.reason != "blob":
        raise Wrong("the problem blob", end.stanza, exchange.asked)
