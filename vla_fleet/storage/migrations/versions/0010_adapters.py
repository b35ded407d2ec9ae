# SPDX-License-Identifier: Apache-2.0
"""Adapters that robots have uploaded."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "adapters",
        sa.Column("number", _ID, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("robot", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("base_version", sa.String(length=64), nullable=False),
        sa.Column("base_digest", sa.String(length=64), nullable=False),
        sa.Column("examples", sa.Integer(), nullable=False),
        sa.Column("received_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["robot"], ["robots.name"], name=op.f("fk_adapters_robot")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_adapters")),
        sa.UniqueConstraint("sha256", name=op.f("uq_adapters_sha256")),
    )
    op.create_index("ix_adapters_robot", "adapters", ["robot", "number"])
    op.create_index("ix_adapters_base", "adapters", ["name", "base_version", "number"])
