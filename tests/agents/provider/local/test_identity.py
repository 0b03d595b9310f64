from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace

import pytest

from spinal.agents.provider.local.identity import Identity


def test_a_process_lives_until_it_is_dead_though_nobody_has_reaped_it() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        identity = Identity.of(process.pid)
        assert identity.lives() and not identity.gone(0)

        identity.signal(signal.SIGKILL)

        assert identity.gone(5) and not identity.lives()
        assert Identity.of(process.pid) == identity  # It is there, dead.
    with pytest.raises(ProcessLookupError):
        Identity.of(process.pid)
    assert identity.gone(5) and not identity.lives()


def test_another_one_with_its_number_is_not_it() -> None:
    mine = Identity.of(os.getpid())

    for other in (replace(mine, start=mine.start + 1), replace(mine, boot="another")):
        assert not other.lives() and other.gone(0)
        other.signal(signal.SIGKILL)  # Would end this test.
    assert mine.lives()


def test_what_is_gone_takes_no_signal() -> None:
    with subprocess.Popen(["true"]) as process:
        identity = Identity.of(process.pid)

    identity.signal(signal.SIGTERM)
