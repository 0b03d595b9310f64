"""ejabberd as a managed child: heavier, on all cores.

It runs as one Erlang node without a name: no distribution, so no port mapper, no cookie and no
port that could clash with another instance.  Settings were measured with ejabberd 23.01.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import aiohttp

from .contract import ServerConfig
from .errors import ServerError
from .managed import ManagedServer, checked, short_path

#: How long an order to the running server may take, in seconds.
ANSWER_WITHIN: Final = 10.0

#: Where distributions put the ejabberd-VERSION folder.
_LIBRARIES: Final = ("lib/*", "lib", "lib64", "lib/erlang/lib", "lib64/erlang/lib")
_PREFIXES: Final = ("/usr", "/usr/local", "/opt/ejabberd", "/opt/homebrew")

_EXISTS: Final = 10090


class EjabberdServer(ManagedServer):
    """ejabberd below one folder."""

    name: ClassVar[str] = "ejabberd"
    start_within: ClassVar[float] = 60.0
    stop_within: ClassVar[float] = 15.0
    # Of several connections at once to its admin socket it closes some (seen with 23.01).
    lanes: ClassVar[int] = 1

    @classmethod
    def find(cls) -> Path | None:
        """Give the folder of Erlang libraries that has ejabberd, None if it is not installed."""
        if shutil.which("erl") is not None:
            for prefix in _PREFIXES:
                for library in _LIBRARIES:
                    pattern = f"{library}/ejabberd-*/ebin/ejabberd.app"
                    for found in sorted(Path(prefix).glob(pattern)):
                        return found.parents[2]
        return None

    @classmethod
    def _command(cls, program: Path, base: str) -> tuple[Sequence[str], Mapping[str, str]]:
        argv = [
            *("erl", "+K", "true", "+P", "250000"),
            # Stacks of 64 MiB for the schedulers (of address space): its parser recurses, and with
            # those of 1 MiB any account can end the server with 20,000 nested elements.
            *("+sss", "8192", "+sssdcpu", "8192", "+sssdio", "8192"),
            # The inner quotes are Erlang's.
            *("-mnesia", "dir", f'"{base}/spool"'),
            *("-s", "ejabberd", "-noinput"),
        ]
        return argv, {
            "EJABBERD_CONFIG_PATH": f"{base}/ejabberd.yml",
            "EJABBERD_LOG_PATH": f"{base}/ejabberd.log",
            "ERL_LIBS": str(program),
            "ERL_MAX_PORTS": "65536",
            "ERL_MAX_ETS_TABLES": "20000",
            # Not a gigabyte of core dump for a server that is started again at once.
            "ERL_CRASH_DUMP_SECONDS": "0",
        }

    @classmethod
    def _configuration(cls, config: ServerConfig, base: str) -> tuple[str, str]:
        # YAML contains JSON.
        return "ejabberd.yml", json.dumps(configuration(config, base), indent=1)

    @classmethod
    async def _set(cls, config: ServerConfig, name: str, password: str) -> None:
        account = {"user": checked(name), "host": config.domain}
        status, answer = await cls._order(config, "register", {**account, "password": password})
        if status == 409 or _field(answer, "code") == _EXISTS:
            status, answer = await cls._order(
                config, "change_password", {**account, "newpass": password}
            )
        if status != 200:
            raise ServerError(f"ejabberd refused: {_field(answer, 'message') or answer}")

    @classmethod
    async def _drop(cls, config: ServerConfig, name: str) -> None:
        account = {"user": checked(name), "host": config.domain}
        status, answer = await cls._order(config, "unregister", account)
        if status != 200:
            raise ServerError(f"ejabberd refused: {_field(answer, 'message') or answer}")

    @classmethod
    async def _names(cls, config: ServerConfig) -> Collection[str]:
        status, answer = await cls._order(config, "registered_users", {"host": config.domain})
        if status != 200 or not isinstance(answer, list):
            raise ServerError(f"ejabberd refused: {_field(answer, 'message') or answer}")
        return [str(name) for name in cast(list[object], answer)]

    @classmethod
    async def _order(
        cls, config: ServerConfig, command: str, arguments: Mapping[str, str]
    ) -> tuple[int, object]:
        """Have the server run a command, and give the status and its JSON answer."""
        try:
            with short_path(cls.admin_socket(config)) as path:
                async with (
                    aiohttp.ClientSession(
                        connector=aiohttp.UnixConnector(path),
                        timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN),
                    ) as http,
                    http.post(f"http://localhost/api/{command}", json=arguments) as answer,
                ):
                    return answer.status, await answer.json(content_type=None)
        except TimeoutError:
            raise ServerError(
                f"ejabberd did not answer within {ANSWER_WITHIN:g} s: restart it"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServerError(
                f"ejabberd cannot be told anything ({error}): "
                f"start it first, and be the user who started it"
            ) from error
        except ValueError as error:
            raise ServerError(f"ejabberd answered with something unreadable: {error}") from error


def configuration(config: ServerConfig, base: str) -> dict[str, Any]:
    """Give ejabberd.yml for a server that lives in ``base``."""
    host = f"[{config.upload_host}]" if ":" in config.upload_host else config.upload_host
    tls = ["no_sslv3", "no_tlsv1", "no_tlsv1_1"]
    upload_url = f"https://{host}:{config.ports.upload}/upload"
    modules: dict[str, Any] = {
        "mod_adhoc": {},
        "mod_admin_extra": {},
        "mod_blocking": {},
        "mod_caps": {},
        "mod_carboncopy": {},
        "mod_disco": {},
        "mod_http_api": {},
        "mod_http_upload": {
            "host": config.upload_domain,
            "access": "upload",
            "docroot": f"{base}/upload",
            "put_url": upload_url,
            "get_url": upload_url,
            "max_size": config.max_blob,
            "file_mode": "0600",
            "dir_mode": "0700",
            "thumbnail": False,
        },
        # It counts in days.
        "mod_http_upload_quota": {"max_days": max(1, math.ceil(config.blob_age / 86_400))},
        "mod_last": {},
        "mod_muc": {
            "host": f"conference.{config.domain}",
            "access_create": "local",
            "default_room_options": {"mam": False},
        },
        "mod_offline": {},
        # People's clients that were cut silently; agents send heartbeats of their own.
        "mod_ping": {
            "send_pings": True,
            "ping_interval": 30,
            "ping_ack_timeout": 10,
            "timeout_action": "kill",
        },
        "mod_privacy": {},
        "mod_private": {},
        "mod_pubsub": {"access_createnode": "local", "plugins": ["flat", "pep"]},
        "mod_roster": {"versioning": True},
        # The default of five minutes hides a dead worker for as long.
        "mod_stream_mgmt": {"resend_on_timeout": "if_offline", "resume_timeout": 5},
        "mod_vcard": {},
        "mod_version": {"show_os": False},
    }
    listen: list[dict[str, Any]] = [
        {
            "port": config.ports.c2s,
            "ip": config.listen,
            "module": "ejabberd_c2s",
            "access": "c2s",
            "shaper": "none",
            "max_stanza_size": config.max_stanza,
            "starttls": True,
            "starttls_required": True,
            "protocol_options": tls,
            "backlog": 4096,
        },
        {
            "port": config.ports.upload,
            "ip": config.listen,
            "module": "ejabberd_http",
            "tls": True,
            "protocol_options": tls,
            "request_handlers": {"/upload": "mod_http_upload"},
        },
        {
            "port": config.ports.component,
            "ip": "127.0.0.1",
            "module": "ejabberd_service",
            "access": "all",
            "shaper": "none",
            "max_stanza_size": config.max_stanza,
            "hosts": {one: {"password": secret} for one, secret in config.components.items()},
        },
        # Last, so that all the others are there when it is.
        {
            "port": f"unix:{base}/admin.sock",
            "module": "ejabberd_http",
            "request_handlers": {"/api": "mod_http_api"},
        },
    ]
    if not config.components:
        # Without hosts anybody with any secret could be any component.
        listen = [one for one in listen if one["module"] != "ejabberd_service"]
    return {
        "hosts": [config.domain],
        # Warnings include every URL that somebody guesses.
        "loglevel": "error",
        "log_rotate_size": 1024 * 1024,
        "log_rotate_count": 1,
        "certfiles": [f"{base}/tls.pem"],
        "ca_file": f"{base}/ca.pem",
        "negotiation_timeout": 30,
        "listen": listen,
        "acl": {
            "local": {"user_regexp": ""},
            "components": {"server": list(config.components)},
        },
        "access_rules": {
            "c2s": {"allow": "all"},
            "local": {"allow": "local"},
            "upload": [{"allow": "local"}, {"allow": "components"}],
        },
        # Only the admin socket serves this, and only who may enter the folder gets at that.
        "api_permissions": {
            "accounts": {
                "from": ["mod_http_api"],
                "who": "all",
                "what": ["register", "registered_users", "unregister", "change_password"],
            }
        },
        "auth_method": ["mnesia"],
        "auth_password_format": "scram",
        "auth_scram_hash": "sha256",
        "disable_sasl_mechanisms": ["X-OAUTH2"],
        "cache_size": 100_000,
        # No traffic shaper on the bus; and one account may run many agents.
        "shaper": {},
        "shaper_rules": {
            "max_user_sessions": 20_000,
            # Messages that are kept for one account while it is away.
            "max_user_offline_messages": 1000,
        },
        "registration_timeout": "infinity",
        "acme": {"auto": False},
        "modules": modules,
    }


def _field(answer: object, name: str) -> object:
    """Give a field of an error, or None where the answer is something else."""
    return cast(dict[str, object], answer).get(name) if isinstance(answer, dict) else None
