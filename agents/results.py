"""From what a function returns to what travels: JSON types, blobs uploaded, size checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from spinal.bus.blob import Blob, Steps, Store, blobs_in
from spinal.bus.errors import BlobError, CallError
from spinal.protocols import (
    LIMITS,
    MAX_INTEGER,
    BlobRef,
    Json,
    LocalProtocolError,
    Problem,
    values,
)

from .errors import one_line, problem_of

T = TypeVar("T")

#: Bytes of a list that go into one result; the rest of the 32 KiB is for what stands around it.
ROOM: Final = 24 * 1024


def plain(value: Any) -> tuple[Json, bool]:
    """Bring a result into JSON types; its blobs stay, and the flag says whether there are any.

    Raises:
        CallError: something in it has no JSON form.
    """
    found: list[Blob] = []

    def hook(item: Any) -> Any:
        if not isinstance(item, Blob):
            raise TypeError(f"{type(item).__name__} is not a JSON value")
        found.append(item)
        return None

    try:
        out = msgspec.to_builtins(value, enc_hook=hook, str_keys=True)
        if found:
            # A second time, with the blobs left in: to know where they stand.
            kinds = {type(blob) for blob in found}
            out = msgspec.to_builtins(value, str_keys=True, builtin_types=tuple(kinds))
    except (TypeError, ValueError, RecursionError) as exc:
        raise CallError.of(
            Problem("failed", one_line(f"the result cannot be sent: {exc}"))
        ) from exc
    return out, bool(found)


def check(value: Json, what: str = "result") -> None:
    """Make sure that a value without blobs may be sent.

    Raises:
        CallError: it is not I-JSON, or too large.
    """
    try:
        values.check(value, LIMITS, LocalProtocolError, what)
    except LocalProtocolError as exc:
        raise CallError.of(Problem("failed", one_line(str(exc)))) from exc
    size = weight(value)
    if size > LIMITS.inline:
        text = f"the {what} takes {size} bytes, and {LIMITS.inline} travel inline: give a Blob"
        raise CallError.of(Problem("too-large", text))


def weight(value: Any) -> int:
    """Give the bytes that a value takes on the wire."""
    return len(values.escape(msgspec.json.encode(value)))


def fitting(items: Iterable[T], most: int, room: int = ROOM) -> tuple[list[T], bool]:
    """Give as many items as may travel, and whether there were more."""
    kept: list[T] = []
    for item in items:
        room -= weight(item) + 1
        if len(kept) == most or room < 0:
            return kept, True
        kept.append(item)
    return kept, False


async def pack(value: Any, store: Store | None, what: str = "result") -> Json:
    """Make the JSON value that travels; blobs that are here are uploaded.

    Raises:
        CallError: it has no JSON form, is too large, or a blob could not be uploaded.
    """
    if value is None or type(value) is bool or (type(value) is int and abs(value) <= MAX_INTEGER):
        return value
    out, found = plain(value)
    if found:
        out = await upload(out, blobs_in(out), store)
    check(out, what)
    return out


async def upload(value: Json, blobs: Iterable[tuple[Steps, Blob]], store: Store | None) -> Json:
    """Put the reference of each blob in its place, uploaded where it has none.

    Raises:
        CallError: one could not be uploaded.
    """
    for steps, blob in blobs:
        value = replaced(value, steps, (await _reference(blob, store)).to_json())
    return value


def replaced(value: Json, steps: Steps, item: Json) -> Json:
    """Give a copy of a value with something else at one place; a result may hold tuples."""
    if not steps:
        return item
    step, *rest = steps
    if isinstance(step, str):
        return {**value, step: replaced(value[step], tuple(rest), item)}
    return [
        replaced(inner, tuple(rest), item) if index == step else inner
        for index, inner in enumerate(value)
    ]


async def _reference(blob: Blob, store: Store | None) -> BlobRef:
    if blob.ref is not None:
        return blob.ref
    if store is None:
        raise CallError.of(Problem("blob", "this agent has no place to upload blobs to"))
    try:
        return await store.upload(blob.source or b"", blob.media_type)
    except BlobError as exc:
        raise CallError.of(problem_of(exc)) from exc
