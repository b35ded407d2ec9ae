# SPDX-License-Identifier: Apache-2.0
"""Exercise 2: how soon an update that drops success from 87 % to 75 % is found and undone, and how often a good one is.

Time passes by episodes: a fleet that does ten times as many tasks finds the same drop ten times sooner.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from vla_evidence.analysis import Bar, no_bar
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.stages import DEFAULT_STAGES
from vla_evidence.errors import InputError
from vla_evidence.planning.stopping import Stopping, check_runs, detection_times, share_and_error
from vla_evidence.sequential.two_sample import BetaPrior
from vla_evidence.simulate import plots
from vla_evidence.simulate.fleet import FleetModel
from vla_evidence.simulate.report import Report
from vla_evidence.simulate.rollouts import (
    FULL,
    HELD,
    OUTCOMES,
    ROLLED_BACK,
    Rollouts,
    judged,
    passes_if_asked_always,
    threshold_rule,
)
from vla_evidence.tables import hours_text, share_text, table

FLEETS = (1, 5, 10, 20, 50, 100, 200, 500)
FREQUENCIES = (0.5, 1.0, 2.0, 6.0, 20.0, 60.0)
BAD, EQUAL = "bad", "equally good"
JUDGE, THRESHOLD = "e-process judge", "mean >= old - 2 %"
_HORIZON = 1500
_MOST_EPISODES = 4_000_000
_WHOLE_RUNS = 500
"""Most whole rollouts of each kind: each is tens of thousands of episodes."""


@dataclass(frozen=True)
class Settings:
    """Of the exercise.

    Attributes:
        incumbent, canary: success rates before and after the bad update.
        robots, per_hour: of the fleet, and episodes that each does an hour.
        alpha: P(an update that is no worse is ever rolled back) is at most this.
        rollback_s: from the verdict to the old version acting: a command and a pointer, within a minute [s].
        icc: how much robots differ: intraclass correlation of their outcomes.
        runs, seed: of the simulation.
    """

    incumbent: float = 0.87
    canary: float = 0.75
    robots: int = 50
    per_hour: float = 6.0
    alpha: float = 0.05
    rollback_s: float = 60.0
    icc: float = 0.05
    runs: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.canary < self.incumbent:
            raise InputError("INPUT_RATE", "canary", f"{self.canary} is not below the incumbent's {self.incumbent}")
        for name in ("per_hour", "rollback_s"):
            if not 1e-6 <= getattr(self, name) <= 1e9:
                raise InputError("INPUT_VALUE", name, f"{getattr(self, name)} does not lie between 1e-6 and 1e9")
        FleetModel(self.robots, self.icc)
        hours = sum(stage.duration_s for stage in DEFAULT_STAGES if stage.share < 1.0) / 3600.0
        if self.robots * self.per_hour * hours > _MOST_EPISODES:
            reason = f"with {self.robots} robots more than {_MOST_EPISODES:,} episodes a rollout: too many to simulate"
            raise InputError("INPUT_VALUE", "per_hour", reason)
        check_runs(self.runs, self.seed)


@dataclass(frozen=True)
class Detection:
    """How soon the drop is found if it sets in with a stage, after stages in which the update was as good.

    Attributes:
        name: of the stage.
        share: of the episodes of those robots that take part.
        taking_part: share of the fleet whose robots hold both versions and whose episodes are drawn.
        duration_h: of the stage.
        stopping: simulated.
    """

    name: str
    share: float
    taking_part: float
    duration_h: float
    stopping: Stopping

    def hours(self, q: float, robots: int, per_hour: float) -> float:
        """Return by when the share ``q`` of such updates is found; infinite if it never is."""
        return float(np.quantile(self.stopping.units, q, method="inverted_cdf")) / self._an_hour(robots, per_hour)

    def in_time(self, robots: int, per_hour: float) -> float:
        """Return the share of such updates found within the stage."""
        return float((self.stopping.units <= self.duration_h * self._an_hour(robots, per_hour)).mean())

    def _an_hour(self, robots: int, per_hour: float) -> float:
        return max(1, math.floor(self.taking_part * robots + 1e-9)) * per_hour


def run(settings: Settings, bar: Bar = no_bar) -> Report:
    """Answer the question.

    Raises:
        InputError: what cannot be.
        EvidenceError: ANALYSIS_MISSING.
    """
    rng = np.random.default_rng(settings.seed)
    found = _detections(settings, rng, bar)
    stages = [detection for detection in found if detection.name in {stage.name for stage in DEFAULT_STAGES}]
    rollouts = _whole_rollouts(settings, rng, bar)
    asked = _asked_always(settings, rng)
    sentence = _sentence(settings, found[0], rollouts)
    text = [
        sentence,
        _detection_table(settings, found),
        *(_hours_table(settings, detection) for detection in stages),
        _rollout_table(settings, rollouts, asked),
    ]
    figures = {
        "settings": asdict(settings),
        "detection": [_detection_figures(settings, detection) for detection in found],
        "median_hours": {
            "fleets": FLEETS,
            "per_hour": FREQUENCIES,
            **{detection.name: _hours(settings, detection).tolist() for detection in stages},
        },
        "threshold_asked_always_passes_first_stage": asked,
        "rollouts": [_rollout_figures(*key, runs) for key, runs in rollouts.items()],
    }
    drawn = {
        "detection": partial(
            plots.detection, {_label(d): d.stopping for d in found}, settings.incumbent, settings.canary
        ),
        "hours": partial(plots.hours_map, _hours(settings, found[0]), FLEETS, FREQUENCIES, found[0].duration_h),
        "rollouts": partial(plots.rollout_ends, rollouts),
    }
    return Report("canary", sentence, "\n\n".join(text), figures, drawn)


def _detections(s: Settings, rng: np.random.Generator, bar: Bar) -> list[Detection]:
    first = DEFAULT_STAGES[0]
    informed = CanaryConfig.informed(round(s.incumbent * 1000), 1000)
    priors = (informed.incumbent_prior, informed.canary_prior)
    limited = [stage for stage in DEFAULT_STAGES if stage.share < 1.0]
    hours = [stage.duration_s / 3600.0 for stage in limited]
    stages = [(stage.share, round(s.robots * s.per_hour * its)) for stage, its in zip(limited, hours, strict=True)]
    designs: list[tuple[str, float, float, float, tuple[BetaPrior, BetaPrior] | None, list[tuple[float, int]]]]
    designs = [(stage.name, stage.share, 1.0, hours[i], None, stages[:i]) for i, stage in enumerate(limited)]
    designs.insert(1, (f"{first.name}, informed prior", first.share, 1.0, hours[0], priors, []))
    designs.insert(2, (f"{first.name}, {first.share:.0%} of the robots only", 0.5, first.share, hours[0], None, []))
    found = []
    for name, share, taking_part, duration_h, prior, earlier in designs:
        with bar(f"finding the drop: {name}", s.runs) as tick:
            stopping = detection_times(
                s.incumbent,
                s.canary,
                share,
                alpha=s.alpha,
                horizon=_HORIZON,
                runs=s.runs,
                rng=rng,
                priors=prior,
                earlier=earlier,
                progress=tick,
            )
        found.append(Detection(name, share, taking_part, duration_h, stopping))
    return found


def _whole_rollouts(s: Settings, rng: np.random.Generator, bar: Bar) -> dict[tuple[str, str], Rollouts]:
    """Return (version, rule) → rollouts."""
    fleet, config, runs = FleetModel(s.robots, s.icc), CanaryConfig(alpha=s.alpha), min(s.runs, _WHOLE_RUNS)
    ended = {}
    for version, rate in ((BAD, s.canary), (EQUAL, s.incumbent)):
        with bar(f"whole rollouts: {version}", runs) as tick:
            ended[version, JUDGE] = judged(fleet, (s.incumbent, rate), s.per_hour, config, runs, rng, tick)
        ended[version, THRESHOLD] = threshold_rule(fleet, (s.incumbent, rate), s.per_hour, config.stages, s.runs, rng)
    return ended


def _asked_always(s: Settings, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Return, by version, the share that the threshold lets pass the first stage if it is asked after every episode."""
    fleet, stage = FleetModel(s.robots, s.icc), DEFAULT_STAGES[0]
    shares = {
        version: passes_if_asked_always(fleet, (s.incumbent, rate), s.per_hour, stage, s.runs, rng)
        for version, rate in ((BAD, s.canary), (EQUAL, s.incumbent))
    }
    return {version: share_and_error(share, s.runs) for version, share in shares.items()}


def _sentence(s: Settings, first: Detection, rollouts: dict[tuple[str, str], Rollouts]) -> str:
    later = s.rollback_s / 60.0
    half, most = (_within(first.hours(q, s.robots, s.per_hour)) for q in (0.5, 0.9))
    ours, theirs = rollouts[EQUAL, JUDGE], rollouts[EQUAL, THRESHOLD]
    passed = float((rollouts[BAD, THRESHOLD].stage > 0).mean())
    return (
        f"In a fleet of {s.robots} robots that do {s.per_hour:g} tasks an hour each, an update that drops success from "
        f"{s.incumbent:.0%} to {s.canary:.0%} is found {_found(first.stopping)}: half of such "
        f"updates {half}, 90 % {most}, while {first.share:.0%} of the episodes run it; the old version acts again "
        f"at most {later:g} min after the verdict. An equally good update is rolled back in {ours.share(ROLLED_BACK):.1%} of "
        f'rollouts, where "new mean >= old mean - 2 %", asked at each stage\'s end, turns down '
        f"{theirs.share(ROLLED_BACK):.0%} of the good and lets {passed:.1%} of the bad ones pass the first stage."
    )


def _found(stopping: Stopping) -> str:
    """Return after how long a drop is found, and how often it is not."""
    (mean, error), (share, share_error) = stopping.mean_decided, stopping.decided
    after = f"after {mean:.0f} ± {error:.0f} canary episodes on average"
    if share == 1.0:
        return after
    return (
        f"within {stopping.horizon:,.0f} canary episodes in {share_text((share, share_error))} of cases "
        f"({f'those {after}; ' if math.isfinite(mean) else ''}in the others it is not)"
    )


def _within(hours: float) -> str:
    return f"within {hours_text(hours)}" if math.isfinite(hours) else "not within these episodes"


def _label(detection: Detection) -> str:
    return f"{detection.name} ({detection.share:.0%})"


def _detection_figures(s: Settings, d: Detection) -> dict[str, Any]:
    mean, error = d.stopping.mean_decided
    return {
        "stage": d.name,
        "share": d.share,
        "found": d.stopping.decided,
        "canary_episodes": {
            "mean": mean,
            "error": error,
            "median": d.stopping.quantile(0.5),
            "p90": d.stopping.quantile(0.9),
        },
        "hours": {"median": d.hours(0.5, s.robots, s.per_hour), "p90": d.hours(0.9, s.robots, s.per_hour)},
        "found_within_the_stage": share_and_error(d.in_time(s.robots, s.per_hour), s.runs),
    }


def _detection_table(s: Settings, found: list[Detection]) -> str:
    rows = []
    for d in found:
        mean, error = d.stopping.mean_decided
        in_time = share_and_error(d.in_time(s.robots, s.per_hour), s.runs)
        hours = [hours_text(d.hours(q, s.robots, s.per_hour)) for q in (0.5, 0.9)]
        episodes = [_episodes(value) for value in (mean, d.stopping.quantile(0.5), d.stopping.quantile(0.9))]
        episodes[0] += f" ± {error:.0f}" if math.isfinite(error) else ""
        rows.append([d.name, f"{d.share:.0%}", *episodes, *hours, share_text(in_time)])
    fleet = f"{s.robots} robots, {s.per_hour:g} tasks an hour"
    title = f"Until {s.incumbent:.0%} -> {s.canary:.0%} is found: episodes of the canary, and time ({fleet})"
    heads = ["begins with", "of episodes", "mean", "half by", "90 % by", "half within", "90 % within", "in the stage"]
    note = (
        f"mean: of those found within {_HORIZON:,}; ± is the Monte-Carlo standard error. Stages before were good ones; the\n"
        "  evidence that they cost is won back first."
    )
    return table(title, heads, rows, note)


def _episodes(number: float) -> str:
    return f"{number:.0f}" if math.isfinite(number) else f"> {_HORIZON:,}"


def _hours(s: Settings, first: Detection) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return median hours until the old version acts again, shape [fleets, frequencies]."""
    return np.array([[first.hours(0.5, n, f) + s.rollback_s / 3600.0 for f in FREQUENCIES] for n in FLEETS])


def _hours_table(s: Settings, first: Detection) -> str:
    rows = [
        [f"{n} robot{'s' * (n > 1)}", *map(hours_text, row)] for n, row in zip(FLEETS, _hours(s, first), strict=True)
    ]
    title = (
        f"Stage {first.name} ({first.share:.0%} of the episodes): time until half of such updates are rolled back, by tasks "
        "an hour of each robot"
    )
    limit = f"What takes longer than the stage's {first.duration_h:g} h: a person is asked, nothing advances."
    note = f"All robots hold both versions. {limit}"
    return table(title, ["", *(f"{f:g} an hour" for f in FREQUENCIES)], rows, note)


def _rollout_figures(version: str, rule: str, runs: Rollouts) -> dict[str, Any]:
    shares = {outcome: share_and_error(runs.share(outcome), runs.outcome.size) for outcome in OUTCOMES}
    return {
        "version": version,
        "rule": rule,
        **shares,
        "passed_first_stage": share_and_error(float((runs.stage > 0).mean()), runs.outcome.size),
        "median_hours": float(np.median(runs.hours)),
        "median_canary_episodes": float(np.median(runs.canary_episodes)),
    }


def _rollout_table(
    s: Settings, rollouts: dict[tuple[str, str], Rollouts], asked: dict[str, tuple[float, float]]
) -> str:
    rows = []
    for (version, rule), runs in rollouts.items():
        size = runs.outcome.size
        shares = [share_text(share_and_error(runs.share(outcome), size)) for outcome in (ROLLED_BACK, HELD, FULL)]
        passed = share_text(share_and_error(float((runs.stage > 0).mean()), size))
        rows.append([f"{version}: {rule}", *shares, passed, hours_text(float(np.median(runs.hours)))])
    heads = ["update: rule", ROLLED_BACK, HELD, FULL, "passed stage 1", "half ended by"]
    title = f"Whole rollouts, {s.robots} robots that differ (intraclass correlation {s.icc:g}), {s.per_hour:g} tasks an hour"
    note = (
        "The judge looks after every episode. The threshold gets whole robots and is asked at each stage's end; asked after\n"
        f"  every episode, until it says yes, it lets {share_text(asked[BAD])} of the bad updates pass the first stage."
    )
    return table(title, heads, rows, note)
