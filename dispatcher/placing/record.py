"""A service as a record of the store, and a record as a service."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final, cast

from spinal.protocols import Json

from ..store.contract import Record
from .service import Asked, Placement, Service, State

#: What records of services are called.
KIND: Final = "service"

_SERVICE: Final = [one.name for one in fields(Service) if one.name not in ("name", "version")]
_ASKED_TIMES: Final = ("ran", "ran_before")
_PLACEMENT: Final = [one.name for one in fields(Placement)]


def written(one: Service) -> Record:
    """Take down a service."""
    members: dict[str, Any] = {name: getattr(one, name) for name in _SERVICE}
    members["state"] = one.state.value
    for name in _ASKED_TIMES:
        asked: Asked | None = members[name]
        members[name] = None if asked is None else [asked.arguments, asked.want]
    members["history"] = [
        {name: getattr(placement, name) for name in _PLACEMENT} for placement in one.history
    ]
    body: Json = members
    return Record(KIND, one.name, one.version, body)


def read(record: Record) -> Service:
    """Read a service."""
    members = dict(cast("dict[str, Any]", record.body))
    members["state"] = State(members["state"])
    for name in _ASKED_TIMES:
        if members[name] is not None:
            arguments, want = members[name]
            members[name] = Asked(arguments=arguments, want=want)
    members["history"] = tuple([Placement(**one) for one in members["history"]])
    return Service(name=record.name, version=record.version, **members)
