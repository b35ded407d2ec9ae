# SPDX-License-Identifier: Apache-2.0
"""The judge of a rollout: go on to the next stage, wait, roll back, or ask a person. Pure: it reads no clock and no file.

**ROLLBACK** when harm is found: the canary's success is lower, more of its episodes are slow, or more of its blocks of scores
exceed a limit, than the incumbent's beside it. α is shared by these, 3 : 1 : 1, so P(a canary that is no worse in any of them
is ever rolled back) <= α over all stages and looks. It is final.

**ADVANCE** when no harm was found, the stage's time is over, each version has its minimum of episodes with an outcome, and
the stage alone shows that success fell by less than its margin. Never on missing data: a lost episode is a failure, of either
version.

**ASK**: the time is over without that; a person decides (:meth:`CanaryJudge.decide`). **HOLD** otherwise.

The judge draws: :meth:`CanaryJudge.choose` says which version an episode runs, by a hash of the experiment's name, the robot
and the episode, and :meth:`CanaryJudge.begin_stage` which robots hold the new version. So what its evidence rests on is true
by design.

What is refused (:class:`~vla_evidence.errors.InputError`) has changed nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vla_evidence.assignment import arm, cohort
from vla_evidence.canary.by_episode import EpisodeComparison
from vla_evidence.canary.by_robot import History, RobotComparison
from vla_evidence.canary.config import CanaryConfig, Stage, Unit
from vla_evidence.canary.endpoints import Endpoint, Tally, endpoints_of, not_judged
from vla_evidence.canary.scores import ScoreLimits, Scores
from vla_evidence.canary.simple import SimpleComparison
from vla_evidence.episodes import Episode, Fate, Pending
from vla_evidence.errors import InputError
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT
from vla_evidence.tables import listed, plural
from vla_evidence.verdict import Decision, Verdict

ADVANCE, ROLLBACK = "advance", "rollback"
_PERSON = Endpoint("person", "a person decided so", "PERSON_DECIDED", 0.0, 0.0)


class CanaryJudge:
    """Judges one rollout. Call :meth:`begin_stage` first.

    Args:
        config: settings.
        experiment: salts every draw.
        score_history: the incumbent's observations by source (largest score of each block), from which limits are made.
    """

    def __init__(self, config: CanaryConfig, experiment: str = "canary", score_history: Scores | None = None) -> None:
        self.config, self.experiment = config, experiment
        self._limits = ScoreLimits(score_history or {}, config.score_quantile)
        endpoints = endpoints_of(config, self._limits)
        self._comparison: EpisodeComparison | RobotComparison | SimpleComparison
        if config.rule == "simple":
            self._comparison = SimpleComparison(config, endpoints)
        elif config.unit is Unit.EPISODE:
            self._comparison = EpisodeComparison(config, endpoints, self._limits)
        else:
            self._comparison = RobotComparison(config, endpoints, self._limits, experiment)
        self._pending: Pending[Episode] = Pending(config.deadline_s)
        self._stage = -1
        self._since_s = self._now_s = 0.0
        self._total = Tally()
        self._robots: set[str] = set()
        self._first_fleet: set[str] = set()
        self._canaries: set[str] = set()
        self._silent: set[str] = set()
        self._ignored = dict.fromkeys((Fate.REPEATED, Fate.LATE, Fate.UNKNOWN), 0)
        self._allowed: str | None = None  # who said that the next stage may begin without an advance
        self._worse: Endpoint | None = None
        self._advanced = False  # by the last verdict

    @property
    def stage(self) -> Stage:
        """The stage that is judged."""
        if self._stage < 0:
            raise InputError("INPUT_VALUE", "stage", "no stage has begun")
        return self.config.stages[self._stage]

    def begin_stage(
        self, index: int, now_s: float, robots: Collection[str], history: History | None = None
    ) -> tuple[str, ...]:
        """Begin a stage; return the robots that hold the new version in it. The same again changes nothing.

        Args:
            index: in the configuration's stages. The one after the next, or without an ADVANCE: a person must have decided it.
            now_s: the server's one steady clock [s], as everywhere here: back counts as standing still.
            robots: the whole fleet.
            history: robot → (successes, episodes) with the incumbent before the rollout; used where robots are drawn.
        """
        last = len(self.config.stages) - 1
        if index == self._stage and set(robots) == self._robots:
            return tuple(sorted(self._canaries & self._robots))
        if not self._stage < index <= last:
            reason = f"stages only go forward, to {last}: now {self._stage}, asked for {index}"
            raise InputError("INPUT_VALUE", "stage", reason)
        if self._worse is not None:
            raise InputError("INPUT_VALUE", "stage", "the rollout was rolled back: begin another one")
        if self._stage >= 0 and not (self._advanced and index == self._stage + 1) and self._allowed is None:
            raise InputError(
                "INPUT_VALUE", "stage", "the judge did not say ADVANCE: a person must decide first (decide)"
            )
        stage = self.config.stages[index]
        holders = set(cohort(self.experiment, robots, stage.share))
        self._advance_clock(now_s)
        before, self._canaries = self._canaries, self._canaries | holders
        self._stage, self._since_s, self._robots = index, self._now_s, set(robots)
        self._first_fleet = self._first_fleet or set(robots)
        self._advanced, self._allowed = False, None
        if not isinstance(self._comparison, RobotComparison):
            self._comparison.begin(stage, self._since_s)
        else:
            # Robots that joined later are not compared: their chance to be drawn is another one.
            units = (
                {robot for robot in self._robots & self._first_fleet if robot not in before}
                if stage.compares
                else set()
            )
            self._comparison.begin(stage, self._since_s, index, {r: int(r in holders) for r in units}, history)
        return tuple(sorted(holders))

    def robots_changed(self, now_s: float, *, joined: Iterable[str] = (), failed: Iterable[str] = ()) -> None:
        """The fleet changed.

        Args:
            now_s: when [s].
            joined: robots that came: where episodes are drawn and every robot holds both versions, they take part; else they run
                the incumbent until the next stage.
            failed: canary robots whose own trial was rolled back.
        """
        self._advance_clock(now_s)
        self._robots |= set(joined)
        if isinstance(self._comparison, RobotComparison):
            self._comparison.failed |= set(failed)

    def knows(self, episode: str, robot: str) -> bool:
        """Whether this episode of this robot was chosen before."""
        return self._pending.known(episode, robot) is not None

    def choose(self, robot: str, episode: str, now_s: float) -> int:
        """Return which version an episode runs: 0 the incumbent, 1 the canary. The same again gives the same answer.

        Once harm is found every episode runs the incumbent. No other episode has this name; ``now_s`` [s] is not a deadline back.
        """
        stage = self.stage
        known = self._pending.known(episode, robot)
        if known is not None:
            return known.version
        if robot not in self._robots:
            raise InputError("INPUT_VALUE", "robot", f"{robot!r} is not of the fleet: report it (robots_changed)")
        self._pending.check_time(now_s)
        self._advance_clock(now_s)
        stopped = (self._worse or self._comparison.worse) is not None
        holds = not stopped and (robot in self._canaries or stage.share >= 1.0)
        drawn = not stopped and (self.config.unit is Unit.ROBOT or holds)
        version = int(holds)
        if holds and stage.probability < 1.0:
            version = arm(self.experiment, robot, episode, stage.probability)
        found = self._pending.assign(episode, robot, version, stage=self._stage, drawn=drawn and stage.compares)
        self._pending.push(found)
        if found.drawn:
            self._comparison.assigned(found)
        return version

    def outcome(
        self, episode: str, success: bool, now_s: float, latency_s: float | None = None, scores: Scores | None = None
    ) -> Fate:
        """An episode ended; return what became of its outcome. Report it when the robot is ready for the next one.

        A ``latency_s`` [s] that is unknown counts as slow. ``scores``: the largest of each block, by source; a judged source
        without any exceeds its limit.
        """
        within, blocks = self._limits.read(scores)
        self._advance_clock(now_s)
        limit = self.config.latency_limit_s
        fast = () if limit is None else (float(latency_s is not None and latency_s <= limit),)
        values = (float(success), *fast, *within)
        fate = self._pending.finish(episode, success, latency_s, values, blocks)
        if fate is not Fate.COUNTED:
            self._ignored[fate] += 1
        self._take_in()
        return fate

    def decide(self, person: str, action: str, reason: str, now_s: float) -> None:
        """A person decides: "advance" lets any later stage begin, "rollback" ends the rollout."""
        if action not in (ADVANCE, ROLLBACK):
            raise InputError("INPUT_VALUE", "action", f'{action!r} must be "{ADVANCE}" or "{ROLLBACK}"')
        if not person or not reason:
            raise InputError("INPUT_VALUE", "decide", "a decision needs a person and a reason")
        self._advance_clock(now_s)
        if action == ADVANCE:
            self._allowed = person
        else:
            self._worse = self._worse or _PERSON

    def add_many(self, versions: ArrayLike, successes: ArrayLike) -> None:
        """Take in episodes that were drawn as the stage says and have ended by now, in the order of assignment.

        For simulations, where episodes are drawn and success alone is judged; none may be open. Arrays of shape [episodes].
        """
        assert not isinstance(self._comparison, RobotComparison) and not len(self._pending)
        g, y = np.asarray(versions), np.asarray(successes, dtype=np.float64)
        many = Tally()
        for version in (INCUMBENT, CANARY):
            own = g == version
            many.count(version, int(y[own].sum()), int(own.sum()))
        self._comparison.add_many(g, y, many, self._now_s)
        self._total += many

    def add_robots(self, successes: Mapping[str, Iterable[bool]]) -> None:
        """Take in episodes of robots that have ended by now, in their order. For simulations, where robots are drawn."""
        for robot, outcomes in successes.items():
            version = int(robot in self._canaries)
            for success in outcomes:
                episode = Episode("", robot, version, self._now_s, self._now_s, done=True, values=(float(success),))
                episode.success = bool(success)
                self._comparison.assigned(episode)
                self._comparison.add(episode, 1.0, of_stage=True)

    def _advance_clock(self, now_s: float) -> None:
        until_s = max(self._now_s, now_s)
        while self._stage >= 0 and (at_s := self._comparison.next_look_s) <= until_s:
            self._pass_time(max(at_s, self._now_s))  # by the clock, not when somebody asks who has seen how it looks
            self._comparison.judge_looks(self._now_s)
        self._pass_time(until_s)
        if self._stage >= 0:
            self._comparison.judge_looks(self._now_s)

    def _pass_time(self, until_s: float) -> None:
        self._now_s = until_s
        self._pending.advance(until_s)
        self._take_in()

    def _take_in(self) -> None:
        for episode in self._pending.ready():
            (self._silent.discard if episode.done else self._silent.add)(episode.robot)
            if episode.drawn:
                self._total.add(episode)
                stage = self.config.stages[episode.stage]
                self._comparison.add(episode, stage.probability, of_stage=episode.stage == self._stage)

    def verdict(self, now_s: float) -> Verdict:
        """Decide on what is known at this time."""
        stage = self.stage
        self._advance_clock(now_s)
        self._worse = self._worse or self._comparison.worse
        if self._worse is not None:
            found = Verdict(Decision.ROLLBACK, self._worse.harm, self._worse.code)
        elif not stage.compares:
            found = Verdict(Decision.HOLD, "every robot is to run it: nobody is left to compare with")
        else:
            found = self._comparison.advance(self._now_s, self._pending.open_before)
        self._advanced = found.decision is Decision.ADVANCE
        message = "; ".join(
            [f"{stage.name}: {found.message}", self._total.rates(), *self._comparison.words(), *self._notes()]
        )
        return Verdict(found.decision, message, found.code, found.missing, {**found.figures, **self._figures()})

    def _notes(self) -> list[str]:
        notes = []
        if self._limits.too_short:
            notes.append(f"not judged: {', '.join(not_judged(self._limits))}")
        if len(self._pending):
            waiting = self._pending.waiting
            held = f", {waiting} of them ended and waiting for one assigned before" if waiting else ""
            notes.append(f"{plural(len(self._pending), 'episode')} open{held}")
        if self._silent:
            notes.append(f"silent, their episodes counted as failures: {listed(self._silent)}")
        ignored = [f"{number} {fate.value}" for fate, number in self._ignored.items() if number]
        if ignored:
            notes.append(f"outcomes ignored: {', '.join(ignored)}")
        if self._allowed is not None:
            notes.append(f"{self._allowed} decided that the next stage may begin")
        return notes

    def _figures(self) -> dict[str, Any]:
        tally = self._comparison.tally
        return {
            "incumbent": [self._total.successes[INCUMBENT], self._total.episodes[INCUMBENT]],
            "canary": [self._total.successes[CANARY], self._total.episodes[CANARY]],
            "in_stage": list(tally.heard),
            "lost_in_stage": list(tally.lost),
            "elapsed_s": self._now_s - self._since_s,
            "open": len(self._pending),
            "tests": self._comparison.figures(),
        }
