"""Where releases may come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarl import URL

from ..errors import AgentError, Refused

#: What is allowed if the agent's file says nothing: nothing that others on the way could change.
USUAL: Final = ("https://", "http://127.0.0.1", "http://localhost", "http://[::1]")


@dataclass(frozen=True, slots=True)
class _Prefix:
    scheme: str
    #: Any if empty.
    host: str
    #: Any if none.
    port: int | None
    #: Parts of the path.
    path: tuple[str, ...]

    def covers(self, url: URL, path: tuple[str, ...]) -> bool:
        return (
            url.scheme == self.scheme
            and self.host in ("", url.host)
            and self.port in (None, url.port)
            and path[: len(self.path)] == self.path
        )


class Allowed:
    """The beginnings of URLs that releases may be fetched from.

    Args:
        prefixes: such as ``https://``, ``https://example.org/shop/``, ``file:///srv/releases/``;
            one without a port allows any, and a path is compared part by part.

    Raises:
        AgentError: one of them is none.
    """

    def __init__(self, prefixes: Sequence[str] = USUAL) -> None:
        self._prefixes = [_prefix(one) for one in prefixes]
        self._shown = ", ".join(prefixes) or "nowhere"

    def url(self, text: str) -> URL:
        """Read a URL that may be fetched; it is fetched as it was read here.

        Raises:
            Refused: it is none, or not allowed; the text says what is.
        """
        try:
            url = URL(text)
        except ValueError as exc:
            raise Refused(f"{text[:200]!r} is no URL: {exc}") from exc
        path = _parts(url.path)
        odd = url.user is not None or url.password is not None or "\\" in text or "\0" in url.path
        if odd or ".." in path or not any(one.covers(url, path) for one in self._prefixes):
            raise Refused(f"this agent does not fetch from {text[:200]!r}, only from {self._shown}")
        return url

    def file(self, url: URL) -> Path:
        """Give the file of a ``file:`` URL that is allowed, with its links followed.

        Raises:
            Refused: it is none, or a link leads out of what is allowed.
        """
        path = Path(url.path).resolve()
        real = URL.build(scheme="file", path=str(path))
        if not any(one.covers(real, _parts(real.path)) for one in self._prefixes):
            raise Refused(f"{url} leads to {path}, from where this agent does not fetch")
        if not path.is_file():
            raise Refused(f"{url} is no file on this machine")
        return path


def _prefix(text: str) -> _Prefix:
    scheme, slashes, rest = text.partition("://")
    if scheme not in ("https", "http", "file") or not slashes:
        raise AgentError(f"urls: {text!r} is no beginning of a URL: write https://example.org/")
    if not rest:
        return _Prefix(scheme, "", None, ())
    try:
        url = URL(text)
    except ValueError as exc:
        raise AgentError(f"urls: {text!r} is no beginning of a URL: {exc}") from exc
    return _Prefix(scheme, url.host or "", url.explicit_port, _parts(url.path))


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))
