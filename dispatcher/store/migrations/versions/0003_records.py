"""Services become records, of which there are other kinds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

_NAME = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Bring the tables to this version."""
    op.create_table(
        "records",
        sa.Column("id", _NAME, nullable=False, primary_key=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
    )
    op.execute(
        "INSERT INTO records (id, version, body) "
        "SELECT 'service/' || name, version, service FROM services"
    )
    op.drop_table("services")
