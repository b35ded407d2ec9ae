# SPDX-License-Identifier: Apache-2.0
"""What the judges of A against B share: they draw which policy an episode runs, take outcomes in, and say what they found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from vla_evidence.assignment import A, B
from vla_evidence.episodes import Episode, Fate, Pending
from vla_evidence.sequential.intervals import wilson_interval
from vla_evidence.verdict import Decision, Verdict

DEADLINE_S = 3600.0
NAMES = {A: "A", B: "B"}
_BY_SIGN = {1: Decision.B_BETTER, -1: Decision.A_BETTER}


@dataclass
class Arm:
    """Sums of one policy: bounded memory whatever the number of episodes."""

    successes: int = 0
    episodes: int = 0
    latency_sum_s: float = 0.0
    latencies: int = 0
    lost: int = 0

    def add(self, success: bool, latency_s: float | None, *, lost: bool = False) -> None:
        """Take one episode in; its latency only if it succeeded: to fail fast is not to be fast."""
        self.successes += success
        self.episodes += 1
        self.lost += lost
        if latency_s is not None and success:
            self.latency_sum_s += latency_s
            self.latencies += 1

    @property
    def latency_s(self) -> float | None:
        """Mean latency of the episodes that succeeded [s]."""
        return self.latency_sum_s / self.latencies if self.latencies else None

    def figures(self, confidence: float, waiting: int) -> dict[str, Any]:
        """Return the sums with Wilson's interval; ``waiting``: episodes without an outcome."""
        return {
            "successes": self.successes,
            "episodes": self.episodes,
            "rate": self.successes / self.episodes if self.episodes else None,
            "interval": list(wilson_interval(self.successes, self.episodes, confidence)),
            "latency_s": self.latency_s,
            "lost": self.lost,
            "open": waiting,
        }


class ABJudge(ABC):
    """A judge that counts each episode once, in the order of assignment (:mod:`vla_evidence.episodes`).

    Args:
        experiment: salts every draw.
        alpha: P(claiming a difference in success that is not there).
        deadline_s: an episode without an outcome for so long has failed [s].
        confidence: of the intervals shown.
    """

    def __init__(self, experiment: str, alpha: float, deadline_s: float, confidence: float) -> None:
        self.experiment, self._alpha, self._confidence = experiment, alpha, confidence
        self._pending: Pending[Any] = Pending(deadline_s)
        self._arms = {A: Arm(), B: Arm()}

    @property
    @abstractmethod
    def decision(self) -> Decision:
        """What is decided so far; final unless CONTINUE."""

    def knows(self, episode: str, robot: str) -> bool:
        """Whether this episode of this robot was chosen before."""
        return self._pending.known(episode, robot) is not None

    def choose(self, robot: str, episode: str, now_s: float) -> int:
        """Return which policy a robot's next episode runs: 0 for A, 1 for B. The same again gives the same answer.

        Args:
            robot, episode: their names; an episode's name is no other episode's.
            now_s: when [s], by one steady clock: back counts as standing still, a jump lets deadlines pass.
        """
        known = self._pending.known(episode, robot)
        if known is not None:
            return known.version
        self._pending.check_time(now_s)
        self._pending.advance(now_s)
        version = self._draw(robot, episode)
        self._begin(self._pending.assign(episode, robot, version))
        self._take_in()
        return version

    def outcome(self, episode: str, success: bool, now_s: float, latency_s: float | None = None) -> Fate:
        """An episode ended; return what became of its outcome. ``latency_s`` [s] counts if the episode succeeded."""
        self._pending.advance(now_s)
        fate = self._pending.finish(episode, bool(success), latency_s, (), ())
        self._take_in()
        return fate

    def verdict(self, now_s: float | None = None) -> Verdict:
        """Return the decision with what it rests on; ``now_s`` None: no time has passed since the last call."""
        if now_s is not None:
            self._pending.advance(now_s)
            self._take_in()
        figures = {NAMES[v]: self._arms[v].figures(self._confidence, self._pending.open_of(v)) for v in (A, B)}
        words, more, faster = self._grounds()
        message = f"{self._decision_words()}: {', '.join(f'{n} {_arm_words(f)}' for n, f in figures.items())}; {words}"
        more["faster"] = {1: "B", -1: "A"}.get(faster)
        return Verdict(self.decision, f"{message}; {self._latency_words(faster)}", figures={**figures, **more})

    @abstractmethod
    def _draw(self, robot: str, episode: str) -> int:
        """Return which policy the robot's next episode, of this name, runs."""

    @abstractmethod
    def _begin(self, episode: Episode) -> None:
        """Put an episode into the queue."""

    @abstractmethod
    def _take_in(self) -> None:
        """Take in what nothing open stands before."""

    @abstractmethod
    def _grounds(self) -> tuple[str, dict[str, Any], int]:
        """Return what the decision rests on, in words and numbers, and which policy is faster (+1: B; 0: neither)."""

    def _decision_words(self) -> str:
        claim = f"is better (claimed wrongly in at most {self._alpha:.1%} of such tests)"
        return {
            Decision.A_BETTER: f"A {claim}",
            Decision.B_BETTER: f"B {claim}",
            Decision.NO_DIFFERENCE_SHOWN: "no difference was shown with all that was planned; there may be one",
            Decision.CONTINUE: "not decided yet",
        }[self.decision]

    def _latency_words(self, faster: int) -> str:
        a, b = self._arms[A].latency_s, self._arms[B].latency_s
        if a is None or b is None:
            return "latency was not recorded for successes of both policies"
        means = f"mean latency of successes A {a:.4g} s, B {b:.4g} s"
        if not faster:
            return f"no difference in latency shown; {means}"
        return f"{NAMES[B if faster > 0 else A]} is faster; {means}"


def decide(sign: int, ended: bool) -> Decision:
    """Return the decision of a test with this sign (+1: B)."""
    return _BY_SIGN.get(sign, Decision.NO_DIFFERENCE_SHOWN if ended else Decision.CONTINUE)


def _arm_words(figures: dict[str, Any]) -> str:
    more = [f"{n} {what}" for n, what in ((figures["lost"], "lost"), (figures["open"], "open")) if n]
    text = "no episode"
    if figures["rate"] is not None:
        low, high = figures["interval"]
        text = f"{figures['successes']} of {figures['episodes']} = {figures['rate']:.1%} [{low:.1%}, {high:.1%}]"
    return f"{text} ({', '.join(more)})" if more else text
