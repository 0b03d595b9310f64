"""When a cron line fires next.

Lines are read as Debian's cron reads them.  Where the clocks change, a line that names an hour fires
once a day all the same: a time that is skipped fires right after the gap, one that comes twice fires
the first time.  A line whose minute or hour is ``*`` follows the time that really passes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

#: Longest line and name of a zone in characters.
MAX_LINE: Final = 256
MAX_ZONE: Final = 64

#: Years after which a search is given up, and a line that has not fired is one that never will.
YEARS: Final = 50

_FORM: Final = "write minute, hour, day of month, month and day of week, such as '30 5 * * mon'"
_MS: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def next_after(cron: str, zone: str, wall_ms: int) -> int:
    """Give the first time after a time at which a cron line fires.

    Args:
        cron: five fields; names of days and months, ranges, steps, ``L``, ``LW`` and ``#`` are known.
        zone: name of the time zone in which the fields are meant (IANA).
        wall_ms: the time, in milliseconds since 1970; what is given comes after it.

    Raises:
        ValueError: the line is not one, never fires, or nobody knows the zone; the text is one
            line that says what to do.
    """
    where = _zone(zone)
    start = (_EPOCH + wall_ms * _MS).astimezone(where)
    times = _parsed(cron, start)
    for time in times:
        # In an hour that comes twice or not at all, times may be given again, or of the first round.
        found = (time - _EPOCH) // _MS
        if found > wall_ms:
            return found
    raise _never(cron)


def _zone(zone: str) -> tzinfo:
    if zone == "UTC":
        return UTC  # Known also where no time zones are installed.
    try:
        if len(zone) > MAX_ZONE:
            raise ValueError("too long")
        return ZoneInfo(zone)
    # A folder of the zones' files, a path that leads out of it, or a file that is none.
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ValueError(
            f"there is no time zone {zone[:MAX_ZONE]!r}: write UTC or a name such as Europe/Berlin"
        ) from exc


def _parsed(cron: str, start: datetime) -> CronSim:
    fields = cron.split()
    # Six fields would mean seconds to the library.
    if len(cron) > MAX_LINE or len(fields) != 5:
        raise ValueError(f"{_shown(cron)} is not a cron line of five fields: {_FORM}")
    try:
        return CronSim(cron, start)
    except CronSimError as exc:
        # Its day and its months are well written, and only wrong together: they have no such day.
        if _fits(*fields[:3], "*", fields[4]) and _fits(*fields[:2], "*", *fields[3:]):
            raise _never(cron) from exc
        what = str(exc).removeprefix("Bad ").lower()
        raise ValueError(f"{_shown(cron)} is not a cron line, look at its {what}: {_FORM}") from exc


def _fits(*fields: str) -> bool:
    try:
        CronSim(" ".join(fields), _EPOCH)
    except CronSimError:
        return False
    return True


def _never(cron: str) -> ValueError:
    return ValueError(
        f"{_shown(cron)} never fires in {YEARS} years: "
        "name a day that its month has, and a weekday on which that falls"
    )


def _shown(cron: str) -> str:
    line = " ".join(cron.split())
    return repr(line if len(line) <= 60 else line[:57] + "...")
