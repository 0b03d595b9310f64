"""The ways in which an operation of a manifest is done, one module each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..kind import Kind
from .command import Command
from .files import Files
from .http import Http
from .program import Program
from .sql import Sql
from .tcp import Tcp

#: Key in the manifest -> its kind.
KINDS: Final[Mapping[str, type[Kind]]] = {
    "command": Command,
    "http": Http,
    "tcp": Tcp,
    "sql": Sql,
    "files": Files,
    "program": Program,
}
