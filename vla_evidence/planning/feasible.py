# SPDX-License-Identifier: Apache-2.0
"""Will this rollout decide anything in this fleet? Said before anything runs, by letting the judge run simulated rollouts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_evidence.analysis import Bar, no_bar
from vla_evidence.canary.by_robot import too_few_words
from vla_evidence.canary.config import EXPECTED_DROP, FEWEST_ROBOTS, CanaryConfig, Unit
from vla_evidence.planning.stopping import share_and_error
from vla_evidence.simulate.fleet import FleetModel
from vla_evidence.simulate.rollouts import FULL, ROLLED_BACK, judged
from vla_evidence.tables import hours_text, share_text

_UNKNOWN_RATE = 0.87


@dataclass(frozen=True)
class Feasibility:
    """What a rollout will do; shares are (value, Monte-Carlo standard error).

    Attributes:
        good_passes: share of equally good updates that reach every robot without a person.
        good_rolled_back: share of them that are rolled back.
        bad_found: share of bad updates that are rolled back.
        bad_found_first: share of them that are rolled back in the first stage.
        days: of a rollout of a good update, mean and 90 % quantile.
        warnings: what stands in its way.
    """

    good_passes: tuple[float, float]
    good_rolled_back: tuple[float, float]
    bad_found: tuple[float, float]
    bad_found_first: tuple[float, float]
    days: tuple[float, float]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        after = ""
        if np.isfinite(self.days[0]):
            after = f", after {self.days[0]:.1f} days on average (90 % within {self.days[1]:.1f})"
        good = (
            f"An equally good update reaches every robot without a person in {share_text(self.good_passes)} of rollouts{after}; "
            f"{share_text(self.good_rolled_back)} are rolled back."
        )
        first = f"in the first stage in {share_text(self.bad_found_first)}"
        bad = f"A bad one is rolled back in {share_text(self.bad_found)} of rollouts, {first}."
        return "\n".join([good, bad, *(f"warning: {warning}" for warning in self.warnings)])


def feasible(
    config: CanaryConfig,
    robots: int,
    per_hour: float,
    *,
    drop: float = EXPECTED_DROP,
    icc: float = 0.05,
    runs: int = 200,
    seed: int = 0,
    bar: Bar = no_bar,
) -> Feasibility:
    """Return what a rollout with these settings will do in a fleet.

    Args:
        config: of the judge; its history says how good the incumbent is (87 % without it).
        robots, per_hour: of the fleet, and episodes that each does an hour.
        drop: of the success rate, that makes an update bad.
        icc: how much robots differ: intraclass correlation of their outcomes.
        runs, seed, bar: of the simulation, for good and bad updates each.
    """
    rate = _UNKNOWN_RATE
    if config.history is not None:
        rate = min(max(config.priors[0].mean, 0.02), 0.98)
    simulated = replace(config, latency_limit_s=None)  # success alone is simulated
    fleet, rng, found = FleetModel(robots, icc), np.random.default_rng(seed), []
    for name, canary in (("good updates", rate), ("bad updates", max(rate - drop, 0.01))):
        with bar(name, runs) as tick:
            found.append(judged(fleet, (rate, canary), per_hour, simulated, runs, rng, tick))
    good, bad = found
    passed = good.hours[good.outcome == 2] / 24.0
    return Feasibility(
        share_and_error(good.share(FULL), runs),
        share_and_error(good.share(ROLLED_BACK), runs),
        share_and_error(bad.share(ROLLED_BACK), runs),
        share_and_error(bad.found_in_first_stage(), runs),
        (float(passed.mean()), float(np.quantile(passed, 0.9))) if passed.size else (np.inf, np.inf),
        tuple(_warnings(config, robots, per_hour)),
    )


def _warnings(config: CanaryConfig, robots: int, per_hour: float) -> list[str]:
    warnings: list[str] = []
    if config.rule == "simple":
        return warnings
    if config.unit is Unit.ROBOT and robots < FEWEST_ROBOTS:
        warnings.append(too_few_words(robots))
    if config.unit is Unit.ROBOT and config.advance == "ask":
        warnings.append('a person is asked at the end of every stage (advance: "ask")')
    between_s = 3600.0 / per_hour
    if config.deadline_s < between_s:
        warnings.append(
            f"the deadline of {hours_text(config.deadline_s / 3600.0)} is shorter than an episode of this fleet "
            f"({hours_text(between_s / 3600.0)}): an update that is a little slower would fail; see CanaryConfig.of_incumbent"
        )
    if config.history is None:
        warnings.append("no history of the incumbent is given: with it, harm is found in a fifth fewer episodes")
    return warnings
