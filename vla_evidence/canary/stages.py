# SPDX-License-Identifier: Apache-2.0
"""The stages of a rollout, and what the unit of evidence is in each: an episode or a robot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from vla_evidence.canary.robot_units import smallest_drop
from vla_evidence.errors import InputError, check_margin, check_name, check_number, check_probability

_HOUR_S = 3600.0
_LARGEST = 1e308


class Unit(Enum):
    """What is assigned at random, and so is one observation."""

    EPISODE = "episode"
    """Robots hold both versions, and each episode is drawn. Wrong where a robot runs one version only: its episodes are alike. 5
    robots of 100 with an equal version (correlation within robots 0.05) are convicted not in 5 % of rollouts, but in 7 % after 40
    episodes each, 15 % after 160, 22 % after 400."""
    ROBOT = "robot"
    """Each robot of a cohort runs one version for the stage. Where the incumbent never fails, it takes at least 29 canary robots
    to exclude a drop of the mean of 10 %, 59 for 5 %, 149 for 2 % (at level 0.05): fewer may meet none of those that the version
    breaks. Where the incumbent fails as well, a canary that is better than it can do with fewer."""


@dataclass(frozen=True)
class Stage:
    """One step of a rollout.

    Attributes:
        name: for people.
        share: of the fleet that runs the new version, above 0 to 1; at 1 nobody is left to compare with.
        duration_s: that it lasts at least [s].
        margin: drop of the success rate to be excluded before the next stage; 0 asks for an improvement, None for nothing.
    """

    name: str
    share: float
    duration_s: float
    margin: float | None

    def __post_init__(self) -> None:
        check_name("stage name", self.name)
        if not 0.0 < check_number(f"stage {self.name}: share", self.share, "INPUT_RATE") <= 1.0:
            raise InputError(
                "INPUT_RATE", f"stage {self.name}: share", f"{self.share} does not lie above 0 and up to 1"
            )
        if check_number(f"stage {self.name}: duration_s", self.duration_s) < 0.0:
            raise InputError("INPUT_VALUE", f"stage {self.name}: duration_s", f"{self.duration_s} is not a duration")
        if self.margin is not None:
            check_margin(f"stage {self.name}: margin", self.margin)

    def robots(self, fleet_size: int) -> int:
        """Return how many robots of the fleet run the new version: at least one, and never more than the share otherwise."""
        if fleet_size < 1:
            raise InputError("INPUT_COUNT", "fleet_size", f"{fleet_size} is not positive")
        return max(1, math.floor(self.share * fleet_size + 1e-9))


DEFAULT_STAGES = (
    Stage("canary", 0.05, 24 * _HOUR_S, 0.10),
    Stage("early", 0.25, 48 * _HOUR_S, 0.05),
    Stage("wide", 0.50, 24 * _HOUR_S, 0.02),
    Stage("full", 1.00, 0.0, None),
)
"""5 % for 24 h, 25 % for 48 h, 50 % for 24 h, all; with margins that this many episodes can reach."""


@dataclass(frozen=True)
class Design:
    """How a stage is to be run in a fleet, and whether it can prove anything.

    Attributes:
        unit: what is drawn at random.
        robots: that may run the new version.
        probability: of the new version for an episode on one of them, or for a robot of the fleet to be one of them.
        largest_evidence: of harm that it can ever reach; infinity for episodes, and beyond the range of a float.
        reason: why, for people.
    """

    unit: Unit
    robots: int
    probability: float
    largest_evidence: float
    reason: str


def design(stage: Stage, fleet_size: int, *, holds_both: bool, alpha: float, probability: float = 0.5) -> Design:
    """Return how to run a stage: by episode where robots hold both versions, else by robot, with what that can prove.

    Args:
        stage: one with somebody left to compare with.
        fleet_size: robots.
        holds_both: whether a robot keeps both versions loaded and can be told before each episode which to use.
        alpha: level at which harm is to be found: by robot what the stage may spend (:meth:`CanaryConfig.stake`), times the share
            that success has.
        probability: of the new version for an episode on a canary robot. One half finds harm in the fewest episodes altogether;
            less finds it in fewer episodes of the canary, and takes longer.

    Raises:
        InputError: an impossible size or probability, or a stage of the whole fleet by robot.
    """
    check_probability("alpha", alpha)
    check_probability("probability", probability)
    robots = stage.robots(fleet_size)
    if holds_both:
        drawn = "each of their episodes is drawn, so one robot is evidence too"
        reason = f"{robots} of {fleet_size} robots hold both versions: {drawn}"
        return Design(Unit.EPISODE, robots, probability, math.inf, reason)
    if robots == fleet_size:
        reason = f"all {fleet_size} robots would run the new version: nothing to compare with"
        raise InputError("INPUT_COUNT", "fleet_size", reason)
    ways = math.comb(fleet_size, robots)
    able = "can" if ways >= 1.0 / alpha else "can never"
    reason = (
        f"{robots} of {fleet_size} robots as units give evidence of harm of at most {_shown(ways)}: it {able} reach "
        f"{1.0 / alpha:.4g}; where the incumbent never fails, they exclude a drop of {smallest_drop(robots, alpha):.1%} at best"
    )
    largest = float(ways) if ways < _LARGEST else math.inf
    return Design(Unit.ROBOT, robots, robots / fleet_size, largest, reason)


def _shown(ways: int) -> str:
    return f"{ways:.4g}" if ways < _LARGEST else f"10^{math.floor(math.log10(ways))}"
