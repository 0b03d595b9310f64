"""Functions whose schemas are those of protocols/vectors/schemas.json, by the case's name."""

from __future__ import annotations

import datetime
import decimal
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from spinal.bus.blob import Blob


@dataclass
class Point:
    x: float
    y: float = 0.0


class Options(TypedDict, total=False):
    quick: bool
    name: str


def nothing() -> None: ...


def text(a: str) -> None: ...


def integer(a: int) -> None: ...


def number(a: float) -> None: ...


def boolean(a: bool) -> None: ...


def null(a: None) -> None: ...


def anything(a: Any) -> None: ...


def defaults(a: int = 640, b: str | None = None, c: str = "x") -> None: ...


def between(a: Annotated[int, Meta(ge=1, le=20000)]) -> None: ...


def beyond(a: Annotated[float, Meta(gt=0, lt=1)]) -> None: ...


def multiple(a: Annotated[int, Meta(multiple_of=5)]) -> None: ...


def sized(a: Annotated[str, Meta(min_length=2, max_length=4)]) -> None: ...


def pattern(a: Annotated[str, Meta(pattern="b[0-9]+")]) -> None: ...


def whole(a: Annotated[str, Meta(pattern=r"^[a-z]{2}-\d{1,3}$")]) -> None: ...


def choice(a: Literal["red", "green", "blue"]) -> None: ...


def numbers(a: Literal[1, 2, 3]) -> None: ...


def items(a: list[int]) -> None: ...


def counted(a: Annotated[list[str], Meta(min_length=1, max_length=2)]) -> None: ...


def nested(a: list[list[float]]) -> None: ...


def mapping(a: dict[str, int]) -> None: ...


def free(a: dict[str, Any]) -> None: ...


def point(a: Point) -> None: ...


def options(a: Options) -> None: ...


def maybe(a: str | None) -> None: ...


def either(a: int | list[str]) -> None: ...


def blob(a: Blob) -> None: ...


def moment(a: Annotated[datetime.datetime, Meta(tz=True)]) -> None: ...


def amount(a: decimal.Decimal) -> None: ...


def raw(a: bytes) -> None: ...


def day(a: datetime.date) -> None: ...


def span(a: datetime.timedelta) -> None: ...


def uid(a: uuid.UUID) -> None: ...


def several(a: int, b: str, c: bool = False) -> None: ...
