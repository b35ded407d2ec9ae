# SPDX-License-Identifier: Apache-2.0
"""Retired versions and the age of blobs; rotation of tokens, revoked keys; what acts on a robot, and why."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("touched_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blobs")),
    )
    with op.batch_alter_table("versions") as batch_op:
        batch_op.add_column(sa.Column("retired_s", sa.Double(), nullable=True))
    with op.batch_alter_table("api_keys") as batch_op:
        batch_op.add_column(sa.Column("created_by", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("revoked_s", sa.Double(), nullable=True))
    with op.batch_alter_table("robots") as batch_op:
        batch_op.add_column(sa.Column("next_token_hash", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("rotate", sa.Boolean(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("revoked", sa.Boolean(), nullable=False, server_default="0"))
        batch_op.create_index(op.f("ix_robots_next_token_hash"), ["next_token_hash"], unique=True)
    with op.batch_alter_table("events") as batch_op:
        batch_op.add_column(sa.Column("digest", sa.String(length=128), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("cause", sa.String(length=128), nullable=False, server_default=""))
        batch_op.create_index("ix_events_update", ["update_id"])
