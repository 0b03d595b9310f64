"""The script that a new machine runs first: user-data for every vendor.  Pure.

Cloud-init runs user-data that begins with ``#!`` once, as root, at the end of the first boot; the
local provider runs the same text with ``sh``.  It is POSIX shell and nothing more, and its only
secret is the ticket, which is worth nothing once it was used or has expired.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from .ticket import JoiningError

#: Vendors take at most 16 KiB (EC2) of user-data.
MAX_BYTES: Final = 16_000

_PEM: Final = re.compile(
    r"(-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=]{1,64}\n)+-----END CERTIFICATE-----\n)+"
)
_INDEX: Final = re.compile(r"https?://[^\s'\"\\]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What the script of one machine says."""

    name: str
    ticket: str = field(repr=False)
    #: Of the desk, ``https://HOST:PORT``.
    url: str
    #: The authority of the desk's certificate, PEM.
    ca: str
    version: str
    #: Name and hash of the wheel.
    wheel: str
    sha256: str
    #: Where pip looks for packages; none means its own setting.
    index: str = ""


def script(boot: Boot) -> str:
    """Write the script of a machine.

    Raises:
        JoiningError: a value cannot stand in it, or it would be longer than :data:`MAX_BYTES`.
    """
    if not _PEM.fullmatch(boot.ca):
        raise JoiningError("the authority of the desk is no certificate in PEM")
    if urlsplit(boot.url).scheme != "https":
        raise JoiningError(f"{boot.url[:80]!r} is no address of a desk: write https://HOST:PORT")
    if boot.index and not _INDEX.fullmatch(boot.index):
        raise JoiningError(f"{boot.index[:80]!r} is no package index: write https://HOST/PATH")
    values = {
        "name": boot.name,
        "ticket": boot.ticket,
        "url": boot.url,
        "version": boot.version,
        "wheel": boot.wheel,
        "wheel_url": f"{boot.url}/wheels/{boot.sha256}",
        "sha256": boot.sha256,
        "index": boot.index,
    }
    for value in values.values():
        if not (value.isascii() and (value.isprintable() or not value)):
            raise JoiningError(f"{value[:80]!r} cannot stand in a script")
    # In one pass, so that no value is looked into for the marks of others.
    text = re.sub("@([a-z0-9_]+)@", lambda found: shlex.quote(values[found[1]]), _SCRIPT)
    text = text.replace("%CA%\n", boot.ca)
    if len(text) > MAX_BYTES:
        raise JoiningError(f"the script of {boot.name} is longer than {MAX_BYTES} bytes")
    return text


_SCRIPT: Final = r"""#!/bin/sh
# Brings this machine onto its bus (docs/joining.md).  Running it again does no harm.
set -eu
umask 077

name=@name@
url=@url@
version=@version@
wheel=@wheel@
folder=${SPINAL_MACHINE_DIR:-/var/lib/spinal-machine}

say() { printf 'spinal: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# again COMMAND...: until it works, with a pause that doubles; about a quarter of an hour in all.
again() {
    tries=1
    pause=1
    until "$@"; do
        [ "$tries" -lt 34 ] || fail "gave up after $tries tries: $*"
        say "try $tries of '$1' failed, again in $pause s"
        sleep "$pause"
        tries=$((tries + 1))
        pause=$((pause * 2))
        [ "$pause" -le 30 ] || pause=30
    done
}

mkdir -p "$folder"
cd "$folder"
folder=$(pwd)

cat > desk.pem <<'END OF CA'
%CA%
END OF CA

# Once it has joined, the machine has credentials and needs no ticket.  A disk that was frozen has
# those of the machine that it was taken from, which is gone.
verb=start
if ! grep -qsF "\"address\":\"$name@" machine.json; then
    verb=restart
    printf '%s\n' @ticket@ > ticket
fi

fetch() {
    python3 - @wheel_url@ "$wheel" @sha256@ <<'END OF PROGRAM'
import hashlib
import ssl
import sys
import urllib.request

url, path, sha256 = sys.argv[1:]
trust = ssl.create_default_context(cafile="desk.pem")
try:
    with urllib.request.urlopen(url, context=trust, timeout=30) as answer:
        wheel = answer.read(100_000_000)
except OSError as error:
    sys.exit(f"{url}: {error}")
if hashlib.sha256(wheel).hexdigest() != sha256:
    sys.exit(f"{url}: not the wheel that was promised")
with open(path, "wb") as file:
    file.write(wheel)
END OF PROGRAM
}

system_python() {
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        command -v apt-get >/dev/null || fail "python3 with venv is missing: use an image that has it"
        export DEBIAN_FRONTEND=noninteractive
        again apt-get -q update
        again apt-get -qy --no-install-recommends install python3 python3-venv
    fi
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$(python3 --version) is too old: use an image with Python 3.11 or newer"
}

install_spinal() {
    system_python
    again fetch
    rm -rf venv
    python3 -m venv venv
    again venv/bin/python -m pip --no-input --disable-pip-version-check -q install "./$wheel"
    rm "$wheel"
    printf '%s\n' "$version" > installed
}

if [ -n "${SPINAL_PYTHON:-}" ]; then
    python=$SPINAL_PYTHON
    found=$("$python" -c 'import spinal; print(spinal.__version__)') ||
        fail "SPINAL_PYTHON=$python has no Spinal"
    [ "$found" = "$version" ] || fail "SPINAL_PYTHON has Spinal $found, and the home has $version"
else
    [ -z @index@ ] || export PIP_INDEX_URL=@index@
    [ "$(cat installed 2>/dev/null)" = "$version" ] || install_spinal
    python=$folder/venv/bin/python
fi

# Under systemd it is a service, so that the boot ends and the agents are back after the next one.
if [ -z "${SPINAL_PYTHON:-}" ] && [ -d /run/systemd/system ] && [ "$(id -u)" = 0 ]; then
    cat > /etc/systemd/system/spinal-machine.service <<END
[Unit]
Description=Agents of $name on the bus
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=$python -m spinal join $url --name $name --folder $folder --ca $folder/desk.pem --ticket-file $folder/ticket
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=5
KillMode=mixed
TimeoutStopSec=11min

[Install]
WantedBy=multi-user.target
END
    systemctl daemon-reload
    systemctl enable spinal-machine.service
    systemctl "$verb" --no-block spinal-machine.service
    exit 0
fi

exec "$python" -m spinal join "$url" --name "$name" --folder "$folder" --ca desk.pem \
    --ticket-file ticket
"""
