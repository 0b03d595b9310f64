"""Prosody as a managed child: light, quick to start, on one core.

Settings and what they cost were measured with Prosody 0.12.3.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, TypeAlias
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from .contract import ServerConfig
from .errors import ServerError
from .managed import ManagedServer, checked, short_path

Value: TypeAlias = "str | int | bool | Sequence[Value] | Mapping[str, Value]"

#: How long an order to the running server may take, in seconds.
ANSWER_WITHIN: Final = 10.0

MODULES: Final = (
    # What every server has.
    *("roster", "saslauth", "tls", "disco", "presence", "message", "iq", "ping", "posix"),
    # For people's clients.
    *("pep", "private", "carbons", "smacks", "csi_simple", "offline", "blocklist", "vcard_legacy"),
    *("bookmarks", "time", "version", "adhoc"),
    # Our way in, on a socket in the server's folder.
    "admin_shell",
)

#: Make the account or set its password.  Setting it ends the account's streams, so that is not
#: done when it has this password already.
_ADD: Final = """
local um, jid = require "core.usermanager", require "util.jid";
local user, host = jid.prepped_split(%(jid)s);
if not user then return nil, "not an address"; end
local ok, err;
if not um.user_exists(user, host) then ok, err = um.create_user(user, %(password)s, host);
elseif um.test_password(user, host, %(password)s) then ok = true;
else ok, err = um.set_password(user, %(password)s, host, nil); end
if ok then return true, "done"; end
return nil, tostring(err or "refused");
"""

_REMOVE: Final = """
local um, jid = require "core.usermanager", require "util.jid";
local user, host = jid.prepped_split(%(jid)s);
if not user then return nil, "not an address"; end
if not um.user_exists(user, host) then return true, "done"; end
local ok, err = um.delete_user(user, host);
if ok then return true, "done"; end
return nil, tostring(err or "refused");
"""

_NAMES: Final = """
local names = {};
for name in require "core.usermanager".users(%(host)s) do names[#names + 1] = name; end
return true, table.concat(names, " ");
"""


class ProsodyServer(ManagedServer):
    """Prosody below one folder."""

    name: ClassVar[str] = "prosody"
    start_within: ClassVar[float] = 15.0
    stop_within: ClassVar[float] = 5.0

    @classmethod
    def find(cls) -> Path | None:
        """Give where its program is on this machine, None if it is not installed."""
        found = shutil.which("prosody")
        return None if found is None else Path(found)

    @classmethod
    def _command(cls, program: Path, base: str) -> tuple[Sequence[str], Mapping[str, str]]:
        return [str(program), "-F", "--config", f"{base}/prosody.cfg.lua"], {}

    @classmethod
    def _configuration(cls, config: ServerConfig, base: str) -> tuple[str, str]:
        return "prosody.cfg.lua", configuration(config, base)

    @classmethod
    async def _set(cls, config: ServerConfig, name: str, password: str) -> None:
        jid = lua(f"{checked(name)}@{config.domain}")
        await cls._order(config, _ADD % {"jid": jid, "password": lua(password)})

    @classmethod
    async def _drop(cls, config: ServerConfig, name: str) -> None:
        await cls._order(config, _REMOVE % {"jid": lua(f"{checked(name)}@{config.domain}")})

    @classmethod
    async def _names(cls, config: ServerConfig) -> Collection[str]:
        return (await cls._order(config, _NAMES % {"host": lua(config.domain)})).split()

    @classmethod
    async def _order(cls, config: ServerConfig, program: str) -> str:
        """Have the server run a piece of Lua, and give the text of its answer.

        It goes through the socket and not through prosodyctl, whose arguments, and the password
        among them, anybody on the machine could read.
        """
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                with short_path(cls.admin_socket(config)) as path:
                    kind, text = await _repl(path, " ".join(program.split("\n")))
        except TimeoutError:
            raise ServerError(
                f"prosody did not answer within {ANSWER_WITHIN:g} s: restart it"
            ) from None
        except OSError as error:
            raise ServerError(
                f"prosody cannot be told anything ({error.strerror}): "
                f"start it first, and be the user who started it"
            ) from error
        if kind == "error":
            raise ServerError(f"prosody refused: {text.removeprefix('Error: ')}")
        return text.removeprefix("OK: ")


def configuration(config: ServerConfig, base: str) -> str:
    """Give the text of prosody.cfg.lua for a server that lives in ``base``."""
    listen: Value = [config.listen]
    if config.listen == "::":
        listen = ["0.0.0.0", "::"]  # Its IPv6 sockets take no IPv4.
    key_pair: Value = {"key": f"{base}/tls.pem", "certificate": f"{base}/tls.pem"}
    settings: dict[str, Value] = {
        "data_path": base,
        "admin_socket": f"{base}/admin.sock",
        "log": [{"levels": {"min": "warn"}, "to": "console", "timestamps": True}],
        "network_backend": "epoll",
        # The collector as shipped costs as much CPU as all the rest of a round trip.
        "gc": {"mode": "incremental", "threshold": 200, "speed": 200},
        "network_settings": {
            # Nagle's algorithm means 44 ms for whoever delays acknowledgements.
            "nagle": False,
            "opportunistic_writes": False,
            # As shipped (1 ms) it pauses that long for each TLS record: 6 MB/s for an upload
            # instead of 90.
            "min_wait": 0,
            "tcp_backlog": 4096,
            # With stream management: notice a silent cut after this and the ack time-out.
            "read_timeout": 10,
        },
        "interfaces": listen,
        "local_interfaces": ["127.0.0.1"],
        "c2s_ports": [config.ports.c2s],
        "c2s_direct_tls_ports": [],
        "c2s_require_encryption": True,
        "c2s_stanza_size_limit": config.max_stanza,
        "c2s_timeout": 30,
        "component_ports": [config.ports.component],
        "component_interfaces": ["127.0.0.1"],
        "component_stanza_size_limit": config.max_stanza,
        "http_ports": [],
        "http_interfaces": ["127.0.0.1"],
        "https_ports": [config.ports.upload],
        "https_interfaces": listen,
        "https_ssl": key_pair,
        # Whatever name or address an agent reaches us by, it is after a blob.
        "http_default_host": config.upload_domain,
        "http_external_url": f"https://{_bracketed(config.upload_host)}:{config.ports.upload}/",
        "ssl": key_pair,
        "certificates": base,
        "modules_enabled": list(MODULES),
        "modules_disabled": ["s2s"],
        "admins": [],
        "authentication": "internal_hashed",
        "password_hash": "SHA-256",
        # Clients derive as many for each login; see ``embedded/accounts.py``.
        "default_iteration_count": 4096,
        "allow_unencrypted_plain_auth": False,
        "allow_registration": False,
        "storage": "internal",
        # Messages that are kept for one account while it is away; as shipped, 10,000.
        "storage_archive_item_limit": 1000,
        # No traffic shaper on the bus.
        "limits": {},
        # The default of ten minutes hides a dead worker for as long.
        "smacks_hibernation_time": 5,
    }
    secrets: list[tuple[str, Mapping[str, Value]]] = [
        (f"Component {lua(domain)}", {"component_secret": secret})
        for domain, secret in config.components.items()
    ]
    parts: list[tuple[str, Mapping[str, Value]]] = [
        (f"VirtualHost {lua(config.domain)}", {}),
        (
            f"Component {lua(f'conference.{config.domain}')} {lua('muc')}",
            {
                # A room that a program makes must not wait for a person to unlock it.
                "muc_room_locking": False,
                "muc_room_default_persistent": False,
                "restrict_room_creation": "local",
            },
        ),
        (
            f"Component {lua(config.upload_domain)} {lua('http_file_share')}",
            {
                "http_file_share_size_limit": config.max_blob,
                "http_file_share_expires_after": config.blob_age,
                # Per account; a bus is not a chat.
                "http_file_share_daily_quota": config.max_blob * 1000,
                "http_file_share_access": [config.domain, *config.components],
            },
        ),
        *secrets,
    ]
    lines = ["-- Written by Spinal at each start."]
    lines += [f"{key} = {lua(value)}" for key, value in settings.items()]
    for head, options in parts:
        lines += [head, *(f"  {key} = {lua(value)}" for key, value in options.items())]
    return "\n".join(lines) + "\n"


def lua(value: Value) -> str:
    """Write a value as Lua does."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            plain = (
                chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03}" for b in value.encode()
            )
            return '"' + "".join(plain) + '"'
        case Mapping():
            return "{ " + "; ".join(f"[{lua(k)}] = {lua(v)}" for k, v in value.items()) + " }"
        case _:
            return "{ " + "; ".join(lua(one) for one in value) + " }"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _repl(path: str, line: str) -> tuple[str, str]:
    """Send one line to the admin shell and give kind and text of its result.

    The stream is that of Prosody's util.adminstream; a leading ``>`` asks for all of Lua.
    """
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(
            b"<stream:stream xmlns='xmpp:prosody.im/admin'"
            b" xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>"
            + f"<repl-input>&gt;{escape(line)}</repl-input>".encode()
        )
        answer = await reader.readuntil(b"</repl-result>")
        # Just this element: what stands before it is the stream's header and printed lines.
        result = ElementTree.fromstring(answer[answer.rindex(b"<repl-result") :])
        return result.get("type", ""), result.text or ""
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise ServerError("prosody gave no answer to an order: look at its log") from error
    except ElementTree.ParseError as error:
        raise ServerError(f"prosody answered with something unreadable: {error}") from error
    finally:
        writer.transport.abort()
