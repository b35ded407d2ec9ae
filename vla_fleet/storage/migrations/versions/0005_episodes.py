# SPDX-License-Identifier: Apache-2.0
"""Episodes that robots have uploaded, and data sets that were built from them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_EPISODE_WORDS = ("robot_type", "episode_id", "policy", "version", "digest", "arm", "experiment")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "episodes",
        sa.Column("number", _ID, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("robot", sa.String(length=64), nullable=False),
        *(sa.Column(name, sa.String(length=128), nullable=False) for name in _EPISODE_WORDS),
        sa.Column("instructions", sa.JSON(), nullable=False),
        sa.Column("success", sa.Boolean(), nullable=True),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("corrections", sa.Integer(), nullable=False),
        sa.Column("rate_hz", sa.Double(), nullable=False),
        sa.Column("started_s", sa.Double(), nullable=False),
        sa.Column("duration_s", sa.Double(), nullable=False),
        sa.Column("interface", sa.String(length=16), nullable=False),
        sa.Column("received_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["robot"], ["robots.name"], name=op.f("fk_episodes_robot")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_episodes")),
        sa.UniqueConstraint("sha256", name=op.f("uq_episodes_sha256")),
    )
    op.create_index("ix_episodes_robot", "episodes", ["robot", "number"])
    op.create_index("ix_episodes_version", "episodes", ["policy", "version", "number"])
    op.create_index("ix_episodes_success", "episodes", ["success", "number"])
    op.create_index("ix_episodes_corrections", "episodes", ["corrections", "number"])
    op.create_table(
        "data_sets",
        sa.Column("number", _ID, nullable=False),
        sa.Column("policy", sa.String(length=128), nullable=False),
        sa.Column("chosen_from", sa.Text(), nullable=False),
        sa.Column("lineage_sha256", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("new_rule", sa.Text(), nullable=False),
        sa.Column("last_episode", _ID, nullable=False),
        sa.Column("episodes", sa.Integer(), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("corrections", sa.Integer(), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_data_sets")),
    )
    op.create_index(op.f("ix_data_sets_policy"), "data_sets", ["policy"])
