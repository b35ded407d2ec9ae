# SPDX-License-Identifier: Apache-2.0
"""Settings of the judge of a canary: fixed before the first outcome, kept with it, and enough to judge again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vla_evidence.canary.robot_units import RobotPrior
from vla_evidence.canary.stages import DEFAULT_STAGES, Stage, Unit
from vla_evidence.errors import MAX_COUNT, InputError, check_margin, check_name, check_number, check_probability, shown
from vla_evidence.sequential.two_sample import BetaPrior

EXPECTED_DROP = 0.10
"""Drop of the success rate that an informed prior expects of a canary."""
HISTORY_WEIGHT = 1000.0
"""Episodes that the incumbent's history counts for at most."""
CANARY_WEIGHT = 20.0
"""Episodes that the expected drop counts for."""
FEWEST_FOR_LIMIT = 20
"""Values of the past that a limit needs."""
_LEAST_ALPHA = 1e-100


def upper_limit(values: Sequence[float], quantile: float) -> float:
    """Return the value that the share ``quantile`` of such values is expected not to exceed."""
    rank = math.ceil(quantile * (len(values) + 1))
    return float(sorted(values)[min(rank, len(values)) - 1])


def latency_limit(values: Sequence[float], quantile: float = 0.95) -> float:
    """Return what is slow for the incumbent: the ``quantile`` of its past episodes' latencies [s].

    Any limit is valid that was fixed before the outcomes that it judges, for both groups are held against it; this one is one
    that few of the incumbent's episodes exceed.

    Raises:
        InputError: fewer than 20 values, or one that is no duration.
    """
    check_probability("quantile", quantile)
    if len(values) < FEWEST_FOR_LIMIT or not all(math.isfinite(value) and value >= 0.0 for value in values):
        raise InputError("INPUT_VALUE", "latencies", f"fewer than {FEWEST_FOR_LIMIT}, or some are no durations")
    return upper_limit(values, quantile)


@dataclass(frozen=True)
class CanaryConfig:
    """How a canary is judged.

    Attributes:
        stages: in their order.
        unit: what is assigned at random.
        alpha: P(a canary that is no worse is ever rolled back), all stages, tests and looks together; see :meth:`stake`.
        advance_alpha: P(a stage is passed, or a drop called excluded in it, although the drop was there throughout the stage),
            all margins and looks of the stage together.
        harm_margin: of the success rate; a drop of this size is no harm.
        min_episodes: with an outcome, of each group in a stage before it may advance.
        deadline_s: an assigned episode without an outcome for so long has failed [s].
        latency_limit_s: slower than this is slow [s]; from the incumbent's past, see :func:`latency_limit`. None: not judged.
        latency_margin: share by which the canary may have more slow episodes.
        score_quantile: share of the incumbent's past blocks that do not exceed a score's limit.
        score_margin: share of blocks by which the canary may exceed it more often than the incumbent beside it.
        min_blocks: of each judged score source, from each group in a stage before it may advance.
        allow_unjudged_scores: advance though a source has too short a past to be judged.
        advance_max_evidence: evidence for harm above this delays an advance.
        incumbent_prior, canary_prior: of the success rates, for units of episodes.
        robot_prior: of the robots' success rates, for units of robots.
        episodes_per_robot: so many a robot owes in a stage; no more than it does, for what it still owes counts against the
            canary where "not worse" is to be proven.
        salt: names the experiment: the order of robots depends on it.

    Raises:
        InputError: a setting that cannot be.
    """

    stages: tuple[Stage, ...] = DEFAULT_STAGES
    unit: Unit = Unit.EPISODE
    alpha: float = 0.05
    advance_alpha: float = 0.05
    harm_margin: float = 0.0
    min_episodes: int = 50
    deadline_s: float = 3600.0
    latency_limit_s: float | None = None
    latency_margin: float = 0.05
    score_quantile: float = 0.95
    score_margin: float = 0.10
    min_blocks: int = 20
    allow_unjudged_scores: bool = False
    advance_max_evidence: float = 4.0
    incumbent_prior: BetaPrior = field(default_factory=BetaPrior)
    canary_prior: BetaPrior = field(default_factory=BetaPrior)
    robot_prior: RobotPrior = field(default_factory=RobotPrior)
    episodes_per_robot: int = 40
    salt: str = "canary"

    def __post_init__(self) -> None:
        if not isinstance(self.stages, (tuple, list)) or not self.stages:
            raise InputError("INPUT_COUNT", "stages", f"{shown(self.stages)} are none")
        for stage in self.stages:
            if self.unit is Unit.ROBOT and stage.share < 1.0 and stage.duration_s < 1.0:
                reason = f"{stage.duration_s} s end before a robot has run an episode"
                raise InputError("INPUT_VALUE", f"stage {stage.name}: duration_s", reason)
        check_name("salt", self.salt)
        if type(self.allow_unjudged_scores) is not bool:
            raise InputError("INPUT_VALUE", "allow_unjudged_scores", f"{self.allow_unjudged_scores!r} is no yes or no")
        for name in ("alpha", "advance_alpha", "score_quantile"):
            _check_level(name, getattr(self, name))
        for name in ("harm_margin", "latency_margin", "score_margin"):
            check_margin(name, getattr(self, name))
        for name in ("min_episodes", "min_blocks", "episodes_per_robot"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_COUNT:
                raise InputError(
                    "INPUT_COUNT", name, f"{shown(value)} is no positive count: nothing is proven by no data"
                )
        positive = {"deadline_s": self.deadline_s, "advance_max_evidence": self.advance_max_evidence}
        if self.latency_limit_s is not None:
            positive["latency_limit_s"] = self.latency_limit_s
        for name, value in positive.items():
            if check_number(name, value) <= 0.0:
                raise InputError("INPUT_VALUE", name, f"{value} is not positive")

    def stake(self, stage: int) -> float:
        """Return what share of the capital the search for harm stakes in a stage: so the share of ``alpha`` that it may spend.

        By episode one e-process goes on through all stages, and stakes all of it. By robot each stage that compares has its own,
        which takes nothing over (:mod:`robot_units`): the first one half, as its robots are the fewest, the others
        equal parts of the rest.
        """
        others = sum(later.share < 1.0 for later in self.stages) - 1
        if self.unit is Unit.EPISODE or others <= 0:
            return 1.0
        first = not any(earlier.share < 1.0 for earlier in self.stages[:stage])
        return 0.5 if first else 0.5 / others

    @staticmethod
    def informed(
        successes: float,
        episodes: float,
        *,
        expected_drop: float = EXPECTED_DROP,
        history_weight: float = HISTORY_WEIGHT,
        canary_weight: float = CANARY_WEIGHT,
        **settings: Any,
    ) -> CanaryConfig:
        """Return settings with priors from what the registry has seen of the incumbent.

        The incumbent's prior is centred on its rate. The canary's expects it to be lower by ``expected_drop``, so that harm is
        found sooner; this changes how often harm is found that is there, never the bound on how often some is found that is not.

        Raises:
            InputError: impossible counts or settings.
        """
        incumbent = BetaPrior.from_history(successes, episodes, history_weight)
        canary = BetaPrior.expecting_drop(successes, episodes, drop=expected_drop, weight=canary_weight)
        settings.setdefault("robot_prior", RobotPrior(mean=incumbent.mean, drop=expected_drop))
        return CanaryConfig(incumbent_prior=incumbent, canary_prior=canary, **settings)

    def to_json(self) -> dict[str, Any]:
        """Return it for :meth:`from_json`."""
        return {**asdict(self), "unit": self.unit.value}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> CanaryConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError, KeyError, TypeError, ValueError: it did not write this.
        """
        parts = {
            "stages": tuple(Stage(**stage) for stage in document["stages"]),
            "unit": Unit(document["unit"]),
            "incumbent_prior": BetaPrior(**document["incumbent_prior"]),
            "canary_prior": BetaPrior(**document["canary_prior"]),
            "robot_prior": RobotPrior(**document["robot_prior"]),
        }
        return CanaryConfig(**{**document, **parts})


def _check_level(name: str, value: float) -> None:
    if check_probability(name, value) < _LEAST_ALPHA:
        raise InputError("INPUT_PROBABILITY", name, f"{value} is too small to be shared")
