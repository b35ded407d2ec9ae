# SPDX-License-Identifier: Apache-2.0
"""Rollouts and their robots; who decides what a robot runs; evidence, and what became of each outcome."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("commands", schema=None) as batch_op:
        batch_op.add_column(sa.Column("robot_time_s", sa.Double(), nullable=False, server_default="0"))
        batch_op.create_index("ix_commands_by", ["created_by", "number"], unique=False)
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("target", sa.String(length=80), nullable=False),
        sa.Column("active", sa.String(length=160), nullable=True),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("stages", sa.JSON(), nullable=False),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("history", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("stage_since_s", sa.Double(), nullable=False),
        sa.Column("judged_stage", sa.Integer(), nullable=False),
        sa.Column("judged_since_s", sa.Double(), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("ended_s", sa.Double(), nullable=False),
        sa.Column("taken", _ID, nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.JSON(), nullable=False),
        sa.Column("verdict_s", sa.Double(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
        sa.UniqueConstraint("active", name=op.f("uq_rollouts_active")),
    )
    op.create_index(op.f("ix_rollouts_state"), "rollouts", ["state"])
    op.create_table(
        "rollout_robots",
        sa.Column("rollout", sa.String(length=64), nullable=False),
        sa.Column("robot", sa.String(length=64), nullable=False),
        sa.Column("origin", sa.String(length=64), nullable=False),
        sa.Column("joined", sa.Integer(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=True),
        sa.Column("reported_failed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["robot"], ["robots.name"], name=op.f("fk_rollout_robots_robot")),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name=op.f("fk_rollout_robots_rollout")),
        sa.PrimaryKeyConstraint("rollout", "robot", name=op.f("pk_rollout_robots")),
    )
    op.create_table(
        "claims",
        sa.Column("robot", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["robot"], ["robots.name"], name=op.f("fk_claims_robot")),
        sa.PrimaryKeyConstraint("robot", name=op.f("pk_claims")),
    )
    op.create_index(op.f("ix_claims_holder"), "claims", ["holder"])
    op.create_table(
        "judgement_lines",
        sa.Column("judgement", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("judgement", "number", name=op.f("pk_judgement_lines")),
    )
    op.create_table(
        "judged_outcomes",
        sa.Column("judgement", sa.String(length=64), nullable=False),
        sa.Column("outcome", _ID, autoincrement=False, nullable=False),
        sa.Column("fate", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["outcome"], ["outcomes.id"], name=op.f("fk_judged_outcomes_outcome")),
        sa.PrimaryKeyConstraint("judgement", "outcome", name=op.f("pk_judged_outcomes")),
    )
