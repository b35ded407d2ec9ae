# SPDX-License-Identifier: Apache-2.0
"""The tables. Times are seconds since 1970 UTC; secrets are stored as SHA-256."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only INTEGER primary keys
_CONSTRAINTS = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Root of the tables."""

    metadata = MetaData(naming_convention=_CONSTRAINTS)
    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON, list[str]: JSON}


class VersionRow(Base):
    """A published version. Never changed, never replaced."""

    __tablename__ = "versions"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    manifest: Mapped[str] = mapped_column(Text)
    """Canonical JSON: what the digest is the SHA-256 of."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    published_s: Mapped[float]
    published_by: Mapped[str] = mapped_column(String(64))
    retired_s: Mapped[float | None]
    """Since then it can be neither ordered nor named by an alias, and its files go when nobody holds it."""


class BlobRow(Base):
    """When somebody last asked for or sent a blob in order to publish it. Young ones are not collected."""

    __tablename__ = "blobs"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    touched_s: Mapped[float]


class DeltaRow(Base):
    """A blob that makes a file of a version out of files of others."""

    __tablename__ = "deltas"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    target: Mapped[str] = mapped_column(String(64), index=True)
    bases: Mapped[list[str]]
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class AliasRow(Base):
    """A name that moves between versions, for example ``champion``. Who moved it is in the log."""

    __tablename__ = "aliases"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[str] = mapped_column(String(64))


class KeyRow(Base):
    """An API key of a person or a program."""

    __tablename__ = "api_keys"
    key_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    created_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64), default="")
    revoked_s: Mapped[float | None]
    """The row stays, so that nobody else gets the name that the log knows."""


class SessionRow(Base):
    """Somebody who has signed in to the page. The browser has a secret of its own, and never the key."""

    __tablename__ = "sessions"
    secret_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_hash: Mapped[str] = mapped_column(String(64), ForeignKey("api_keys.key_hash"))
    """The session ends with its key."""
    expires_s: Mapped[float]


class CodeRow(Base):
    """A code with which one robot can enrol once."""

    __tablename__ = "enrolment_codes"
    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    robot: Mapped[str] = mapped_column(String(64))
    group: Mapped[str] = mapped_column("group_name", String(64))
    tags: Mapped[list[str]]
    expires_s: Mapped[float]


class RobotRow(Base):
    """A robot that has enrolled."""

    __tablename__ = "robots"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    next_token_hash: Mapped[str | None] = mapped_column(String(64), unique=True, index=True)
    """Of a token that the robot was given and has not used yet; when it does, the one before ends."""
    rotate: Mapped[bool] = mapped_column(default=False)
    """The robot is to get a new token at its next connection."""
    revoked: Mapped[bool] = mapped_column(default=False)
    """Until it enrols again."""
    group: Mapped[str] = mapped_column("group_name", String(64), index=True)
    tags: Mapped[list[str]]
    enrolled_s: Mapped[float]
    last_seen_s: Mapped[float] = mapped_column(default=0.0)
    outbox_id: Mapped[str] = mapped_column(String(128), default="")
    outbox_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    """Every kept message of that outbox up to this one is stored."""
    software: Mapped[str] = mapped_column(String(128), default="")
    status: Mapped[dict[str, Any]] = mapped_column(default=dict)


class CommandRow(Base):
    """An order to one robot, and how it stands."""

    __tablename__ = "commands"
    number: Mapped[int] = mapped_column(_ID, primary_key=True, autoincrement=True)
    """A robot carries its orders out in this sequence."""
    id: Mapped[str] = mapped_column(String(128), unique=True)
    robot: Mapped[str] = mapped_column(String(64), ForeignKey("robots.name"))
    order: Mapped[dict[str, Any]] = mapped_column("body")
    created_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))
    expires_s: Mapped[float]
    state: Mapped[str] = mapped_column(String(16))
    final: Mapped[bool] = mapped_column(default=False)
    robot_state: Mapped[str] = mapped_column(String(128), default="")
    version: Mapped[str] = mapped_column(String(64), default="")
    error_code: Mapped[str] = mapped_column(String(128), default="")
    message: Mapped[str] = mapped_column(Text, default="")
    updated_s: Mapped[float]
    robot_time_s: Mapped[float] = mapped_column(default=0.0)
    """Of the robot's last word, by its own clock."""
    __table_args__ = (Index("ix_commands_open", "robot", "final"), Index("ix_commands_by", "created_by", "number"))


class EventRow(Base):
    """One transition on one robot."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(_ID, primary_key=True, autoincrement=True)
    robot: Mapped[str] = mapped_column(String(64), ForeignKey("robots.name"))
    time_s: Mapped[float]
    received_s: Mapped[float]
    update_id: Mapped[str] = mapped_column(String(128))
    from_state: Mapped[str] = mapped_column(String(128))
    to_state: Mapped[str] = mapped_column(String(128))
    version: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(128), default="")
    cause: Mapped[str] = mapped_column(String(128), default="")
    error_code: Mapped[str] = mapped_column(String(128))
    message: Mapped[str] = mapped_column(Text)
    __table_args__ = (Index("ix_events_robot_time", "robot", "time_s"), Index("ix_events_update", "update_id"))


class OutcomeRow(Base):
    """How one episode ended."""

    __tablename__ = "outcomes"
    id: Mapped[int] = mapped_column(_ID, primary_key=True, autoincrement=True)
    robot: Mapped[str] = mapped_column(String(64), ForeignKey("robots.name"))
    episode_id: Mapped[str] = mapped_column(String(128))
    time_s: Mapped[float]
    received_s: Mapped[float]
    version: Mapped[str] = mapped_column(String(64))
    arm: Mapped[str] = mapped_column(String(128))
    success: Mapped[bool]
    known: Mapped[bool]
    mixed: Mapped[bool]
    intervention: Mapped[bool]
    duration_s: Mapped[float]
    __table_args__ = (
        UniqueConstraint("robot", "episode_id"),
        Index("ix_outcomes_version_time", "version", "time_s"),
    )

    @property
    def succeeded(self) -> bool:
        """Whether the policy has done it. What a person had to take over it has not, however the episode ended."""
        return self.success and not self.intervention


class LogRow(Base):
    """Who did what. Rows are only ever added."""

    __tablename__ = "log"
    id: Mapped[int] = mapped_column(_ID, primary_key=True, autoincrement=True)
    time_s: Mapped[float]
    who: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64), index=True)
    subject: Mapped[str] = mapped_column(String(256), index=True)
    detail: Mapped[dict[str, Any]]


class ClaimRow(Base):
    """The rollout or experiment that decides which version a robot runs: one at a time."""

    __tablename__ = "claims"
    robot: Mapped[str] = mapped_column(String(64), ForeignKey("robots.name"), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128), index=True)
    """For example ``experiment e-1f2e3d4c``."""


class JudgementLineRow(Base):
    """A line of an evidence log, from which every verdict can be computed again. Rows are only ever added."""

    __tablename__ = "judgement_lines"
    judgement: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Id of the rollout or experiment."""
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    line: Mapped[str] = mapped_column(Text)


class JudgedOutcomeRow(Base):
    """What a rollout or an experiment made of an outcome."""

    __tablename__ = "judged_outcomes"
    judgement: Mapped[str] = mapped_column(String(64), primary_key=True)
    outcome: Mapped[int] = mapped_column(_ID, ForeignKey("outcomes.id"), primary_key=True, autoincrement=False)
    fate: Mapped[str] = mapped_column(String(16))


class LeaseRow(Base):
    """Which of several servers steers rollouts and experiments: one at a time, until it is silent for too long."""

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    until_s: Mapped[float]


class SecretRow(Base):
    """A secret that several servers share and nobody else needs."""

    __tablename__ = "secrets"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    secret: Mapped[str] = mapped_column(String(128))


class TrustFileRow(Base):
    """A file of signed metadata, as robots fetch it."""

    __tablename__ = "trust_files"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    text: Mapped[str] = mapped_column(Text)


class RolloutRow(Base):
    """One version on its way through the stages to a part of the fleet."""

    __tablename__ = "rollouts"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Salts every draw."""
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(80))
    """``group:NAME``, ``tag:NAME`` or ``all``."""
    active: Mapped[str | None] = mapped_column(String(160), unique=True)
    """Model and target until the rollout has ended; so there is one at a time."""
    settings: Mapped[dict[str, Any]]
    stages: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    unit: Mapped[str] = mapped_column(String(16))
    history: Mapped[dict[str, Any]]
    """Robot → successes and episodes before the rollout."""
    state: Mapped[str] = mapped_column(String(16), index=True)
    paused: Mapped[bool] = mapped_column(default=False)
    stage: Mapped[int] = mapped_column(default=0)
    stage_since_s: Mapped[float]
    judged_stage: Mapped[int] = mapped_column(default=-1)
    """The stage that the judge has begun."""
    judged_since_s: Mapped[float] = mapped_column(default=0.0)
    created_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))
    ended_s: Mapped[float] = mapped_column(default=0.0)
    taken: Mapped[int] = mapped_column(_ID, default=0)
    """Every outcome up to this id has been looked at."""
    lines: Mapped[int] = mapped_column(default=0)
    """Length of the evidence log."""
    verdict: Mapped[dict[str, Any]] = mapped_column(default=dict)
    verdict_s: Mapped[float] = mapped_column(default=0.0)
    revision: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012


class RolloutRobotRow(Base):
    """A robot in a rollout."""

    __tablename__ = "rollout_robots"
    rollout: Mapped[str] = mapped_column(String(64), ForeignKey("rollouts.id"), primary_key=True)
    robot: Mapped[str] = mapped_column(String(64), ForeignKey("robots.name"), primary_key=True)
    origin: Mapped[str] = mapped_column(String(64))
    """The version that it came from; empty: none."""
    joined: Mapped[int]
    """The stage with which it came into the rollout."""
    wanted: Mapped[int | None]
    """The first stage in which it gets the version."""
    reported_failed: Mapped[bool] = mapped_column(default=False)
    """The judge knows that its own trial failed."""


# -- adapters and episodes --------------------------------------------------------------------------------------------------


class AdapterRow(Base):
    """An adapter that a robot trained and uploaded. Its archive is whole, and the bundle in it was verified."""

    __tablename__ = "adapters"
    number: Mapped[int] = mapped_column(_ID, primary_key=True, autoincrement=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """Of the archive."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    robot: Mapped[str] = mapped_column(String(64), ForeignKey("robots.name"))
    name: Mapped[str] = mapped_column(String(128))
    version: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    base_version: Mapped[str] = mapped_column(String(64))
    base_digest: Mapped[str] = mapped_column(String(64))
    examples: Mapped[int]
    """That it was trained on, as its manifest says; 0: it does not."""
    received_s: Mapped[float]
    __table_args__ = (
        Index("ix_adapters_robot", "robot", "number"),
        Index("ix_adapters_base", "name", "base_version", "number"),
    )


class EpisodeRow(Base):
    """An episode that a robot has uploaded. Its file is whole and was read through and through."""

    __tablename__ = "episodes"
    number: Mapped[int] = mapped_column(_ID, primary_key=True, autoincrement=True)
    """Its place in the sequence in which episodes were received."""
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    robot: Mapped[str] = mapped_column(String(64), ForeignKey("robots.name"))
    robot_type: Mapped[str] = mapped_column(String(128))
    episode_id: Mapped[str] = mapped_column(String(128))
    policy: Mapped[str] = mapped_column(String(128))
    version: Mapped[str] = mapped_column(String(128))
    digest: Mapped[str] = mapped_column(String(128))
    arm: Mapped[str] = mapped_column(String(128))
    experiment: Mapped[str] = mapped_column(String(128))
    instructions: Mapped[list[str]]
    success: Mapped[bool | None]
    """``None``: nobody said."""
    steps: Mapped[int]
    corrections: Mapped[int]
    """Steps that an operator commanded."""
    rate_hz: Mapped[float]
    started_s: Mapped[float]
    """By the robot's clock."""
    duration_s: Mapped[float]
    interface: Mapped[str] = mapped_column(String(16))
    """Equal for episodes that may share a data set."""
    received_s: Mapped[float]
    __table_args__ = (
        Index("ix_episodes_robot", "robot", "number"),
        Index("ix_episodes_version", "policy", "version", "number"),
        Index("ix_episodes_success", "success", "number"),
        Index("ix_episodes_corrections", "corrections", "number"),
    )


class DataSetRow(Base):
    """A data set that somebody has built. Rows are only ever added."""

    __tablename__ = "data_sets"
    number: Mapped[int] = mapped_column(_ID, primary_key=True, autoincrement=True)
    policy: Mapped[str] = mapped_column(String(128), index=True)
    chosen_from: Mapped[str] = mapped_column(Text)
    """The part of the policy's episodes that it could take, in words; empty: all."""
    lineage_sha256: Mapped[str] = mapped_column(String(64))
    """Of its ``meta/vla_ota.json``."""
    seed: Mapped[int] = mapped_column(BigInteger)
    new_rule: Mapped[str] = mapped_column(Text)
    last_episode: Mapped[int] = mapped_column(_ID)
    """Number of the newest episode that there was; what came later is new to the next data set."""
    episodes: Mapped[int]
    frames: Mapped[int]
    corrections: Mapped[int]
    """New frames that an operator commanded."""
    created_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))


# -- experiments ------------------------------------------------------------------------------------------------------------


class ExperimentRow(Base):
    """An A/B test of two versions of a model."""

    __tablename__ = "experiments"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Salts every draw."""
    model: Mapped[str] = mapped_column(String(64))
    a: Mapped[str] = mapped_column(String(64))
    b: Mapped[str] = mapped_column(String(64))
    design: Mapped[dict[str, Any]]
    """Fixed at creation: ``experiments.design.Design``."""
    plan: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str] = mapped_column(Text, default="")
    created_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(64))
    ended_s: Mapped[float] = mapped_column(default=0.0)
    rollout: Mapped[str] = mapped_column(String(64), default="")
    """That the winner was promoted into."""
    taken: Mapped[int] = mapped_column(_ID, default=0)
    """Every outcome up to this id has been looked at."""
    lines: Mapped[int] = mapped_column(default=0)
    """Of its log."""
    verdict: Mapped[dict[str, Any]] = mapped_column(default=dict)
    revision: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012


class ExperimentRobotRow(Base):
    """A robot of an experiment."""

    __tablename__ = "experiment_robots"
    experiment: Mapped[str] = mapped_column(String(64), ForeignKey("experiments.id"), primary_key=True)
    robot: Mapped[str] = mapped_column(String(64), ForeignKey("robots.name"), primary_key=True)
    arm: Mapped[str] = mapped_column(String(1))
    """A or B; empty: each episode is drawn."""
    state: Mapped[str] = mapped_column(String(16))
    orders_since_s: Mapped[float]
    """Orders that lead to its state were given since then, by the server's clock."""
    since_s: Mapped[float] = mapped_column(default=0.0)
    """Outcomes from then on count, by the robot's clock; 0: none yet."""
    detail: Mapped[str] = mapped_column(Text, default="")
    """Why it did not keep its version, or did not go back: a robot's code, or what it runs instead."""
