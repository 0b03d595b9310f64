"""Brings the tables up to date, by the numbered steps in ``migrations/versions``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from .contract import NotAStore

MIGRATIONS: Final = Path(__file__).parent / "migrations"

#: Every version that there was, oldest first; files are named after theirs.
VERSIONS: Final = sorted(
    path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py")
)


def check_version(found: str | None, name: str) -> None:
    """Refuse a store that a newer program has written.

    Raises:
        NotAStore: it is of a version that is not ours.
    """
    if found is not None and found not in VERSIONS:
        raise NotAStore(
            f"the store {name} is of version {found}, and this spinal knows none after "
            f"{VERSIONS[-1]}: install the newer spinal that wrote it"
        )


def upgrade(connection: sa.Connection, name: str) -> None:
    """Bring the tables up to date, inside a transaction that nobody else migrates in.

    Raises:
        NotAStore: what is there is not ours, or newer.
    """
    tables = sa.inspect(connection).get_table_names()
    found: str | None = None
    if "alembic_version" in tables:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    elif tables:
        raise NotAStore(f"the store {name} has tables of another program: give it another place")
    check_version(found, name)
    if found == VERSIONS[-1]:
        return
    # Slow to import, and rarely needed.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
