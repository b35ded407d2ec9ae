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
from vla_evidence.canary.config import DEFAULT_STAGES, HALF_STAGES, HOUR_S, CanaryConfig, Stage
from vla_evidence.errors import InputError
from vla_evidence.planning.stopping import Stopping, check_runs, detection_times, share_and_error
from vla_evidence.sequential.two_sample import BetaPrior
from vla_evidence.simulate import plots
from vla_evidence.simulate.fleet import FleetModel
from vla_evidence.simulate.report import Report
from vla_evidence.simulate.rollouts import FULL, OUTCOMES, ROLLED_BACK, Rollouts, judged, threshold_rule
from vla_evidence.tables import hours_text, share_text, table

FLEETS = (1, 5, 10, 20, 50, 100, 200, 500)
FREQUENCIES = (0.5, 1.0, 2.0, 6.0, 20.0, 60.0)
BAD, GOOD = "bad", "equally good"
JUDGE, THRESHOLD = "our judge", "mean >= old - 2 %"
_HORIZON, _MOST_EPISODES = 1500, 4_000_000
_LATER_RUNS, _WHOLE_RUNS = 2000, 300
"""Most runs of what is slow: drops that set in after other stages, and whole rollouts."""


@dataclass(frozen=True)
class Settings:
    """Of the exercise.

    Attributes:
        incumbent, canary: success rates before and after the bad update.
        robots, per_hour: of the fleet, and episodes that each does an hour.
        alpha: P(an update that is no worse is ever rolled back) is at most this.
        rollback_s: from the verdict to the old version acting [s].
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
    runs: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.canary < self.incumbent:
            raise InputError("INPUT_RATE", "canary", f"{self.canary} is not below the incumbent's {self.incumbent}")
        for name in ("per_hour", "rollback_s"):
            if not 1e-6 <= getattr(self, name) <= 1e9:
                raise InputError("INPUT_VALUE", name, f"{getattr(self, name)} does not lie between 1e-6 and 1e9")
        FleetModel(self.robots, self.icc)
        hours = sum(stage.duration_s for stage in DEFAULT_STAGES) / HOUR_S
        if self.robots * self.per_hour * hours > _MOST_EPISODES:
            reason = f"with {self.robots} robots more than {_MOST_EPISODES:,} episodes a rollout: too many to simulate"
            raise InputError("INPUT_VALUE", "per_hour", reason)
        check_runs(self.runs, self.seed)


@dataclass(frozen=True)
class Detection:
    """How soon the drop is found if it sets in with a stage, after stages in which the update was as good."""

    name: str
    stage: Stage
    stopping: Stopping

    def hours(self, q: float, robots: int, per_hour: float) -> float:
        """Return by when the share ``q`` of such updates is found; infinite if it never is."""
        units = float(np.quantile(self.stopping.units, q, method="inverted_cdf"))
        return units / (self.stage.robots(robots) * per_hour)

    def figures(self, s: Settings) -> dict[str, Any]:
        """Return what was found, in numbers."""
        (mean, error), both = self.stopping.mean_decided, (0.5, 0.9)
        return {
            "runs": self.stopping.times.size,
            "found": self.stopping.decided,
            "canary_episodes": {"mean": mean, "error": error, "p50_p90": [self.stopping.quantile(q) for q in both]},
            "hours_p50_p90": [self.hours(q, s.robots, s.per_hour) for q in both],
            "found_within_the_stage": self.in_time(s.robots, s.per_hour),
        }

    def in_time(self, robots: int, per_hour: float) -> tuple[float, float]:
        """Return the share of such updates found within the stage, and its Monte-Carlo standard error."""
        units = self.stage.duration_s / HOUR_S * self.stage.robots(robots) * per_hour
        return share_and_error(float((self.stopping.units <= units).mean()), self.stopping.times.size)


def run(settings: Settings, bar: Bar = no_bar) -> Report:
    """Answer the question."""
    s, rng = settings, np.random.default_rng(settings.seed)
    found, rollouts = _detections(s, rng, bar), _whole_rollouts(s, rng, bar)
    first = found[0]
    hours = np.array([[first.hours(0.5, n, f) + s.rollback_s / HOUR_S for f in FREQUENCIES] for n in FLEETS])
    sentence = _sentence(s, first, rollouts)
    text = [sentence, _detection_table(s, found), _hours_table(first, hours), _rollout_table(s, rollouts)]
    figures = {
        "settings": asdict(s),
        "detection": {d.name: d.figures(s) for d in found},
        "median_hours": {"fleets": FLEETS, "per_hour": FREQUENCIES, "hours": hours.tolist()},
        "rollouts": {f"{version}: {rule}": _shares(runs) for (version, rule), runs in rollouts.items()},
    }
    curves = {f"{d.name} ({d.stage.probability:.0%})": d.stopping for d in found}
    drawn = {
        "detection": partial(plots.detection, curves, s.incumbent, s.canary),
        "hours": partial(plots.hours_map, hours, FLEETS, FREQUENCIES, first.stage.duration_s / HOUR_S),
        "rollouts": partial(plots.rollout_ends, rollouts),
    }
    return Report("canary", sentence, "\n\n".join(text), figures, drawn)


def _detections(s: Settings, rng: np.random.Generator, bar: Bar) -> list[Detection]:
    informed = CanaryConfig(history=(round(s.incumbent * 1000), 1000)).priors
    limited = [stage for stage in DEFAULT_STAGES if stage.compares]
    before = [(stage.probability, round(s.robots * s.per_hour * stage.duration_s / HOUR_S)) for stage in limited]
    first, few = limited[0], Stage("canary", 0.05, 0.5, limited[0].duration_s, 0.1)
    designs: list[tuple[str, Stage, tuple[BetaPrior, BetaPrior] | None, list[tuple[float, int]]]] = [
        (first.name, first, None, []),
        (f"{first.name}, prior from history", first, informed, []),
        (f"{first.name}, {few.share:.0%} of the robots only", few, None, []),
        (f"{first.name}, {HALF_STAGES[0].share:.0%} of the robots only", HALF_STAGES[0], None, []),
        *((stage.name, stage, None, before[: index + 1]) for index, stage in enumerate(limited[1:])),
    ]
    found = []
    for name, stage, priors, earlier in designs:
        runs = s.runs if stage is first else min(s.runs, _LATER_RUNS)
        with bar(f"finding the drop: {name}", runs) as tick:
            stopping = detection_times(
                s.incumbent, s.canary, stage.probability, alpha=s.alpha, horizon=_HORIZON, runs=runs, rng=rng, priors=priors,
                earlier=earlier, progress=tick,
            )  # fmt: skip
        found.append(Detection(name, stage, stopping))
    return found


def _whole_rollouts(s: Settings, rng: np.random.Generator, bar: Bar) -> dict[tuple[str, str], Rollouts]:
    """Return (version, rule) → rollouts."""
    fleet, runs = FleetModel(s.robots, s.icc), min(s.runs, _WHOLE_RUNS)
    config = CanaryConfig(alpha=s.alpha, history=(round(s.incumbent * 1000), 1000))
    ended = {}
    for version, rate in ((BAD, s.canary), (GOOD, s.incumbent)):
        with bar(f"whole rollouts: {version}", runs) as tick:
            ended[version, JUDGE] = judged(fleet, (s.incumbent, rate), s.per_hour, config, runs, rng, tick)
        ended[version, THRESHOLD] = threshold_rule(fleet, (s.incumbent, rate), s.per_hour, config.stages, s.runs, rng)
    return ended


def _sentence(s: Settings, first: Detection, rollouts: dict[tuple[str, str], Rollouts]) -> str:
    half, most = (_within(first.hours(q, s.robots, s.per_hour)) for q in (0.5, 0.9))
    ours, theirs = rollouts[GOOD, JUDGE], rollouts[GOOD, THRESHOLD]
    passed = float((rollouts[BAD, THRESHOLD].stage > 0).mean())
    return (
        f"In a fleet of {s.robots} robots that do {s.per_hour:g} tasks an hour each, an update that drops success from "
        f"{s.incumbent:.0%} to {s.canary:.0%} is found {_found(first.stopping)}: half of such updates {half}, 90 % {most}, "
        f"while {first.stage.probability:.0%} of the episodes run it; the old version acts again at most "
        f"{s.rollback_s / 60.0:g} min after the verdict. An equally good update reaches every robot without a person in "
        f"{ours.share(FULL):.0%} of rollouts and is rolled back in {ours.share(ROLLED_BACK):.0%}; "
        f'"new mean >= old mean - 2 %", asked at each stage\'s end, turns down {theirs.share(ROLLED_BACK):.0%} of the good and '
        f"lets {passed:.1%} of the bad ones pass the first stage."
    )


def _found(stopping: Stopping) -> str:
    """Return after how long a drop is found, and how often it is not."""
    (mean, error), (share, share_error) = stopping.mean_decided, stopping.decided
    after = f"after {mean:.1f} ± {error:.1f} canary episodes on average"
    if share == 1.0:
        return after
    those = f"those {after}; " if math.isfinite(mean) else ""
    cases = share_text((share, share_error))
    return f"within {stopping.horizon:,.0f} canary episodes in {cases} of cases ({those}in the others it is not)"


def _within(hours: float) -> str:
    return f"within {hours_text(hours)}" if math.isfinite(hours) else "not within these episodes"


def _detection_table(s: Settings, found: list[Detection]) -> str:
    rows = []
    for d in found:
        figures = d.figures(s)
        episodes = figures["canary_episodes"]
        mean = f"{episodes['mean']:.1f} ± {episodes['error']:.1f}" if math.isfinite(episodes["mean"]) else "never"
        by = [f"{n:.0f}" if math.isfinite(n) else f"> {_HORIZON:,}" for n in episodes["p50_p90"]]
        within = [hours_text(hours) for hours in figures["hours_p50_p90"]]
        in_time = share_text(figures["found_within_the_stage"])
        rows.append([d.name, f"{d.stage.probability:.0%}", mean, *by, *within, in_time, f"{figures['runs']:,}"])
    fleet = f"{s.robots} robots, {s.per_hour:g} tasks an hour"
    title = f"Until {s.incumbent:.0%} -> {s.canary:.0%} is found: canary episodes, and time ({fleet})"
    heads = [
        "sets in with",
        "of episodes",
        "mean",
        "half by",
        "90 % by",
        "half within",
        "90 % within",
        "in the stage",
        "runs",
    ]
    note = "± is the Monte-Carlo standard error. Stages before were good ones; the evidence that they cost is won back first."
    return table(title, heads, rows, note)


def _hours_table(first: Detection, hours: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    rows = [[f"{n} robot{'s' * (n > 1)}", *map(hours_text, row)] for n, row in zip(FLEETS, hours, strict=True)]
    title = f"Stage {first.name}: time until half of such updates are rolled back, by tasks an hour of each robot"
    limit = (
        f"What takes longer than the stage's {hours_text(first.stage.duration_s / HOUR_S)}: nothing advances unproven."
    )
    return table(title, ["", *(f"{f:g} an hour" for f in FREQUENCIES)], rows, f"All robots hold both versions. {limit}")


def _shares(runs: Rollouts) -> dict[str, tuple[float, float]]:
    """Return how the rollouts ended, and how many passed the first stage."""
    size = runs.outcome.size
    shares = {outcome: share_and_error(runs.share(outcome), size) for outcome in OUTCOMES}
    return {**shares, "passed stage 1": share_and_error(float((runs.stage > 0).mean()), size)}


def _rollout_table(s: Settings, rollouts: dict[tuple[str, str], Rollouts]) -> str:
    rows = [
        [
            f"{version}: {rule}",
            *map(share_text, _shares(runs).values()),
            hours_text(float(runs.hours.mean())),
            f"{runs.hours.size:,}",
        ]
        for (version, rule), runs in rollouts.items()
    ]
    heads = ["update: rule", *OUTCOMES, "passed stage 1", "mean length", "runs"]
    title = f"Whole rollouts, {s.robots} robots that differ (intraclass correlation {s.icc:g}), {s.per_hour:g} tasks an hour"
    note = "The judge looks after every episode. The threshold gets whole robots and is asked at each stage's end."
    return table(title, heads, rows, note)
