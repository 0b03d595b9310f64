from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.dispatcher.jobs.cron import next_after

BERLIN = "Europe/Berlin"
NOW = "2026-11-21T05:00:00Z"


def ms(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def fires(cron: str, zone: str, after: str, times: int = 1) -> list[str]:
    at = ms(after)
    found: list[str] = []
    for _ in range(times):
        at = next_after(cron, zone, at)
        found.append(datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    return found


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("* * * * *", "2026-11-21T05:01:00Z"),
        ("*/15 * * * *", "2026-11-21T05:15:00Z"),
        ("0 5 * * *", "2026-11-22T05:00:00Z"),
        ("30 5 * * mon", "2026-11-23T05:30:00Z"),
        ("0 0 1 jan *", "2027-01-01T00:00:00Z"),
        ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
        ("0 0 L * *", "2026-11-30T00:00:00Z"),
        ("0 9-17/4 * * 1-5", "2026-11-23T09:00:00Z"),
        ("  0   6 * *  * ", "2026-11-21T06:00:00Z"),
    ],
)
def test_a_line_fires_next_at(cron: str, expected: str) -> None:
    assert fires(cron, "UTC", NOW) == [expected]


def test_a_line_fires_at_the_next_full_minute_and_not_at_the_given_one() -> None:
    assert fires("0 5 * * *", "UTC", "2026-11-21T04:59:59.999Z") == ["2026-11-21T05:00:00Z"]
    assert fires("0 5 * * *", "UTC", "2026-11-21T05:00:00Z") == ["2026-11-22T05:00:00Z"]


def test_a_line_is_meant_in_its_zone() -> None:
    assert fires("0 5 * * *", "Asia/Kolkata", NOW) == ["2026-11-21T23:30:00Z"]
    assert fires("0 5 * * *", BERLIN, "2026-07-01T00:00:00Z") == ["2026-07-01T03:00:00Z"]
    assert fires("0 5 * * *", BERLIN, "2026-12-01T00:00:00Z") == ["2026-12-01T04:00:00Z"]


def test_a_time_that_the_clocks_skip_fires_right_after_the_gap_and_once() -> None:
    # On 29 March 2026, 02:00 to 03:00 do not exist in Berlin.
    assert fires("30 2 * * *", BERLIN, "2026-03-28T12:00:00Z", 2) == [
        "2026-03-29T01:00:00Z",
        "2026-03-30T00:30:00Z",
    ]


def test_a_time_that_comes_twice_fires_the_first_time_only() -> None:
    # On 25 October 2026, 02:00 to 03:00 come twice in Berlin.
    assert fires("30 2 * * *", BERLIN, "2026-10-24T12:00:00Z", 2) == [
        "2026-10-25T00:30:00Z",
        "2026-10-26T01:30:00Z",
    ]


@pytest.mark.parametrize("now", ["2026-10-25T01:00:00Z", "2026-10-25T01:10:00Z"])
def test_who_asks_in_the_second_round_gets_no_time_of_the_first(now: str) -> None:
    assert fires("30 2 * * *", BERLIN, now) == ["2026-10-26T01:30:00Z"]


def test_an_hourly_line_follows_the_time_that_really_passes() -> None:
    assert fires("0 * * * *", BERLIN, "2026-10-24T23:30:00Z", 3) == [
        "2026-10-25T00:00:00Z",
        "2026-10-25T01:00:00Z",
        "2026-10-25T02:00:00Z",
    ]
    assert fires("0 * * * *", BERLIN, "2026-03-29T00:30:00Z", 2) == [
        "2026-03-29T01:00:00Z",
        "2026-03-29T02:00:00Z",
    ]


fields = st.sampled_from(["*", "*/7", "0", "5,30", "10-12", "2"])


@given(
    fields,
    fields.filter(lambda field: field != "5,30"),
    st.sampled_from(["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    st.integers(ms("2026-01-01T00:00:00Z"), ms("2029-01-01T00:00:00Z")),
)
def test_times_are_full_minutes_that_follow_and_fit_the_line(
    minute: str, hour: str, zone: str, now: int
) -> None:
    found = next_after(f"{minute} {hour} * * *", zone, now)
    local = datetime.fromtimestamp(found / 1000, ZoneInfo(zone))

    assert found > now
    assert found % 60_000 == 0
    assert found - now <= 49 * 3_600_000
    skipped = local.utcoffset() != (
        datetime.fromtimestamp(found / 1000 - 1, ZoneInfo(zone)).utcoffset()
    )
    assert skipped or (_fits(minute, local.minute, 60) and _fits(hour, local.hour, 24))


def _fits(field: str, value: int, size: int) -> bool:
    if field.startswith("*"):
        return value in range(0, size, int(field[2:] or 1))
    if "-" in field:
        low, high = field.split("-")
        return int(low) <= value <= int(high)
    return value in map(int, field.split(","))


@given(fields, fields.filter(lambda field: field != "5,30"), st.integers(0, 4_000_000))
def test_no_time_that_fits_is_left_out(minute: str, hour: str, start: int) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=start)
    found = next_after(f"{minute} {hour} * * *", "UTC", round(now.timestamp() * 1000))

    time = now + timedelta(minutes=1)
    while not (_fits(minute, time.minute, 60) and _fits(hour, time.hour, 24)):
        time += timedelta(minutes=1)
    assert found == round(time.timestamp() * 1000)


@pytest.mark.parametrize(
    ("cron", "says"),
    [
        ("", "'' is not a cron line of five fields: write minute, hour, "),
        ("@daily", "is not a cron line of five fields"),
        ("* * * *", "is not a cron line of five fields"),
        ("0 * * * * *", "is not a cron line of five fields"),
        ("61 * * * *", "'61 * * * *' is not a cron line, look at its minute: write "),
        ("* 24 * * *", "look at its hour"),
        ("* * 32 * *", "look at its day-of-month"),
        ("* * 32 2 *", "look at its day-of-month"),
        ("* * * 13 *", "look at its month"),
        ("* * * * 8", "look at its day-of-week"),
        ("*/0 * * * *", "look at its minute"),
        ("9" * 300 + " * * * *", "...' is not a cron line of five fields"),
    ],
)
def test_a_bad_line_is_refused_in_one_line_that_says_what_to_do(cron: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"five fields|look at its") as caught:
        next_after(cron, "UTC", ms(NOW))

    assert says in str(caught.value)
    assert "such as '30 5 * * mon'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("cron", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 LW * */6"])
def test_a_line_that_never_fires_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match="never fires in 50 years: name a day"):
        next_after(cron, "UTC", ms(NOW))


def test_a_line_that_fires_once_in_28_years_is_one() -> None:
    assert fires("0 0 * 2 MON#5", "UTC", NOW) == ["2044-02-29T00:00:00Z"]


@pytest.mark.parametrize(
    "zone", ["", "Europe", "Mars/Olympus", "../x", "/etc/passwd", "a\0b", "\ud800", "x" * 9999]
)
def test_an_unknown_zone_is_refused_in_one_line_that_says_what_to_do(zone: str) -> None:
    with pytest.raises(ValueError, match=r"there is no time zone .*Europe/Berlin") as caught:
        next_after("* * * * *", zone, ms(NOW))

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isascii()


@given(
    st.lists(st.text("0123456789*/-,#LWmon²x", min_size=1, max_size=6), min_size=4, max_size=6).map(
        " ".join
    )
    | st.text(max_size=20)
)
def test_whatever_is_written_fires_or_is_refused(cron: str) -> None:
    try:
        assert next_after(cron, BERLIN, ms(NOW)) > ms(NOW)
    except ValueError as exc:
        assert "\n" not in str(exc)
