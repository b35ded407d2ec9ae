# SPDX-License-Identifier: Apache-2.0
"""What is compared in a rollout (success, latency, scores), by whom, and what a stage has seen of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from vla_evidence.canary.config import FEWEST_FOR_LIMIT, CanaryConfig
from vla_evidence.canary.scores import ScoreLimits
from vla_evidence.episodes import Episode
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT
from vla_evidence.tables import plural, rate_text

NAMES = {CANARY: "canary", INCUMBENT: "incumbent"}
_SHARES = {"SUCCESS_WORSE": 3.0, "LATENCY_WORSE": 1.0, "SCORES_WORSE": 1.0}


@dataclass(frozen=True)
class Endpoint:
    """One thing that is compared; every episode has a value in [0, 1] for it, and more is better.

    Attributes:
        name: success, latency, or "score " and a source.
        harm: what is found, in words.
        code: of a rollback.
        margin: by which the canary may be worse.
        share: of α.
    """

    name: str
    harm: str
    code: str
    margin: float
    share: float


def endpoints_of(config: CanaryConfig, limits: ScoreLimits) -> list[Endpoint]:
    """Return what is judged, success first; α is shared 3 : 1 : 1, and the scores' part equally by their sources."""
    rows = [("success", "lower success", "SUCCESS_WORSE", config.harm_margin)]
    if config.latency_limit_s is not None:
        rows.append(("latency", "more slow episodes", "LATENCY_WORSE", config.latency_margin))
    rows += [
        (f"score {source}", f"more blocks of {source} above their limit", "SCORES_WORSE", config.score_margin)
        for source in limits.limits
    ]
    codes = [code for _, _, code, _ in rows]
    total = sum(_SHARES[code] for code in set(codes))
    return [Endpoint(*row, _SHARES[code] / total / codes.count(code)) for row, code in zip(rows, codes, strict=True)]


class Comparison:
    """Canary and incumbent compared by one rule, episode by episode as they end.

    Attributes:
        worse: the first endpoint in which harm was found; final.
    """

    worse: Endpoint | None = None

    @property
    def next_look_s(self) -> float:
        """When :meth:`judge_looks` must be called at the latest [s]."""
        return math.inf

    def judge_looks(self, now_s: float) -> None:
        """Make the looks that are due."""

    def assigned(self, episode: Episode) -> None:
        """An episode begins."""


@dataclass
class Tally:
    """Counts of a stage by version: successes, episodes with an outcome, lost ones, and blocks of each judged source."""

    successes: list[int] = field(default_factory=lambda: [0, 0])
    heard: list[int] = field(default_factory=lambda: [0, 0])
    lost: list[int] = field(default_factory=lambda: [0, 0])
    blocks: list[list[int]] = field(default_factory=lambda: [[], []])

    @property
    def episodes(self) -> tuple[int, int]:
        """All of each version, lost ones with them."""
        return self.heard[0] + self.lost[0], self.heard[1] + self.lost[1]

    def add(self, episode: Episode) -> None:
        """Count an episode that is over."""
        done = int(episode.done)
        self.count(episode.version, int(episode.success), done, 1 - done, episode.blocks)

    def count(self, version: int, successes: int, heard: int, lost: int = 0, blocks: Iterable[int] = ()) -> None:
        """Count episodes of a version."""
        self.successes[version] += successes
        self.heard[version] += heard
        self.lost[version] += lost
        own, more = self.blocks[version], list(blocks)
        own += [0] * (len(more) - len(own))
        for index, number in enumerate(more):
            own[index] += number

    def __add__(self, other: Tally) -> Tally:
        total = Tally()
        for tally in (self, other):
            for version in (0, 1):
                counts = tally.successes[version], tally.heard[version], tally.lost[version], tally.blocks[version]
                total.count(version, *counts)
        return total

    def rates(self) -> str:
        """Return both success rates in words."""
        texts = (f"{NAMES[v]} {rate_text(self.successes[v], self.episodes[v])}" for v in (CANARY, INCUMBENT))
        return ", ".join(texts)


def shortfalls(config: CanaryConfig, limits: ScoreLimits, tally: Tally) -> list[str]:
    """Return what a stage lacks before it may advance, whatever its success."""
    missing = []
    for version, name in NAMES.items():
        if tally.heard[version] < config.min_episodes:
            missing.append(f"{tally.heard[version]} of {config.min_episodes} {name} episodes")
        if tally.lost[version] > config.most_lost * tally.episodes[version]:
            lost = f"{tally.lost[version]} of {plural(tally.episodes[version], f'{name} episode')}"
            missing.append(f"{lost} lost, more than {config.most_lost:.0%}")
        for index, source in enumerate(limits.limits):
            blocks = tally.blocks[version][index] if tally.blocks[version] else 0
            if blocks < config.min_blocks:
                missing.append(f"{blocks} of {config.min_blocks} blocks of {source} ({name})")
    if not config.allow_unjudged_scores:
        missing += [f"a limit for {text}" for text in not_judged(limits)]
    return missing


def not_judged(limits: ScoreLimits) -> list[str]:
    """Return the sources with too short a past, in words."""
    return [f"{source} ({n} of {FEWEST_FOR_LIMIT} past values)" for source, n in limits.too_short.items()]
