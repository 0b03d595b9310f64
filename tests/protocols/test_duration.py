import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        ("2d", 172_800.0),
        ("90", 90.0),
        (" 0.5 ", 0.5),
        (7, 7.0),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_read_as_people_write_it(text: str | float, seconds: float) -> None:
    assert duration.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "5 m", "1m1h", "-5s", "fast", "1h30", "nan", "inf", "٣s", -1, float("nan")]
)
def test_what_is_no_duration_is_refused_with_an_example(text: str | float) -> None:
    with pytest.raises(ValueError, match="1h30m"):
        duration.parse(text)


def test_a_duration_beyond_a_year_is_refused() -> None:
    with pytest.raises(ValueError, match="366 days"):
        duration.parse("9000h")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.25, "250ms"), (1.5, "1.5s"), (60, "60s"), (300, "5m"), (5400, "1h30m")],
)
def test_a_duration_is_written_short(seconds: float, text: str) -> None:
    assert duration.write(seconds) == text


@given(st.integers(0, 366 * 86_400_000))
def test_what_is_written_is_read_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000

    assert duration.parse(duration.write(seconds)) == pytest.approx(seconds, abs=0.0005)
