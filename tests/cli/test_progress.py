import io
from collections.abc import Iterator

import pytest

from spinal.cli.progress import PAUSE, Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield Clock()


def test_without_a_terminal_there_are_plain_lines_not_too_many(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("/op", drawn=False, clock=clock) as progress:
        progress.at(1, 10)
        progress.at(2, 10)
        clock.now = PAUSE
        progress.at(3, 10, "halfway, nearly")
        progress.at(10, 10)
    assert capsys.readouterr().err.splitlines() == [
        "/op 1/10",
        "/op 3/10 halfway, nearly",
        "/op 10/10",
    ]


def test_what_is_not_known_is_left_out(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("/op", drawn=False, clock=clock) as progress:
        progress.at(None, None, "thinking")
        clock.now = PAUSE
        progress.at(None, None, "thinking")
    assert capsys.readouterr().err.splitlines() == ["/op thinking"]


def test_lines_are_printed_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("/op", drawn=False) as progress:
        progress.line("[red] is no markup here")
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "[red] is no markup here\n")


def test_a_bar_is_drawn_on_a_terminal_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("/op", 4) as progress:
        progress.at(2)
        progress.line("[red] failed")
        progress.at(4, note="last one")
    drawn = err.getvalue()
    assert "4/4" in drawn and "last one" in drawn and "[red] failed" in drawn
    assert drawn.endswith("\x1b[2K"), "the bar is taken away at the end"
