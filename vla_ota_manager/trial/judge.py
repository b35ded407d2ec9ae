# SPDX-License-Identifier: Apache-2.0
"""The judge of a trial: commit, roll back, or wait for more. Pure: it reads no clock and writes nothing.

In this order: a hard limit or a lost heartbeat decides at once; then evidence; then exposure.

**Evidence.** One e-process for each calibrated score source, and one for success. α is shared equally among them
(Bonferroni), and each share is halved between the incumbent's calibration being off and the e-process:

* scores: H0: P(a block's largest score > q | the past) <= ``tolerated_exceedance``, q being the incumbent's limit from
  ``exceedance_limit``. A version that is merely different, but exceeds q in no more than the tolerated share of blocks,
  satisfies H0.
* success: H0: P(failure | the past) <= 1 - (lower bound of the incumbent's success rate - ``success_margin``).

So P(a version that satisfies every H0 is ever rolled back on evidence) <= α. The e-processes allow blocks to depend on each
other as long as H0 holds given the past; the calibration assumes the incumbent's blocks to be independent and observed under
the same conditions. A source without enough calibration rejects no version, and the message says so.

**Exposure.** A commit needs enough episodes or enough chunks, enough time in motion, and no evidence that leans against the
version (``commit_max_evidence``); without exposure a trial stays open. Exposure counts, and a commit is possible, only while a
fresh status of the policy node says that this very generation acts on trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vla_evidence import ExceedanceTest, FailureTest, observations_needed, proportion_lower_bound
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.port import PolicySnapshot
from vla_ota_manager.records import EpisodeResult, Score
from vla_ota_manager.trial.calibration import MAX_SOURCES, Acting, BlockBuilder, Calibration, succeeded
from vla_ota_manager.trial.inbox import HARD_LIMIT_SOURCE, unusable

REJECTING_HOLDS = frozenset({"LIMIT", "NAN", "WORKER_LOST", "POLICY_FAILED"})
"""Holds that say something about the version; the others (starved cameras, a person's stop) do not."""
CHUNK_SOURCES = frozenset({"tce", "reversal", "magnitude"})
"""Sources of which each chunk has at most one score, so that they count chunks."""
_MAX_STEP_S = 1.0


class Decision(Enum):
    """What is to be done with the version on trial."""

    CONTINUE = "CONTINUE"
    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"


@dataclass(frozen=True)
class Verdict:
    """A decision with its grounds. ``progress``: share of the exposure that a commit needs, 0 to 1."""

    decision: Decision
    message: str
    progress: float
    code: str = ""
    at_once: bool = False
    """Do not wait for the end of the chunk."""
    unjudged: str = ""
    """Of a commit: what had no reference to compare with, and therefore could not have rejected it."""


class TrialJudge:
    """Judges one trial of one version.

    Args:
        config: the settings from ``alpha`` to ``heartbeat_timeout_s``.
        incumbent: calibration of the committed version; None: nothing is known of it.
        first_install: there is nothing to compare with: clean chunks decide.
    """

    def __init__(self, config: OtaConfig, incumbent: Calibration | None, *, first_install: bool = False) -> None:
        self._config = config
        self._first_install = first_install
        self._blocks = BlockBuilder(config.block_chunks)
        self._scores: dict[str, ExceedanceTest] = {}
        self._not_judged: list[str] = []
        self._success: FailureTest | None = None
        self._rejected: tuple[str, str] | None = None
        self._chunks: dict[str, int] = {}
        self._clean_from = 0
        self._episodes = self._successes = self._dropped = 0
        self._time_s = 0.0
        self._acting, self._digest = Acting("", 0, "", 0.0), ""
        self._acts = False
        self._observed_at = self._listening_since = math.nan
        self._alpha = config.alpha
        self._set_up(incumbent if incumbent is not None else Calibration.empty(config))

    def _set_up(self, incumbent: Calibration) -> None:
        config = self._config
        sources = [s for s in incumbent.blocks if not config.score_sources or s in config.score_sources]
        tests = len(sources) + 1
        self._alpha = config.alpha / tests / 2
        confidence = 1.0 - self._alpha
        needed = observations_needed(1.0 - config.tolerated_exceedance, confidence)
        for source in sorted(sources):
            values = list(incumbent.blocks[source])
            test = ExceedanceTest.calibrated(
                values, quantile=config.score_quantile, tolerated=config.tolerated_exceedance, confidence=confidence
            )
            if test is None:
                self._not_judged.append(f"{source} ({len(values)} of {needed} observations to calibrate it)")
            else:
                self._scores[source] = test
        rate = config.min_success_rate
        if incumbent.episodes:
            rate = proportion_lower_bound(incumbent.successes, incumbent.episodes, confidence) - config.success_margin
        self._success = FailureTest.below(rate)
        if self._success is None:
            self._not_judged.append(f"success (incumbent: {incumbent.successes} of {incumbent.episodes} episodes)")

    # -- inputs -------------------------------------------------------------------------------------------------------------

    def begin(self, acting: Acting, digest: str, now_s: float) -> None:
        """The version acts from now on; again after a restart of the policy node."""
        self._acting, self._digest = acting, digest
        self._acts = False
        self._observed_at = self._listening_since = now_s
        self._blocks = BlockBuilder(self._config.block_chunks)

    def add(self, item: Score | EpisodeResult) -> None:
        """Take in a score or an outcome; one of before the swap, of another generation or no evidence is dropped and counted."""
        if not self._acting.did(item) or (isinstance(item, Score) and unusable(item)):
            self._dropped += 1
        elif isinstance(item, EpisodeResult):
            self._add_outcome(item)
        else:
            self._add_score(item)

    def _add_score(self, score: Score) -> None:
        if score.source == HARD_LIMIT_SOURCE:
            if not score.value <= 0.0:  # also NaN
                self._reject("HARD_LIMIT", "policy_node says that a hard limit was broken")
        elif not math.isfinite(score.value):
            self._reject("HARD_LIMIT", f"the score {score.source} is {score.value}")
        elif score.source in self._chunks or len(self._chunks) < MAX_SOURCES:
            self._chunks[score.source] = self._chunks.get(score.source, 0) + self._acts
            block = self._blocks.add(score)
            if block is not None:
                self._add_block(score.source, block)

    def _add_block(self, source: str, value: float) -> None:
        test = self._scores.get(source)
        if test is not None:
            test.update(value)

    def _add_outcome(self, result: EpisodeResult) -> None:
        for source, value in self._blocks.end_episode(result.episode_id).items():
            self._add_block(source, value)
        success = succeeded(result)
        if success is None:
            return
        if self._acts:
            self._episodes += 1
            self._successes += success
        if self._success is not None:
            self._success.update(success)

    def observe(
        self, snapshot: PolicySnapshot | None, now_s: float, arrived: Iterable[Score | EpisodeResult] = ()
    ) -> None:
        """Look at the policy node: its heartbeat, its holds, and whether time in motion passes.

        Args:
            snapshot: Its last status.
            now_s: Monotonic time [s].
            arrived: Scores and outcomes that came since the last call, and none after that status.
        """
        step, self._observed_at = now_s - self._observed_at, now_s
        timeout_s = self._config.heartbeat_timeout_s
        if not step <= max(timeout_s / 2, _MAX_STEP_S):  # this process slept: it could not hear anything
            self._listening_since = now_s
        age = math.inf if snapshot is None else snapshot.age_s
        silent_s = min(age, now_s - self._listening_since)
        if silent_s > timeout_s:
            what = "unconfigured" if snapshot is not None and snapshot.unconfigured else "silent"
            self._reject("HEARTBEAT_LOST", f"policy_node has been {what} for {silent_s:.1f} s")
        self._acts = self._acts_on_trial(snapshot)
        for item in arrived:
            self.add(item)
        if snapshot is None or age > timeout_s or snapshot.generation != self._acting.generation:
            return
        if snapshot.holding:
            self._clean_from = self._chunk_count()
            if snapshot.hold_reason in REJECTING_HOLDS:
                code = "WORKER_LOST" if snapshot.hold_reason == "WORKER_LOST" else "HARD_LIMIT"
                self._reject(code, f"policy_node holds: {snapshot.hold_reason}")
        elif self._acts and snapshot.running and math.isfinite(step):
            self._time_s += min(max(step, 0.0), _MAX_STEP_S)

    def _acts_on_trial(self, snapshot: PolicySnapshot | None) -> bool:
        """Whether a fresh status says that this generation acts, and on trial."""
        if snapshot is None or snapshot.age_s > self._config.policy_silent_s or not snapshot.on_trial:
            return False
        return (snapshot.active_digest, snapshot.generation) == (self._digest, self._acting.generation)

    def _reject(self, code: str, message: str) -> None:
        self._rejected = self._rejected or (code, message)

    # -- output -------------------------------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        """Decide on what is known so far."""
        progress = self._progress()
        if self._rejected is not None:
            code, message = self._rejected
            return Verdict(Decision.ROLLBACK, message, progress, code, at_once=True)
        for source, test in self._scores.items():
            if test.rejects(self._alpha):
                message = f"{self._describe(source, test)}: worse than the incumbent"
                return Verdict(Decision.ROLLBACK, message, progress, "SCORES_WORSE")
        if self._success is not None and self._success.rejects(self._alpha):
            message = f"{self._success.describe(self._alpha)}: worse than the incumbent"
            return Verdict(Decision.ROLLBACK, message, progress, "SUCCESS_WORSE")
        message = self._describe_all()
        if progress >= 1.0 and self._acts and not self._leaning():
            unjudged = self._unjudged()
            if unjudged:
                message = f"committed WITHOUT A JUDGEMENT of {unjudged}; {message}"
            return Verdict(Decision.COMMIT, message, 1.0, unjudged=unjudged)
        return Verdict(Decision.CONTINUE, message, progress)

    def _unjudged(self) -> str:
        """Return what could not have rejected it. A robot may have no episodes; then its scores are what counts."""
        if self._first_install or (self._scores and self._success is None and len(self._not_judged) == 1):
            return ""
        return ", ".join(self._not_judged)

    def _progress(self) -> float:
        config = self._config
        if self._first_install:
            return min(1.0, (self._chunk_count() - self._clean_from) / config.first_install_chunks)
        shares = []
        if config.min_trial_episodes:
            shares.append(self._episodes / config.min_trial_episodes)
        if config.min_trial_chunks:
            shares.append(self._chunk_count() / config.min_trial_chunks)
        time_share = self._time_s / config.min_trial_time_s if config.min_trial_time_s else 1.0
        return min(1.0, time_share, max(shares, default=1.0))

    def _chunk_count(self) -> int:
        own = [count for source, count in self._chunks.items() if source in CHUNK_SOURCES]
        return max(own or self._chunks.values(), default=0)

    def _leaning(self) -> bool:
        tests: list[ExceedanceTest | FailureTest] = [
            *self._scores.values(),
            *([self._success] if self._success else []),
        ]
        return any(test.process.log_e > math.log(self._config.commit_max_evidence) for test in tests)

    def _describe_all(self) -> str:
        chunks = self._chunk_count()
        unseen = [] if self._acts else ["nothing counts: policy_node does not say that it acts on trial"]
        if self._first_install:
            clean = chunks - self._clean_from
            first = f"first install: {clean} of {self._config.first_install_chunks} clean chunks in a row"
            return "; ".join([first, *unseen])
        config = self._config
        parts = [
            f"{self._episodes}/{config.min_trial_episodes} episodes or {chunks}/{config.min_trial_chunks} chunks",
            f"{self._time_s:.0f}/{config.min_trial_time_s:g} s in motion",
            *unseen,
        ]
        if not self._episodes and not chunks:
            parts.append("no exposure yet: the trial stays open")
        elif self._leaning():
            parts.append("evidence leans against it: not committed yet")
        parts += [self._describe(source, test) for source, test in self._scores.items()]
        if self._success is not None:
            parts.append(self._success.describe(self._alpha))
        if self._not_judged:
            parts.append("not judged: " + ", ".join(self._not_judged))
        if self._dropped:
            parts.append(f"{self._dropped} scores or outcomes of before, of others or unusable dropped")
        return "; ".join(parts)

    def _describe(self, source: str, test: ExceedanceTest) -> str:
        what = "episodes" if self._config.block_chunks == 0 else f"blocks of {self._config.block_chunks}"
        return test.describe(source, what, self._alpha)

    # -- over restarts of the manager ---------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return what was counted, for :meth:`restore`."""
        return {
            "episodes": self._episodes,
            "successes": self._successes,
            "chunks": dict(self._chunks),
            "clean_from": self._clean_from,
            "time_s": self._time_s,
            "scores": {source: test.to_json() for source, test in self._scores.items()},
            "success": None if self._success is None else self._success.to_json(),
        }

    def restore(self, document: dict[str, Any]) -> None:
        """Go on where another judge of the same trial was. What does not fit this one's tests is left out."""
        try:
            self._episodes, self._successes = int(document["episodes"]), int(document["successes"])
            self._chunks = {str(source): int(count) for source, count in document["chunks"].items()}
            self._clean_from, self._time_s = int(document["clean_from"]), float(document["time_s"])
            for source, state in document["scores"].items():
                if source in self._scores:
                    self._scores[source].restore(state)
            if self._success is not None and document["success"] is not None:
                self._success.restore(document["success"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return
