# SPDX-License-Identifier: Apache-2.0
"""The stages of a rollout and the settings of its judge: fixed before the first outcome, and enough to judge again.

Where a robot holds both versions, each of its episodes is drawn and counts as one observation. Where a robot runs one version for
a whole stage, the robot is the observation: its episodes are alike, and counting them finds differences between robots and calls
them differences between versions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from vla_evidence.errors import InputError, check_counts, check_margin, check_name, check_number, check_probability
from vla_evidence.sequential.two_sample import BetaPrior

HOUR_S = 3600.0
EXPECTED_DROP = 0.10
"""Drop of the success rate that an informed prior expects of a canary."""
HISTORY_WEIGHT, CANARY_WEIGHT = 1000.0, 20.0
"""Episodes that the incumbent's history, and the expected drop, count for at most."""
FEWEST_FOR_LIMIT = 20
"""Past values that a limit needs."""
FEWEST_ROBOTS = 30
"""Fewer robots with one version each cannot be judged: there are too few of them to differ clearly."""
_DEADLINE_FACTOR, _SHORTEST_DEADLINE_S = 5.0, 600.0
_LEAST_ALPHA = 1e-100


class Unit(Enum):
    """What is drawn, and so is one observation."""

    EPISODE = "episode"
    ROBOT = "robot"


@dataclass(frozen=True)
class Stage:
    """One step of a rollout.

    Attributes:
        name: for people. share: of the fleet's robots that hold the new version, above 0 to 1. probability: with which an
        episode on one of them runs it: below 1 each episode is drawn; at 1 the robot runs nothing else. duration_s: after
        which an advance is asked for; it is prolonged once by as much where episodes are drawn [s]. margin: drop of the
        success rate to be excluded before the next stage; 0 asks for an improvement, None for nothing.
    """

    name: str
    share: float
    probability: float
    duration_s: float
    margin: float | None

    @property
    def unit(self) -> Unit:
        """What is drawn in it."""
        return Unit.EPISODE if self.probability < 1.0 else Unit.ROBOT

    @property
    def compares(self) -> bool:
        """Whether anybody is left to compare with."""
        return self.share < 1.0 or self.probability < 1.0

    def robots(self, fleet_size: int) -> int:
        """Return how many robots of the fleet hold the new version: at least one, and never more than the share otherwise."""
        return max(1, math.floor(self.share * fleet_size + 1e-9))

    def check(self) -> None:
        """Refuse a stage that cannot be (:class:`InputError`)."""
        check_name("stage name", self.name)
        for name in ("share", "probability"):
            if not 0.0 < check_number(f"stage {self.name}: {name}", getattr(self, name), "INPUT_RATE") <= 1.0:
                raise InputError("INPUT_RATE", f"stage {self.name}: {name}", "must lie above 0 and up to 1")
        if check_number(f"stage {self.name}: duration_s", self.duration_s) < 0.0:
            raise InputError("INPUT_VALUE", f"stage {self.name}: duration_s", f"{self.duration_s} is not a duration")
        if self.margin is not None:
            check_margin(f"stage {self.name}: margin", self.margin)


def _stages(shares: Sequence[float], probabilities: Sequence[float], margins: Sequence[float]) -> tuple[Stage, ...]:
    steps = zip(("canary", "early", "wide"), shares, probabilities, (24.0, 48.0, 24.0), margins, strict=True)
    limited = tuple(Stage(name, share, pi, hours * HOUR_S, margin) for name, share, pi, hours, margin in steps)
    return (*limited, Stage("full", 1.0, 1.0, 0.0, None))


DEFAULT_STAGES = _stages((1.0, 1.0, 1.0), (0.05, 0.25, 0.50), (0.10, 0.05, 0.02))
"""All robots hold both versions: 5 % of episodes for 24 h, 25 % for 48 h, 50 % for 24 h, all."""
HALF_STAGES = _stages((0.2, 0.7, 1.0), (0.5, 0.5, 0.5), (0.10, 0.05, 0.02))
"""Only a stage's robots hold both versions (10, 35 and 50 of 50); each of their episodes is drawn with probability one half."""
ROBOT_STAGES = _stages((0.05, 0.25, 0.50), (1.0, 1.0, 1.0), (0.10, 0.05, 0.05))
"""A robot runs one version: 5 % of robots for 24 h, 25 % for 48 h, 50 % for 24 h, all. At least 30 robots."""


@dataclass(frozen=True)
class CanaryConfig:
    """How a canary is judged.

    Attributes:
        stages: in their order; all of them draw episodes, or all of them draw robots.
        alpha: P(a canary that is no worse is ever rolled back), all stages, endpoints and looks together.
        advance_alpha: P(a stage is passed although the canary is worse by its margin). Half of it for each of the two looks.
        advance: where robots are drawn: "ask" a person, or "same_shift": advance by itself, assuming that the new version changes
            every robot's success rate by the same amount.
        harm_margin: of the success rate; a smaller drop does not count as harm.
        min_episodes: with an outcome, of each version in a stage before it may advance.
        most_lost: share of a version's episodes that may be lost (no outcome by the deadline) in a stage that advances.
        deadline_s: an assigned episode without an outcome for so long has failed [s].
        latency_limit_s: slower than this is slow [s]; any limit is valid that was fixed before. None: latency is not judged.
        latency_margin: share by which the canary may have more slow episodes.
        score_quantile: share of the incumbent's past blocks that do not exceed a score's limit.
        score_margin: share of blocks by which the canary may exceed it more often than the incumbent beside it.
        min_blocks: of each judged score source, from each version in a stage before it may advance.
        allow_unjudged_scores: advance though a source has too short a past to be judged.
        advance_max_evidence: evidence of harm above this delays an advance.
        history: (successes, episodes) of the incumbent in the registry: the priors; None: uniform priors.
        rule: "evidence", or "simple": two means are compared (:mod:`vla_evidence.canary.simple`).
    """

    stages: tuple[Stage, ...] = DEFAULT_STAGES
    alpha: float = 0.05
    advance_alpha: float = 0.05
    advance: str = "ask"
    harm_margin: float = 0.0
    min_episodes: int = 50
    most_lost: float = 0.05
    deadline_s: float = 3600.0
    latency_limit_s: float | None = None
    latency_margin: float = 0.05
    score_quantile: float = 0.95
    score_margin: float = 0.10
    min_blocks: int = 20
    allow_unjudged_scores: bool = False
    advance_max_evidence: float = 4.0
    history: tuple[float, float] | None = None
    rule: str = "evidence"

    @property
    def unit(self) -> Unit:
        """What is drawn."""
        return next((stage.unit for stage in self.stages if stage.compares), Unit.EPISODE)

    @property
    def priors(self) -> tuple[BetaPrior, BetaPrior]:
        """Of the incumbent and the canary, which is expected to be worse: harm is found sooner, never more often wrongly."""
        if self.history is None:
            return BetaPrior(), BetaPrior()
        incumbent = BetaPrior.from_history(*self.history, HISTORY_WEIGHT)
        return incumbent, BetaPrior.expecting_drop(*self.history, drop=EXPECTED_DROP, weight=CANARY_WEIGHT)

    def stage_alpha(self, stage: int) -> float:
        """Return what the search for harm may spend in a stage where robots are drawn.

        Half of ``alpha`` in the first one that compares, as its canaries are the fewest; the others share the rest equally.
        """
        comparing = [index for index, other in enumerate(self.stages) if other.compares]
        if len(comparing) < 2:
            return self.alpha
        return self.alpha * 0.5 if stage == comparing[0] else self.alpha * 0.5 / (len(comparing) - 1)

    @staticmethod
    def of_incumbent(
        successes: float, episodes: float, latencies_s: Sequence[float] = (), **settings: Any
    ) -> CanaryConfig:
        """Return settings that follow from what the incumbent did.

        The priors come from its success. From at least 20 latencies come what is slow (their 95 % quantile) and the deadline:
        five times their 99 % quantile, so that a canary that takes longer does not simply fail, and 10 minutes at least.
        """
        if len(latencies_s) >= FEWEST_FOR_LIMIT:
            deadline_s = max(_SHORTEST_DEADLINE_S, _DEADLINE_FACTOR * upper_limit(latencies_s, 0.99))
            settings = {"deadline_s": deadline_s, "latency_limit_s": upper_limit(latencies_s, 0.95), **settings}
        return CanaryConfig(history=(successes, episodes), **settings)

    def check(self) -> None:
        """Refuse settings that cannot be (:class:`InputError`)."""
        if not self.stages or len({stage.unit for stage in self.stages if stage.compares}) > 1:
            reason = "there must be one at least, and all must draw episodes, or all robots"
            raise InputError("INPUT_VALUE", "stages", reason)
        for stage in self.stages:
            stage.check()
        for name, words in (("advance", ("ask", "same_shift")), ("rule", ("evidence", "simple"))):
            if getattr(self, name) not in words:
                reason = f"{getattr(self, name)!r} must be " + " or ".join(f'"{word}"' for word in words)
                raise InputError("INPUT_VALUE", name, reason)
        self._check_numbers()

    def _check_numbers(self) -> None:
        if type(self.allow_unjudged_scores) is not bool:
            raise InputError("INPUT_VALUE", "allow_unjudged_scores", "must be true or false")
        for name in ("alpha", "advance_alpha", "score_quantile", "most_lost"):
            if check_probability(name, getattr(self, name)) < _LEAST_ALPHA:
                raise InputError("INPUT_PROBABILITY", name, "is too small to be shared")
        for name in ("harm_margin", "latency_margin", "score_margin"):
            check_margin(name, getattr(self, name))
        for name in ("min_episodes", "min_blocks"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise InputError("INPUT_COUNT", name, "must be an integer of at least 1")
        positive = {"deadline_s": self.deadline_s, "advance_max_evidence": self.advance_max_evidence}
        positive["latency_limit_s"] = 1.0 if self.latency_limit_s is None else self.latency_limit_s
        for name, value in positive.items():
            if check_number(name, value) <= 0.0:
                raise InputError("INPUT_VALUE", name, "must be positive")
        check_counts("history", *(self.history or (0, 0)))

    def to_json(self) -> dict[str, Any]:
        """Return it for :meth:`from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> CanaryConfig:
        """Read and check what :meth:`to_json` wrote."""
        unknown = set(document) - set(CanaryConfig.__dataclass_fields__)
        if unknown:
            reason = f"this release does not know {', '.join(sorted(unknown))}: was the log written by a newer one?"
            raise InputError("INPUT_VALUE", "settings", reason)
        stages = tuple(Stage(**stage) for stage in document["stages"])
        history = document.get("history")
        config = CanaryConfig(**{**document, "stages": stages, "history": None if history is None else tuple(history)})
        config.check()
        return config


def upper_limit(values: Sequence[float], quantile: float) -> float:
    """Return the value that the share ``quantile`` of such values is expected not to exceed."""
    rank = math.ceil(quantile * (len(values) + 1))
    return float(sorted(values)[min(rank, len(values)) - 1])
