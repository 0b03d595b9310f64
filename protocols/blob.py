"""A blob: bytes too big for a stanza, named by URL, hash, size and media type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from .errors import ProtocolError, RemoteProtocolError
from .values import MAX_INTEGER, Json

#: Member of a JSON object that marks it as a reference to a blob.
MARK = "blob"

#: RFC 3986 has nothing but printable ASCII.
_URL = re.compile(r"https://[\x21-\x7e]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MEDIA = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}")


@dataclass(frozen=True, slots=True)
class BlobRef:
    """Where some bytes are and how to know that they are the right ones.

    On the wire ``{"blob": {"url": ..., "sha256": ..., "size": ..., "media": ...}}``.
    """

    url: str
    sha256: str
    size: int
    media_type: str = "application/octet-stream"

    def to_json(self) -> dict[str, Any]:
        """Give the wire form."""
        return {
            MARK: {
                "url": self.url,
                "sha256": self.sha256,
                "size": self.size,
                "media": self.media_type,
            }
        }


def is_reference(value: object) -> bool:
    """Tell whether a JSON value has the form of a reference to a blob."""
    if not isinstance(value, Mapping):
        return False
    members = cast(Mapping[object, Json], value)
    return len(members) == 1 and MARK in members


def parse_reference(value: Json, error: type[ProtocolError] = RemoteProtocolError) -> BlobRef:
    """Read a reference.

    Raises:
        ProtocolError: of the class given, when a member is missing or wrong.
    """
    inner: Json = value[MARK] if is_reference(value) else None
    if not isinstance(inner, Mapping):
        raise error("not a reference to a blob", "bad-arguments")
    get = cast(Mapping[str, Json], inner).get
    url, sha256, size = get("url"), get("sha256"), get("size")
    media = get("media", "application/octet-stream")
    if not isinstance(url, str) or len(url) > 2048 or not _URL.fullmatch(url):
        raise error("a blob's url must be an https URL", "bad-arguments")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise error("a blob's sha256 must be 64 lower-case hex digits", "bad-arguments")
    if type(size) is not int or not 0 <= size <= MAX_INTEGER:
        raise error("a blob's size must be a number of bytes", "bad-arguments")
    if not isinstance(media, str) or not _MEDIA.fullmatch(media):
        raise error("a blob's media must be a media type", "bad-arguments")
    return BlobRef(url, sha256, size, media)
