"""``providers.yaml``: the vendors' accounts of a home, its currency and its budgets."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from spinal.agents import secret
from spinal.agents.document import (
    DURATION,
    SIZE,
    BadDocument,
    Document,
    Mistake,
    check,
    load,
    members,
)
from spinal.agents.document import seconds as read_seconds
from spinal.agents.document import size as read_size
from spinal.agents.errors import AgentError
from spinal.agents.secret import Secret
from spinal.protocols import Json

from .offer import Exchange
from .pace import Pace
from .vendors import FORMS, OTHER, UNFIT, Form

#: Its name in the home.
FILE: Final = "providers.yaml"

#: What the accounts of provider agents are called before the name of theirs, and no other's is: the
#: dispatcher rents from nobody else.
PREFIX: Final = "provider-"

#: Folder in the home for the machines of a local account, which has one of its own there.
MACHINES: Final = "machines"

#: Seconds that a vendor may be silent in one request.
TIMEOUT: Final = 20.0

#: Most accounts in a file.
MAX_ACCOUNTS: Final = 50


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent at most in a calendar month."""

    #: In the home's currency.
    per_month: float
    #: Of what has this label; none means of everything.
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A kind of machine that a local account has."""

    name: str
    cpu: float
    #: Bytes.
    ram: int
    disk: int = 10 * 1024**3
    #: Of an hour.
    price: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account at a vendor."""

    name: str
    driver: str
    #: Of its prices.
    currency: str = "USD"
    #: As the vendor writes them; none means all that it has.
    regions: tuple[str, ...] = ()
    #: Most machines at once; none means that the vendor alone sets a bound.
    limit: int | None = None
    #: Another address of its API, such as ``http://127.0.0.1:8080``.
    endpoint: str | None = None
    #: Seconds that the vendor may be silent in one request.
    timeout: float = TIMEOUT
    #: Name of an image here -> what the vendor calls it.
    images: Mapping[str, str] = field(default_factory=dict[str, str])
    #: Type -> price of an hour, in place of what the vendor or a table says.
    prices: Mapping[str, float] = field(default_factory=dict[str, float])
    #: Kinds of machine, of a local account.
    sizes: tuple[Size, ...] = ()
    #: What else the driver's form has, secrets as references.
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def form(self) -> Form:
        """What its driver's accounts have."""
        return FORMS.get(self.driver, OTHER)

    @property
    def agent(self) -> str:
        """Name of its agent on the bus."""
        return f"{PREFIX}{self.name}"

    def secrets(self) -> Iterator[tuple[str, Secret]]:
        """Give the references to secrets in it, with their keys."""
        arguments: Mapping[str, Any] = self.options.get("arguments", {})
        for key, value in (*self.options.items(), *arguments.items()):
            if isinstance(value, Secret):
                yield key, value

    def word(self, key: str, usual: str = "") -> str:
        """Give an option that is a text, reading it if it is a secret.

        Raises:
            AgentError: the secret cannot be read.
        """
        value = self.options.get(key, usual)
        return value.read() if isinstance(value, Secret) else str(value)


#: What there is without a file: machines here, whose prices are made up and only compare.
LOCAL: Final = Account(
    name="local",
    driver="local",
    currency="EUR",
    limit=8,
    sizes=(
        Size(name="small", cpu=1, ram=1024**3, disk=10 * 1024**3, price=0.01),
        Size(name="medium", cpu=2, ram=2 * 1024**3, disk=20 * 1024**3, price=0.02),
        Size(name="large", cpu=4, ram=8 * 1024**3, disk=40 * 1024**3, price=0.05),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """All that the file says."""

    currency: str = "EUR"
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    #: Host, or ``host:port``, by which machines elsewhere reach this home; empty: its public host.
    bus: str = ""
    budgets: tuple[Budget, ...] = ()
    accounts: Mapping[str, Account] = field(default_factory=lambda: {LOCAL.name: LOCAL})
    pace: Pace = field(default_factory=Pace)

    @property
    def exchange(self) -> Exchange:
        """Money in the home's currency."""
        return Exchange(self.currency, dict(self.rates))

    def account(self, name: str) -> Account:
        """Give an account.

        Raises:
            AgentError: there is none of that name.
        """
        if name not in self.accounts:
            raise AgentError(f"no account {name!r} in {FILE}, only {', '.join(self.accounts)}")
        return self.accounts[name]

    @classmethod
    def find(cls, home: Path) -> Providers:
        """Read the file of a home; without one there is the account ``local`` alone.

        Raises what :meth:`load` raises.
        """
        path = home / FILE
        return cls.load(path) if path.exists() else cls._without(home)

    @classmethod
    def _without(cls, folder: Path) -> Providers:
        local = replace(LOCAL, options=_folder(LOCAL.name, {"driver": "local"}, folder))
        return cls(accounts={local.name: local})

    @classmethod
    def load(cls, path: Path | str) -> Providers:
        """Read a file.  Secrets are not read, and need not be there.

        Raises:
            BadDocument: it has mistakes; each with its line and what to write.
            AgentError: there is no such file.
        """
        document = load(path)
        if document.value is None:
            return cls._without(document.folder)
        if wrong := list(check(document, schema(document.value))):
            raise BadDocument(wrong)
        value: Any = document.value
        currency: str = value.get("currency", "EUR")
        accounts = {
            name: _account(name, account or {}, document, currency)
            for name, account in value.get("accounts", {}).items()
        }
        bus: Mapping[str, Any] = value.get("bus", {})
        found = cls(
            currency=currency,
            rates=value.get("rates", {}),
            bus=f"{bus['host']}:{bus['port']}" if "port" in bus else bus.get("host", ""),
            budgets=tuple(
                Budget(one["per_month"], one.get("label")) for one in value.get("budgets", ())
            ),
            accounts=accounts or cls._without(document.folder).accounts,
            pace=_pace(value.get("pace", {})),
        )
        if wrong := list(_mistakes(document, found)):
            raise BadDocument(wrong)
        return found


def _pace(value: Mapping[str, Any]) -> Pace:
    plain = ("unseen", "pauses")
    given: dict[str, Any] = {
        key: item if key in plain else read_seconds(item) for key, item in value.items()
    }
    return Pace(**given)


def _account(
    name: str, value: Mapping[str, Any], document: Document, home_currency: str
) -> Account:
    driver: str = value["driver"]
    form = FORMS.get(driver, OTHER)
    plain = {"driver", "currency", "regions", "limit", "endpoint", "timeout", "images", "prices"}
    currency = home_currency if driver == "local" else form.currency
    sizes: Mapping[str, Any] = value.get("sizes", {})
    return Account(
        name=name,
        driver=driver,
        currency=value.get("currency", currency),
        regions=tuple(value.get("regions", ())),
        limit=value.get("limit", LOCAL.limit if driver == "local" else None),
        endpoint=value.get("endpoint", "").rstrip("/") or None,
        timeout=read_seconds(value["timeout"]) if "timeout" in value else TIMEOUT,
        images={key: str(image) for key, image in value.get("images", {}).items()},
        prices=value.get("prices", {}),
        sizes=tuple(
            Size(
                name=key,
                cpu=one["cpu"],
                ram=read_size(one["ram"]),
                price=one["price"],
                **({"disk": read_size(one["disk"])} if "disk" in one else {}),
            )
            for key, one in sizes.items()
        )
        or (LOCAL.sizes if driver == "local" else ()),
        options={
            **_folder(name, value, document.folder),
            **{
                key: _option(item, document.folder)
                for key, item in value.items()
                if key not in plain and key not in ("sizes", "folder")
            },
        },
    )


def _folder(name: str, value: Mapping[str, Any], base: Path) -> dict[str, str]:
    """Give where the machines of a local account are, and the home, which they are not to see."""
    if value["driver"] != "local":
        return {}
    return {"folder": str(base / value.get("folder", f"{MACHINES}/{name}")), "home": str(base)}


def _option(item: Any, folder: Path) -> Any:
    """Give an option; what looks like a reference is one, in ``arguments`` as well."""
    if not isinstance(item, dict):
        return item
    one: dict[str, Any] = item  # pyright: ignore[reportUnknownVariableType] - of Any
    if len(one) == 1 and next(iter(one)) in ("env", "file", "credential"):
        return Secret.of(one, folder)
    return {key: _option(inner, folder) for key, inner in one.items()}


def _mistakes(document: Document, found: Providers) -> Iterator[Mistake]:
    """Find what a schema cannot."""
    for name, account in found.accounts.items():
        if name in _given(document) and found.exchange.rate(account.currency) is None:
            key = "currency" if "currency" in _given(document)[name] else "driver"
            yield document.mistake(
                ["accounts", name, key],
                f"its prices are in {account.currency} and the home's currency is "
                f"{found.currency}: say what one {account.currency} costs, such as "
                f"rates: {{{account.currency}: 0.92}}",
            )
    if found.currency in found.rates and found.rates[found.currency] != 1:
        yield document.mistake(
            ["rates", found.currency], f"{found.currency} is the home's currency: leave it out"
        )
    for name, account in found.accounts.items():
        least = 3 * account.timeout
        if "timeout" in _given(document).get(name, {}) and found.pace.order < least:
            yield document.mistake(
                ["accounts", name, "timeout"],
                f"a vendor is asked three times for one machine: pace: {{order: {least:g}s}} is the "
                f"shortest for it, and it is {found.pace.order:g} s",
            )
    labels = [budget.label for budget in found.budgets]
    for place, label in enumerate(labels):
        if label in labels[:place]:
            about = f"label {label!r}" if label else "everything"
            yield document.mistake(["budgets", place], f"a second budget of {about}: leave one out")


def _given(document: Document) -> Mapping[str, Any]:
    value: Any = document.value
    found: Mapping[str, Any] = value.get("accounts", {})
    return found


# -- the schema


def _object(properties: Mapping[str, Json], **more: Json) -> dict[str, Json]:
    return {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
        **more,
    }


_TEXT: Final[Mapping[str, Json]] = {"type": "string", "minLength": 1, "maxLength": 300}

#: What stands in its place, which may be the secret itself, is not shown.
_SECRET: Final[Mapping[str, Json]] = {**secret.SCHEMA, "writeOnly": True}

_TEXT_OR_SECRET: Final[Mapping[str, Json]] = {
    "anyOf": [dict(_TEXT), dict(secret.SCHEMA)],
    "examples": [{"env": "AWS_KEY"}],
}

_CURRENCY: Final[Mapping[str, Json]] = {
    "type": "string",
    "pattern": "^[A-Z]{3}$",
    "patternErrorMessage": "must be a currency of three letters",
    "examples": ["EUR"],
}

_PRICE: Final[Mapping[str, Json]] = {
    "type": "number",
    "exclusiveMinimum": 0,
    "examples": [0.05],
}

_URL: Final[Mapping[str, Json]] = {
    "type": "string",
    "pattern": r"^https?://[^/?#\s@]+(/[^?#\s]*)?$",
    "patternErrorMessage": "must be an address without a password",
    "examples": ["https://cloud.example.org:5000"],
}


def _texts(example: str, **more: Json) -> dict[str, Json]:
    return {
        "type": "array",
        "items": dict(_TEXT),
        "maxItems": 100,
        "uniqueItems": True,
        "examples": [[example]],
        **more,
    }


_PACE: Final[Mapping[str, Json]] = {
    "order": {**DURATION, "description": "A vendor may take to answer an order."},
    "look": {**DURATION, "description": "Between two lists while something is under way."},
    "rest": {**DURATION, "description": "Between two lists while nothing is."},
    "settle": {**DURATION, "description": "How old a vendor's list may be at most."},
    "unseen": {
        "type": "integer",
        "minimum": 1,
        "maximum": 100,
        "description": "Lists in a row without a machine until it is held for gone.",
        "examples": [3],
    },
    "away": {**DURATION, "description": "A machine's agents may be away until it is given up."},
    "pauses": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 100,
        "description": "Factor of all pauses after refusals and failures.",
        "examples": [1],
    },
}

#: Keys that an account may have, whatever its driver.
_ANY: Final[Mapping[str, Json]] = {
    "driver": {
        "type": "string",
        "minLength": 1,
        "maxLength": 60,
        "description": f"{', '.join(FORMS)}, or the name of another driver of libcloud.",
        "examples": ["digitalocean"],
    },
    "currency": {**_CURRENCY, "description": "Of the vendor's prices."},
    "regions": _texts("eu-west-1", description="As the vendor writes them; all without."),
    "limit": {
        "type": "integer",
        "minimum": 1,
        "maximum": 100_000,
        "description": "Most machines at once.",
        "examples": [20],
    },
}

#: Keys that some drivers' accounts have.
_SOME: Final[Mapping[str, Mapping[str, Json]]] = {
    "key": {**_TEXT_OR_SECRET, "description": "Access key, which is no secret at EC2."},
    "secret": _SECRET,
    "token": _SECRET,
    "password": _SECRET,
    "session": _SECRET,
    "user": _TEXT_OR_SECRET,
    "tenant": {**_TEXT, "description": "The project.", "examples": ["demo"]},
    "domain": {**_TEXT, "examples": ["Default"]},
    "identity": {"enum": ["3", "2"], "description": "Version of Keystone's API."},
    "service": {
        **_TEXT,
        "description": "Name of the compute service, where the catalogue has several.",
    },
    "endpoint": {**_URL, "description": "Another address of its API; of Keystone for OpenStack."},
    "timeout": {**DURATION, "description": "How long the vendor may be silent in one request."},
    "networks": _texts("private", description="Networks or subnets by name or id."),
    "security_groups": _texts("sg-0123", description="Ids of security groups."),
    "images": {
        "type": "object",
        "additionalProperties": {"type": ["string", "integer"]},
        "maxProperties": 100,
        "description": "Name of an image here -> what the vendor calls it.",
        "examples": [{"debian-12": "ami-0123456789abcdef0"}],
    },
    "prices": {
        "type": "object",
        "additionalProperties": dict(_PRICE),
        "maxProperties": 2000,
        "description": "Type -> price of an hour.",
        "examples": [{"m1.small": 0.05}],
    },
    "sizes": {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 100,
        "additionalProperties": _object(
            {
                "cpu": {"type": "number", "exclusiveMinimum": 0, "examples": [2]},
                "ram": {**SIZE, "examples": ["2G"]},
                "disk": {**SIZE, "examples": ["20G"]},
                "price": {**_PRICE, "description": "Of an hour."},
            },
            required=["cpu", "ram", "price"],
        ),
        "description": "Kinds of machine that are had here.",
        "examples": [{"small": {"cpu": 1, "ram": "1G", "price": 0.01}}],
    },
    "capacity": {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 100_000},
        "maxProperties": 100,
        "description": "Region/size -> machines after which it pretends to have no more.",
        "examples": [{"local/small": 2}],
    },
    "isolation": {
        "enum": ["auto", "process", "bubblewrap", "nspawn"],
        "description": "How machines here are kept apart.",
    },
    "root": {**_TEXT, "description": "System that nspawn's machines begin with."},
    "folder": {**_TEXT, "description": "Where the machines' files are."},
    "boot": {**DURATION, "description": "How long a machine pretends to start."},
    "arguments": {
        "type": "object",
        "description": "What libcloud's driver is made with.",
        "examples": [{"key": {"env": "CLOUD_KEY"}}],
    },
    "create": {
        "type": "object",
        "description": "What its create_node calls things, and more that it takes.",
        "examples": [{"user_data": "ex_userdata"}],
    },
    "price_per": {"enum": ["hour", "month"], "description": "What the driver's prices are for."},
}

_NAME: Final = "^[a-z0-9][a-z0-9-]{0,39}$"


def account_schema(driver: str | None) -> dict[str, Json]:
    """Give the schema of an account with this driver."""
    if driver is None or (driver not in FORMS and driver not in others()):
        # What else it may have, nobody knows.
        near = difflib.get_close_matches(driver or "", sorted({*FORMS, *others()}), 1)
        named: dict[str, Json] = {
            "type": "string",
            "pattern": rf"^({'|'.join(FORMS)})$",
            "patternErrorMessage": f"is none of {', '.join(FORMS)}, and no other driver of "
            + f"libcloud that can be used{f': did you mean {near[0]}?' if near else ''}",
            **({} if near else {"examples": ["digitalocean"]}),
        }
        return {"type": "object", "properties": {"driver": named}, "required": ["driver"]}
    form = FORMS.get(driver, OTHER)
    properties = {**_ANY, **{key: _SOME[key] for key in (*form.needs, *form.may) if key in _SOME}}
    return _object(properties, required=["driver", *form.needs])


def others() -> set[str]:
    """Give the names of libcloud's drivers that are usable by configuration."""
    from libcloud.compute.providers import DRIVERS

    return {str(getattr(one, "value", one)) for one in DRIVERS} - {*FORMS, *UNFIT}


def schema(value: Any = None) -> dict[str, Json]:
    """Give the schema of a file; what an account may have depends on its driver."""
    each: dict[str, Json] = {}
    for name, account in members(members(value).get("accounts")).items():
        driver: Any = members(account).get("driver")
        each[name] = account_schema(driver if isinstance(driver, str) else None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Spinal providers",
        **_object(
            {
                "currency": {**_CURRENCY, "description": "In which this home counts money."},
                "rates": {
                    "type": "object",
                    "propertyNames": dict(_CURRENCY),
                    "additionalProperties": {**_PRICE, "examples": [0.92]},
                    "description": "What one of another currency costs in the home's.",
                    "examples": [{"USD": 0.92}],
                },
                "bus": _object(
                    {
                        "host": {**_TEXT, "examples": ["bus.example.org"]},
                        "port": {"type": "integer", "minimum": 1, "maximum": 65_535},
                    },
                    required=["host"],
                    description="How machines elsewhere reach this home.",
                    examples=[{"host": "bus.example.org"}],
                ),
                "budgets": {
                    "type": "array",
                    "maxItems": 100,
                    "items": _object(
                        {
                            "per_month": {
                                "type": "number",
                                "minimum": 0,
                                "description": "In the home's currency.",
                                "examples": [500],
                            },
                            "label": {**_TEXT, "examples": ["shop"]},
                        },
                        required=["per_month"],
                    ),
                    "description": "What may be spent at most.",
                    "examples": [[{"per_month": 500}]],
                },
                "pace": _object(
                    _PACE,
                    description="How long things may take.",
                    examples=[{"order": "90s"}],
                ),
                "accounts": {
                    "type": "object",
                    "properties": each,
                    "propertyNames": {
                        "type": "string",
                        "pattern": _NAME,
                        "patternErrorMessage": "must be small letters, digits and '-'",
                        "examples": ["aws"],
                    },
                    "maxProperties": MAX_ACCOUNTS,
                    "description": "The accounts at vendors.",
                    "examples": [{"local": {"driver": "local"}}],
                },
            }
        ),
    }
