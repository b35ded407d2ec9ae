# SPDX-License-Identifier: Apache-2.0
"""Deltas that robots may fetch in place of a version's files."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "deltas",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("target", sa.String(length=64), nullable=False),
        sa.Column("bases", sa.JSON(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_deltas")),
    )
    op.create_index(op.f("ix_deltas_target"), "deltas", ["target"])
