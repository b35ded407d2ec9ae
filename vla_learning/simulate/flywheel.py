# SPDX-License-Identifier: Apache-2.0
"""Exercise 3: how quickly it compounds when a fleet at about 80 % success learns from corrections each week.

Policies are really trained and really run. The fleet begins with a policy that does not know one word: a fifth of its tasks ask
for a block of that colour, and fail. Every week an operator finishes what failed, and the policy is retrained: with replay of old
episodes, and, for comparison, on the week's episodes without replay, and on its corrections alone. Fleets of a seed get the same
tasks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_evidence.analysis import Bar, no_bar
from vla_evidence.simulate.report import Report
from vla_evidence.tables import plural, table
from vla_learning.errors import LearningError
from vla_learning.gate.checks import GateSettings
from vla_learning.simulate import plots
from vla_learning.simulate.trajectory import LearnsFrom, TrajectorySettings
from vla_learning.workers import cores, environment

Floats = npt.NDArray[np.float64]
ARMS: dict[str, LearnsFrom] = {
    "70 % replay, 30 % new": "replay",
    "new episodes, no replay": "new",
    "corrections alone": "corrections",
}


@dataclass(frozen=True)
class Settings:
    """The exercise: ``repeats`` fleets of each kind, in ``jobs`` processes at a time; 0: one a core."""

    fleet: TrajectorySettings = field(default_factory=TrajectorySettings)
    repeats: int = 3
    jobs: int = 0

    def quick(self) -> Settings:
        """Return a smaller one: fewer weeks, one fleet of each kind, so no error bars."""
        return replace(self, fleet=replace(self.fleet, weeks=3, measured_old=80, measured_new=40, steps=100), repeats=1)


Weeks = Mapping[str, Floats]
"""Figure of a week → ``[repeats, weeks + 1]``."""


def run(settings: Settings, bar: Bar = no_bar) -> Report:
    """Answer the question.

    Raises:
        LearningError: ``SIMULATION_FAILED``: a process ended with an error.
    """
    s = settings
    wanted = [
        asdict(replace(s.fleet, learns_from=learns_from, seed=s.fleet.seed + number))
        for learns_from in ARMS.values()
        for number in range(s.repeats)
    ]
    with bar("weeks", len(wanted) * (s.fleet.weeks + 1)) as tick, ThreadPoolExecutor(s.jobs or cores()) as executor:
        found = list(executor.map(lambda one: _fleet(one, lambda: tick(1)), wanted))
    arms = {name: _gathered(found[i * s.repeats : (i + 1) * s.repeats]) for i, name in enumerate(ARMS)}
    return _report(s, arms)


def _fleet(wanted: Mapping[str, Any], tick: Callable[[], None]) -> list[dict[str, Any]]:
    """Run one fleet in a process of its own; torch is on one thread there."""
    command = [sys.executable, "-m", "vla_learning.simulate.trajectory", json.dumps(wanted)]
    weeks = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                weeks.append(json.loads(line))
                tick()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise LearningError(
            "SIMULATION_FAILED", "flywheel", f"a simulated fleet ended with status {process.returncode}"
        )
    return weeks


def _gathered(fleets: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Floats]:
    names = ("old", "new", "success", "corrections", "gate_stops")
    return {name: np.array([[float(week[name]) for week in fleet] for fleet in fleets]) for name in names}


def _report(s: Settings, arms: Mapping[str, Weeks]) -> Report:
    sentence = _sentence(s, arms)
    figures = {
        "settings": asdict(s),
        "arms": {name: {key: values.tolist() for key, values in weeks.items()} for name, weeks in arms.items()},
    }
    drawn = {
        "trajectory": partial(plots.trajectories, {name: weeks["success"] for name, weeks in arms.items()}),
        "forgetting": partial(plots.forgetting, {name: (weeks["old"], weeks["new"]) for name, weeks in arms.items()}),
    }
    text = "\n\n".join([sentence, *(_table(s, name, weeks) for name, weeks in arms.items())])
    return Report("flywheel", sentence, text, figures, drawn)


def _sentence(s: Settings, arms: Mapping[str, Weeks]) -> str:
    with_replay, without, corrections = arms.values()
    weeks = s.fleet.weeks
    mean = with_replay["success"].mean(axis=0)
    half = int(np.argmax(mean >= 0.5 * (mean[0] + mean[-1])))
    most = with_replay["corrections"].mean(axis=0)
    begin = with_replay["old"][:, 0].mean()
    worst = [weeks_of["old"].mean(axis=0)[1:].min() for weeks_of in (with_replay, without, corrections)]
    stopped = [weeks_of["gate_stops"][:, 1:].mean() for weeks_of in (with_replay, without, corrections)]
    return (
        f"From {mean[0]:.0%} success the flywheel comes to {mean[-1]:.0%} in {weeks} weeks with replay; half of that is done "
        f"after {half} {'week' if half == 1 else 'weeks'}. It slows down by itself, because there is less and less to correct: "
        f"{most[1]:.1f} corrected episodes in the first week, {most[-1]:.1f} in the last. Old tasks begin at {begin:.0%} and are "
        f"in their worst week at {worst[0]:.0%} with replay, at {worst[1]:.0%} on the week's episodes without it, and at "
        f"{worst[2]:.0%} on the corrections alone; the gate would have stopped {stopped[0]:.0%}, {stopped[1]:.0%} and "
        f"{stopped[2]:.0%} of these candidates."
    )


def _table(s: Settings, name: str, weeks: Weeks) -> str:
    rows = [
        [
            str(week),
            *(_share(weeks[key][:, week]) for key in ("success", "old", "new")),
            f"{weeks['corrections'][:, week].mean():.1f}" if week else "",
            f"{int(weeks['gate_stops'][:, week].sum())} of {s.repeats}" if week else "",
        ]
        for week in range(s.fleet.weeks + 1)
    ]
    heads = ["week", "success", "old tasks", "new task", "corrected", "stopped by the gate"]
    measured = (
        f"each week's policy on {s.fleet.measured_old} episodes of old tasks and {s.fleet.measured_new} of the new one"
    )
    note = f"{plural(s.repeats, 'fleet')}{', mean ± its standard error' * (s.repeats > 1)}; {measured}."
    if s.fleet.measured_old < GateSettings().episodes_old:
        note += " Of so few the gate cannot exclude its margin: it stops good candidates too."
    return table(name, heads, rows, note)


def _share(values: Floats) -> str:
    error = plots.standard_error(values[:, None])[0]
    return f"{values.mean():.1%}" + (f" ± {error:.1%}" if np.isfinite(error) else "")
