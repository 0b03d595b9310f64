"""The ways in which an operation of a manifest is done, one module each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..kind import Kind
from .command import Command
from .http import Http
from .sql import Sql

#: Key in the manifest -> its kind.
KINDS: Final[Mapping[str, type[Kind]]] = {"command": Command, "http": Http, "sql": Sql}
