"""What a vendor's refusal means: one word for the many shapes that libcloud's drivers give it.

libcloud has two unrelated roots of exceptions and a third kind of Vultr's own; some carry a code,
some have it in their text only, and EC2 says "no capacity" with status 500.  So the status is taken
from the answer itself where there was one, and one table decides; its first rule that fits counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from spinal.agents.errors import AgentError, one_line

from .wire import Answer

#: What a fault may be.  ``capacity``: none left of this type there.  ``quota``: the account may have
#: no more.  ``rate``: too many calls.  ``auth``: the keys, or the clock.  ``invalid``: the same call
#: never works.  ``transient``: it may work next time, and what was asked for may have happened.
KINDS: Final = ("capacity", "quota", "rate", "auth", "invalid", "transient", "unknown")

#: The vendor refused, so nothing came of it; whatever else it is may have happened.
REFUSALS: Final = frozenset({"capacity", "quota", "rate", "auth", "invalid"})

#: Longest words of a vendor that are kept.
MAX_SAID: Final = 300

#: Seconds by which our clock may differ from the vendor's before that is told.
SKEW: Final = 60.0


class Impossible(AgentError):
    """What was asked for cannot be had in this form; nothing was sent."""


class Late(AgentError):
    """There is not enough time left to begin."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a vendor did not do it."""

    #: One of :data:`KINDS`.
    kind: str
    #: The vendor's words, in one line without our secrets.
    said: str
    #: Status of the answer; none without one.
    code: int | None = None
    #: Seconds after which the vendor wants to be asked again; none if it says nothing.
    after: float | None = None
    #: Whether anything reached the vendor, as far as we know.
    sent: bool = True

    def __str__(self) -> str:
        return f"{self.kind}: {self.said}"


@dataclass(frozen=True, slots=True)
class _Rule:
    """A line of the table: all that it names must hold."""

    kind: str
    words: re.Pattern[str] | None = None
    #: Names of exceptions, of which one is in the line of its classes.
    types: Collection[str] = ()
    codes: Sequence[range] = ()

    def fits(self, text: str, types: Collection[str], code: int | None) -> bool:
        return (
            (self.words is None or self.words.search(text) is not None)
            and (not self.types or any(name in types for name in self.types))
            and (not self.codes or any(code in span for span in self.codes if code is not None))
        )


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


#: A signature that is refused because of the time it was made at.
_CLOCK: Final = _words(
    r"RequestExpired|RequestTimeTooSkewed|signature (has )?expired|signature not yet current"
    r"|is now (earlier|later) than|timestamp.{0,60}(expired|future|skew)|clock"
)

#: Order matters: capacity has code 500 at EC2, and a quota code 403 at OpenStack.
_RULES: Final = (
    _Rule("auth", _CLOCK),
    _Rule("invalid", types=("Impossible",)),
    _Rule("transient", types=("Late",)),
    # What Linode's driver refuses by itself.
    _Rule("invalid", types=("LinodeExceptionV4",)),
    _Rule("auth", types=("AgentError",)),
    _Rule("invalid", _words(r"user[ _-]?data.{0,80}(limit|exceed|too (long|large|big))")),
    _Rule(
        "capacity",
        _words(
            r"insufficient.{0,40}capacity|no capacity|not enough capacity|out of (stock|capacity)"
            r"|sold out|resource_pool|no (available|valid) host"
            r"|(not|un|longer) ?available in (this|the|that) (selected |chosen )?(region|location)"
            r"|(plan|size|type) is (currently )?(not |un)available|novalidhost"
        ),
    ),
    _Rule("rate", types=("RateLimitReachedError",)),
    _Rule("rate", codes=(range(429, 430),)),
    _Rule("rate", _words(r"RequestLimitExceeded|throttl|too many requests|rate limit")),
    _Rule("rate", types=("OverLimit",)),
    _Rule("auth", types=("InvalidCredsError",)),
    _Rule("auth", codes=(range(401, 402),)),
    _Rule("auth", _words(r"AuthFailure|InvalidClientTokenId|UnauthorizedOperation|OptInRequired")),
    _Rule(
        "quota",
        _words(
            r"quota|(limit|count) ?exceeded|limit (has been |was |is )?reached"
            r"|(droplet|instance|server|linode|vcpu|core)s? limit|will exceed your"
            r"|exceed(s|ed|ing)? .{0,40}(limit|allowed|maximum)"
            r"|maximum (number|count|of)?.{0,40}(droplet|instance|server|linode|machine)"
        ),
    ),
    _Rule("auth", codes=(range(403, 404),)),
    _Rule("transient", codes=(range(500, 600), range(408, 409), range(425, 426))),
    _Rule("invalid", codes=(range(400, 500),)),
    # Of requests, urllib3 and the standard library, where no answer came.
    _Rule(
        "transient",
        types=("RequestException", "HTTPError", "OSError", "TimeoutError", "HTTPException"),
    ),
)

#: Signs that no connection came to be, so that nothing can have been sent.
_UNSENT: Final = _words(
    r"NewConnectionError|ConnectTimeout|NameResolutionError|Connection refused|Name or service"
)


def classify(error: BaseException, answer: Answer | None = None, hide: Sequence[str] = ()) -> Fault:
    """Say what an exception out of a driver means.

    Args:
        error: what was raised.
        answer: the last answer of the vendor to this call, if one came.
        hide: secrets, which are masked where they stand in the words.
    """
    types = {cls.__name__ for cls in type(error).__mro__}
    text = _text(error)
    code = _code(error, text) if answer is None else answer.status
    kind = next((rule.kind for rule in _RULES if rule.fits(text, types, code)), "unknown")
    said = text
    if kind == "unknown":
        where = "" if answer is None else "the answer cannot be understood: "
        said = f"{where}{type(error).__name__}: {text}"
    if kind == "auth" and (hint := _skew(text, answer)):
        said = f"{said}; {hint}"
    unsent = answer is None and (
        isinstance(error, AgentError) or ("ConnectTimeout" in types or bool(_UNSENT.search(text)))
    )
    after = _after(error) if answer is None or answer.after is None else answer.after
    return Fault(kind, masked(said, hide), code, after, sent=not unsent)


def masked(text: str, hide: Sequence[str]) -> str:
    """Bring a vendor's words into one bounded line, without our secrets."""
    for secret in hide:
        if len(secret) >= 4:
            text = text.replace(secret, "***")
    return one_line(text, MAX_SAID)


def _text(error: BaseException) -> str:
    """Give what the vendor said, out of whatever shape it is in."""
    if type(error).__name__ == "MalformedResponseError":
        body = " ".join(str(getattr(error, "body", "") or "").split())
        return f"the answer is not what it should be: {body[:200] or 'empty'}"
    for name in ("value", "message"):
        found: Any = getattr(error, name, None)
        if found:
            return found if isinstance(found, str) else repr(found)
    return str(error) or type(error).__name__


def _code(error: BaseException, text: str) -> int | None:
    for name in ("code", "http_code"):
        found: Any = getattr(error, name, None)
        if isinstance(found, int) and not isinstance(found, bool):
            return int(found)
    match = re.search(r"Status code: (\d{3})|\(code: (\d{3})\)", text)
    return int(match[1] or match[2]) if match else None


def _after(error: BaseException) -> float | None:
    found: Any = getattr(error, "retry_after", None)
    return float(found) if isinstance(found, (int, float)) and found > 0 else None


def _skew(text: str, answer: Answer | None) -> str:
    """Say that it may be the clock's fault, if it may."""
    skew = None if answer is None else answer.skew
    if skew is not None and abs(skew) > SKEW:
        way = "ahead of" if skew > 0 else "behind"
        return f"the clock of this machine is {abs(skew):.0f} s {way} the vendor's: set it"
    return "check the clock of this machine" if _CLOCK.search(text) else ""
