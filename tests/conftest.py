"""What holds for every test: nothing is left out in silence, and nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest

#: How the reason of a skip begins when something is not installed.
MISSING = "MISSING:"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
        for reason, count in sorted(reasons.items()):
            terminalreporter.line(f"{count:4} tests left out: {reason}", red=True)
        terminalreporter.line("`make test-deps` installs what is missing.")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    # On CI everything is installed, so whatever was left out is a failure.
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    _, left = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=5)
    assert not left, f"still running: {[(p.pid, p.cmdline()) for p in left]}"


@pytest.fixture(autouse=True)
def no_environment_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SPINAL_"):
            monkeypatch.delenv(name)
