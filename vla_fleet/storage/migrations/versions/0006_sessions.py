# SPDX-License-Identifier: Apache-2.0
"""People who have signed in to the page."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "sessions",
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("expires_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["key_hash"], ["api_keys.key_hash"], name=op.f("fk_sessions_key_hash")),
        sa.PrimaryKeyConstraint("secret_hash", name=op.f("pk_sessions")),
    )
