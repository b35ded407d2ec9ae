# SPDX-License-Identifier: Apache-2.0
"""Two policies by pairs of episodes on the same robot: the exact sign test.

Episodes 2k and 2k + 1 of a robot are a pair, one of each policy; a hash decides which comes first. Pairs count in the order
in which their first episodes were assigned. Each episode has a deadline of its own, and a pair waits for its second one: so
how long either takes says nothing about who wins.

A robot that was not assigned the second one for a day, counted from the end of the first, is away. If the first one's outcome
is known, the pair steps aside and counts when it is whole: robots mostly stop after a slow episode, at the end of a shift. If
the robot fell silent and stays away, the policy that ran on it has lost the pair: a policy that breaks robots is charged with
every pair that it broke.

Robots that cannot ask a server draw each episode themselves, by a fair coin (:func:`~vla_evidence.assignment.arm`). Then an
episode makes a pair with the robot's last one if that ran the other policy and is in no pair yet; else it waits for the next
one. Exchanging A and B in the whole run of episodes that ends with a pair gives the same pair with the other sign, and is as
likely: so the signs are fair coins here as well. It takes three episodes a pair on average, instead of two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vla_evidence.ab.judge import DEADLINE_S, ABJudge, decide
from vla_evidence.assignment import A, arm, arm_in_pair
from vla_evidence.episodes import Episode
from vla_evidence.sequential.sign_test import ExactSignTest, SignTestDesign
from vla_evidence.sequential.spending import spending_of
from vla_evidence.tables import listed, plural
from vla_evidence.verdict import Decision

GONE_S = 24 * 3600.0
EPISODES_OF_A_DRAWN_PAIR = 3.0
"""Mean number of a robot's episodes for each pair, if it draws each by a fair coin: one, and 2 until the other policy comes."""


@dataclass
class Pair:
    """Episodes that count together.

    Attributes:
        size: 2; 1 for an episode that came after its pair was lost, or is followed by one of the same policy.
        gone_s: for how long it waits for its second episode after the end of the first [s].
        episodes: those that were assigned.
        counted: how many of them were counted before, while the pair was not whole.
    """

    size: int
    gone_s: float
    episodes: list[Episode] = field(default_factory=list)
    counted: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether no episode is missing."""
        return len(self.episodes) == self.size

    @property
    def is_lost(self) -> bool:
        """Whether its first episode ended in silence, if nothing more comes."""
        return not self.is_whole and not self.episodes[0].done

    def is_closed(self, now_s: float) -> bool:
        """Whether every episode is over, and none is missing or its robot is away."""
        if any(episode.is_open(now_s) for episode in self.episodes):
            return False
        return self.is_whole or now_s >= self.episodes[-1].over_s + self.gone_s


class PairedABJudge(ABJudge):
    """Judge of pairs.

    Args:
        max_pairs: after which it ends.
        alpha, experiment, confidence, deadline_s: see :class:`ABJudge`.
        two_sided: False: asks only whether B is better.
        min_pairs: before which nothing is decided; None: a tenth of ``max_pairs``, at most 20.
        spending: "linear" or "obrien_fleming" (:mod:`vla_evidence.sequential.spending`).
        gone_s: a robot that was not assigned a pair's second episode for so long is away; longer than a night [s].
        drawn_by_robot: robots draw each episode themselves, by a fair coin; an episode's name is ``robot/id`` then, and the
            robot draws with its id.
    """

    def __init__(
        self,
        max_pairs: int,
        alpha: float = 0.05,
        *,
        experiment: str = "ab",
        two_sided: bool = True,
        min_pairs: int | None = None,
        spending: str = "linear",
        confidence: float = 0.95,
        deadline_s: float = DEADLINE_S,
        gone_s: float = GONE_S,
        drawn_by_robot: bool = False,
    ) -> None:
        super().__init__(experiment, alpha, deadline_s, confidence)
        self._drawn_by_robot = drawn_by_robot
        f = spending_of(spending)
        self._success = ExactSignTest(SignTestDesign(max_pairs, alpha, two_sided, f, min_pairs))
        self._latency = ExactSignTest(SignTestDesign(max_pairs, alpha, True, f, min_pairs))
        self._gone_s = gone_s
        self._numbers: dict[str, int] = {}  # episodes of a robot so far
        self._half: dict[str, Pair] = {}  # by robot: a pair without its second episode
        self._lost = 0

    @property
    def decision(self) -> Decision:
        """What is decided so far; final unless CONTINUE."""
        return decide(self._success.decision, self._success.ended)

    def _draw(self, robot: str, episode: str) -> int:
        if self._drawn_by_robot:
            return arm(self.experiment, robot, episode.removeprefix(f"{robot}/"), 0.5)
        return arm_in_pair(self.experiment, robot, self._numbers.get(robot, 0))[1]

    def _begin(self, episode: Episode) -> None:
        number = self._numbers.get(episode.robot, 0)
        self._numbers[episode.robot] = number + 1
        pair = self._half.pop(episode.robot, None)
        if pair is not None and pair.is_lost and pair.is_closed(self._pending.now_s):
            pair = None  # the robot is back, but too late
        if pair is not None and self._drawn_by_robot and pair.episodes[0].version == episode.version:
            pair.size = 1  # the same policy again
            pair = None
        if pair is None:
            alone = number % 2 == 1 and not self._drawn_by_robot  # its pair was lost
            pair = Pair(1 if alone else 2, self._gone_s)
            if not alone:
                self._half[episode.robot] = pair
            self._pending.push(pair)
        elif pair.counted:
            self._pending.push(pair)  # it had stepped aside
        pair.episodes.append(episode)

    def _take_in(self) -> None:
        for pair in self._pending.ready():
            for episode in pair.episodes[pair.counted :]:
                self._arms[episode.version].add(episode.success, episode.latency_s, lost=not episode.done)
            pair.counted = len(pair.episodes)
            if pair.size == 1:
                continue
            if pair.is_whole:
                a, b = sorted(pair.episodes, key=lambda episode: episode.version)
                self._pair(a.success, b.success, a.latency_s, b.latency_s)
            elif pair.is_lost:
                self._half.pop(pair.episodes[0].robot, None)
                self._lost += 1
                lost_by_a = pair.episodes[0].version == A
                self._pair(not lost_by_a, lost_by_a, None, None)

    def _pair(self, a: bool, b: bool, latency_a_s: float | None, latency_b_s: float | None) -> None:
        """Compare; after the end nothing changes."""
        if not self._success.ended:
            self._success.update(int(b) - int(a))
            faster = 0
            if a and b and latency_a_s is not None and latency_b_s is not None:
                faster = (latency_b_s < latency_a_s) - (latency_b_s > latency_a_s)
            self._latency.update(faster)

    def _grounds(self) -> tuple[str, dict[str, Any], int]:
        test = self._success
        n, score, boundary = test.discordant, test.score, test.boundary
        words = f"B won {(n + score) // 2} and A {(n - score) // 2} of {plural(n, 'pair')} that differ"
        words += f", after {test.pairs} of at most {test.design.max_pairs} pairs"
        if not test.decision:
            words += "; no lead is enough yet" if boundary is None else f"; a lead of {boundary} decides"
        if self._lost:
            words += f"; {plural(self._lost, 'pair')} lost by robots that fell silent and stayed away"
        now_s = self._pending.now_s
        awaited = [robot for robot, pair in self._half.items() if not pair.episodes[0].is_open(now_s)]
        if awaited:
            words += f"; waiting for the second episode of a pair on {listed(awaited)}"
        figures = {"pairs": test.pairs, "planned": test.design.max_pairs, "discordant": n, "lead_of_b": score}
        return words, figures, self._latency.decision
