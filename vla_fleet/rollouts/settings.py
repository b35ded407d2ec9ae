# SPDX-License-Identifier: Apache-2.0
"""What a person asks of a rollout, and the stages and the judge that follow from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vla_evidence.canary.config import DEFAULT_STAGES, ROBOT_STAGES, CanaryConfig, Stage, Unit
from vla_evidence.errors import EvidenceError
from vla_fleet.errors import InputError
from vla_fleet.protocol import Name, Text, Word
from vla_fleet.rollouts.windows import Window, parse_window, zone_of

Share = Annotated[float, Field(gt=0, le=1)]
_LOST_S = 60.0
"""An outcome that says that nobody knows how the episode ended is not waited for any longer [s]."""
_TARGET = re.compile(r"all|(group|tag):[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class StageRequest(BaseModel):
    """One step. Without ``probability``, ``share`` is of all episodes where robots hold both versions, else of robots."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    share: Share
    """Of the robots; the last stage has all of them."""
    probability: Share | None = None
    """With which an episode on one of them runs the new version."""
    duration_s: Annotated[float, Field(ge=0, le=366 * 86400)] = 0.0
    margin: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Drop of the success rate to be excluded before the next stage; None: nothing is asked for."""


class RolloutRequest(BaseModel):
    """A version for a part of the fleet, in stages."""

    model_config = ConfigDict(extra="forbid")
    model: Annotated[Word, Field(min_length=1)]
    """``name@version``, ``name@alias`` or ``name``."""
    target: Annotated[Word, Field(max_length=70)] = "all"
    """``all``, ``group:NAME`` or ``tag:NAME``."""
    reason: Text = ""
    stages: Annotated[list[StageRequest], Field(max_length=20)] = []
    """Empty: canary 5 % 24 h, early 25 % 48 h, wide 50 % 24 h, full."""
    min_episodes: Annotated[int, Field(ge=10, le=1_000_000)] = 50
    """With an outcome, that each version needs in a stage before the judge lets it go on; its margin needs more or fewer."""
    judge: Literal["evidence", "simple"] = "evidence"
    advance: Literal["ask", "same_shift"] = "ask"
    """Where robots run one version each: ask a person, or assume that it changes every robot alike."""
    windows: Annotated[list[Annotated[Word, Field(max_length=60)]], Field(max_length=20)] = []
    """When robots may be given the version, for example ``mon-fri 22:00-04:00``; empty: always. Going back never waits."""
    time_zone: Annotated[Word, Field(max_length=60)] = "UTC"
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Robots that install at a time."""
    per_minute: Annotated[int, Field(ge=1)] | None = None
    """Orders given in a minute."""
    deadline_s: Annotated[float, Field(gt=0, le=30 * 86400)] = 4 * 3600.0
    """A robot that says nothing of its order for so long counts as failed [s]; if it carries it out later it counts again."""
    auto_rollback: bool = True
    """False: a person decides when harm is found."""

    def check(self) -> None:
        """Refuse what no rollout can do.

        Raises:
            InputError: TARGET_INVALID, WINDOW_INVALID, TIME_ZONE_UNKNOWN.
        """
        if not _TARGET.fullmatch(self.target):
            raise InputError("TARGET_INVALID", f"{self.target[:80]!r}: say 'all', 'group:NAME' or 'tag:NAME'")
        self.maintenance()
        zone_of(self.time_zone)

    def maintenance(self) -> list[Window]:
        """Return the maintenance windows."""
        return [parse_window(text) for text in self.windows]

    def means(self, group: str, tags: Sequence[str]) -> bool:
        """Whether a robot of this group with these tags is meant."""
        kind, _, name = self.target.partition(":")
        return kind == "all" or (name == group if kind == "group" else name in tags)

    def judge_config(
        self, unit: Unit, successes: int = 0, episodes: int = 0, latencies_s: Sequence[float] = ()
    ) -> CanaryConfig:
        """Return the judge's settings.

        Args:
            unit: what is drawn.
            successes, episodes, latencies_s: of the incumbent.

        Raises:
            InputError: STAGES_INVALID.
        """
        stages = tuple(self._stage(stage, unit) for stage in self.stages)
        stages = stages or (DEFAULT_STAGES if unit is Unit.EPISODE else ROBOT_STAGES)
        known: dict[str, Any] = {
            "stages": stages, "min_episodes": self.min_episodes, "advance": self.advance, "rule": self.judge,
            "deadline_s": _LOST_S,
        }  # fmt: skip
        config = CanaryConfig(**known)
        if episodes:
            config = CanaryConfig.of_incumbent(successes, episodes, latencies_s, **known)
        try:
            config.check()
        except EvidenceError as e:
            raise InputError("STAGES_INVALID", str(e)) from e
        if stages[-1].compares or not all(stage.compares for stage in stages[:-1]):
            raise InputError(
                "STAGES_INVALID", "the last stage, and no other, must give it to all robots for all episodes"
            )
        widths = [[stage.share for stage in stages], [stage.share * stage.probability for stage in stages]]
        if any(width != sorted(width) for width in widths):
            raise InputError("STAGES_INVALID", "each stage must be at least as wide as the one before")
        if unit is Unit.ROBOT and any(stage.probability < 1.0 for stage in stages):
            text = (
                "some robots cannot draw the version of each episode: leave 'probability' out, so that robots are drawn"
            )
            raise InputError("STAGES_INVALID", text)
        return config

    @staticmethod
    def _stage(stage: StageRequest, unit: Unit) -> Stage:
        share, probability = stage.share, stage.probability
        if probability is None:
            share, probability = (1.0, stage.share) if unit is Unit.EPISODE else (stage.share, 1.0)
        return Stage(stage.name, share, probability, stage.duration_s, stage.margin)
