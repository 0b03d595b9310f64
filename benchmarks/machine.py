"""What everything ran on, and where it came from."""

from __future__ import annotations

import os
import platform
import shlex
import ssl
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from .children import ROOT
from .peers import environment
from .results import Stamp

OURS = ("slixmpp", "uvloop", "orjson", "msgspec", "cryptography")
PEERS = ("celery", "distributed", "dramatiq", "nats-py", "redis", "spade")
DEBIAN = ("prosody", "ejabberd", "redis-server", "nats-server")


def machine() -> dict[str, str]:
    """Describe the machine."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} processors, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} "
        f"{platform.release()}; everything on loopback",
        "Python": f"{platform.python_implementation()} {platform.python_version()}, "
        f"{ssl.OPENSSL_VERSION}",
    }


def versions() -> dict[str, str]:
    """Give the versions of everything that takes part and is here."""
    found: dict[str, str] = {}
    for name in OURS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    theirs = environment.versions()
    found.update((name, theirs[name]) for name in PEERS if name in theirs)
    asked = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *DEBIAN]
    for line in _output(asked).splitlines():
        name, _, number = line.partition(" ")
        if number:
            found[name] = number
    return found


def stamp(argv: Sequence[str]) -> Stamp:
    """Say where the results of this run come from."""
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    commit = _output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]).strip()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": (commit or "unknown") + ("+" if changed.strip() else ""),
        "command": shlex.join(["python", "-m", "benchmarks.run", *argv]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())


def _output(argv: Sequence[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
