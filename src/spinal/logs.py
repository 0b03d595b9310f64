"""Where log events go: to stderr, as lines for people on a terminal and as JSON elsewhere.

The only caller of ``structlog.configure``.  Programs that use Spinal as a library keep their own.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog

#: Names of values that are never written out.
SECRET: Final = ("password", "secret", "token", "authorization")

LEVELS: Final = ("debug", "info", "warning", "error", "critical")


def configure(
    level: str = "warning",
    *,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Send events of at least this level to stderr, or to ``stream``.

    ``$SPINAL_LOG`` goes before ``level``.  What libraries log by :mod:`logging` comes out in the
    same form, from warnings on.

    Raises :class:`ValueError` if ``$SPINAL_LOG`` is no level.
    """
    wanted = environ.get("SPINAL_LOG", "").lower() or level
    if wanted not in LEVELS:
        raise ValueError(f"SPINAL_LOG: {wanted!r} is no level: use one of {', '.join(LEVELS)}")
    number = logging.getLevelNamesMapping()[wanted.upper()]
    out = stream if stream is not None else sys.stderr
    stamp = structlog.processors.TimeStamper(
        fmt="%H:%M:%S" if out.isatty() else "iso", utc=not out.isatty()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        stamp,
        mask,
    ]
    finish: list[structlog.typing.Processor]
    if out.isatty():
        finish = [
            structlog.dev.ConsoleRenderer(
                colors="NO_COLOR" not in environ,
                exception_formatter=structlog.dev.plain_traceback,
                pad_event_to=0,
            )
        ]
    else:
        finish = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


def mask(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the values whose names say that they are secrets."""
    for name in event:
        if any(word in name.lower() for word in SECRET) and not name.endswith("_file"):
            event[name] = "***"
    return event
