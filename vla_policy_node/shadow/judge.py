# SPDX-License-Identifier: Apache-2.0
"""May a candidate act, judged by its chunks on live observations alone? Pure.

On each observation the candidate must give a chunk whose executed part keeps the robot's limits and comes in time. Where there is
an incumbent to compare with, the candidate must also want about the same. How much "about" is comes from the incumbent itself:
consecutive chunks of it overlap, and what it says of the same moment in two of them differs. (They are made from two observations
and, by a stochastic policy, from two samples; so that difference holds both.) With ``‖·‖`` a mean of absolute values over the
executed part, per channel ``c``, in units of the largest step that the contract allows the channel in one tick::

    difference_c = ‖candidate - incumbent‖, on the same observation, one a chunk
    own_c        = ‖incumbent - incumbent one chunk earlier‖, for the same ticks, one a pair of chunks
    divergence_c = difference_c / (third quartile of own_c + FLOOR)

A candidate diverges if ``divergence_c`` exceeds the limit for more than ``TOLERATED_SHARE`` of the chunks, in any channel, and
for more than one: a single bad observation refuses nobody. ``FLOOR`` is what counts as no difference at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Contract
from vla_policy_node.control.limits import Limiter
from vla_policy_node.policies.base import PolicySpec
from vla_policy_node.worker.api import PrepareError

Floats = npt.NDArray[np.float64]

TOLERATED_SHARE = 0.25
"""Share of chunks that may exceed a bound; of two or three chunks one may."""
FLOOR = 0.1
"""Smallest own difference that is assumed, as a share of a channel's largest step."""


@dataclass(frozen=True)
class ShadowReport:
    """What the shadow has shown; see ``msg/SwapReport.msg``."""

    seconds: float = 0.0
    chunks: int = 0
    compared: int = 0
    divergence: float = 0.0
    channel: str = ""
    latency_ms: float = 0.0

    def __str__(self) -> str:
        if not self.compared:
            return f"{self.chunks} chunks in shadow, within limits and in time; there was nothing to compare them with"
        return f"{self.chunks} chunks in shadow, divergence {self.divergence:.2f}, most in {self.channel}"


class ShadowJudge:
    """Judges one candidate. Arrays of actions are ``[n, C]`` in physical units, relative channels made absolute."""

    def __init__(
        self, contract: Contract, limiter: Limiter, spec: PolicySpec, *, chunks: int, divergence_limit: float
    ) -> None:
        """``limiter``: the contract's limits as the candidate's bundle tightens them; ``chunks``: how many are judged."""
        self._limiter, self._spec, self._contract = limiter, spec, contract
        self._limit, self._wanted = divergence_limit, chunks
        self._tolerated = max(int(TOLERATED_SHARE * chunks), min(1, chunks - 1))
        self._scale = np.array([c.limits.rate * contract.period_s for c in contract.channels])
        self._own: list[Floats] = []
        self._differences: list[Floats] = []
        self._latencies_s: list[float] = []
        self._slow = 0

    @property
    def chunks(self) -> int:
        """How many were judged."""
        return len(self._latencies_s)

    def incumbent(self, earlier: Floats, later: Floats) -> None:
        """Take in what the incumbent wanted in two consecutive chunks for the same ticks, both ``[n, C]``, n > 0."""
        self._own.append(self._distance(earlier, later))

    def candidate(self, actions: Floats, latency_s: float, incumbent: Floats | None) -> None:
        """Judge a chunk ``[H, C]``.

        ``incumbent``: what the incumbent executes on the same observation, ``[n, C]``; ``None`` = nothing to compare with.

        Raises PrepareError SHADOW_LIMIT, SHADOW_TOO_SLOW.
        """
        self._latencies_s.append(latency_s)
        self._check_limits(actions[: self._spec.execute])
        self._check_latency(latency_s)
        if incumbent is not None:
            n = min(len(incumbent), self._spec.execute)
            self._differences.append(self._distance(actions[:n], incumbent[:n]))

    def report(self, seconds: float) -> ShadowReport:
        """Return what was seen in so many seconds. Raises PrepareError SHADOW_DIVERGED."""
        latency_ms = float(np.median(self._latencies_s)) * 1e3
        if not self._differences:
            return ShadowReport(seconds, self.chunks, latency_ms=latency_ms)
        own = np.quantile(self._own, 0.75, axis=0) if self._own else np.zeros(len(self._scale))
        divergence = np.array(self._differences) / (own + FLOOR)
        channel = int(np.argmax(np.quantile(divergence, 1.0 - TOLERATED_SHARE, axis=0)))
        median, name = float(np.median(divergence[:, channel])), self._contract.channels[channel].name
        exceeding = int((divergence[:, channel] > self._limit).sum())
        if exceeding > self._tolerated:
            raise PrepareError(
                "SHADOW_DIVERGED",
                f"in shadow {name} differs from what the active policy wants in {exceeding} of {len(divergence)} chunks by more "
                f"than {self._limit:g} times what that differs from itself (median {median:.1f} times)",
            )
        return ShadowReport(seconds, self.chunks, len(divergence), median, name, latency_ms)

    def _distance(self, a: Floats, b: Floats) -> Floats:
        distance: Floats = np.abs(a - b).mean(axis=0) / self._scale
        return distance

    def _check_limits(self, executed: Floats) -> None:
        bad = np.flatnonzero(self._limiter.judge(executed))
        if bad.size:
            at = int(bad[0])
            violation = self._limiter.explain(executed[at], executed[at - 1] if at else None)
            raise PrepareError("SHADOW_LIMIT", f"in shadow, chunk {self.chunks}, action {at}: {violation.message}")

    def _check_latency(self, latency_s: float) -> None:
        needed = self._contract.actions_needed(self._spec, latency_s)
        self._slow += needed > self._spec.horizon
        if self._slow > self._tolerated:
            raise PrepareError(
                "SHADOW_TOO_SLOW",
                f"in shadow {self._slow} of {self.chunks} chunks came too late, the last after {latency_s * 1e3:.0f} ms: "
                f"a chunk has {self._spec.horizon} actions, {needed} would be needed",
            )
