# SPDX-License-Identifier: Apache-2.0
"""What the doctor saw of the ROS graph, as plain values for the checks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vla_policy_node.contract.model import Align, Contract, Source

LIFECYCLE_STATES = ("unknown", "unconfigured", "inactive", "active", "finalized")


@dataclass(frozen=True)
class Endpoint:
    """A publisher or subscription of somebody else."""

    node: str  # full name
    type: str  # "package/msg/Name"
    reliability: str  # "reliable", "best_effort" or "unknown"
    durability: str  # "volatile", "transient_local" or "unknown"


@dataclass
class Samples:
    """What was received of a topic, in order of arrival."""

    arrivals_s: list[float] = field(default_factory=list)  # monotonic [s]
    ages_s: list[float] = field(
        default_factory=list
    )  # ROS time minus stamp, of those messages that were looked into [s]
    since_s: float = math.inf  # from when on silence is the publisher's, monotonic [s]
    unstamped: int = 0  # looked into, stamp zero
    largest_bytes: int = 0  # serialised
    complaint: tuple[str, str] = ("", "")  # first message that cannot become its feature: code, reason
    last: Any = None  # newest message that was looked into
    looked_into_s: float = -math.inf  # when that was, monotonic [s]

    @property
    def rate_hz(self) -> float:
        """Mean rate [Hz]; 0 for fewer than two messages."""
        if len(self.arrivals_s) < 2 or self.arrivals_s[-1] <= self.arrivals_s[0]:
            return 0.0
        return (len(self.arrivals_s) - 1) / (self.arrivals_s[-1] - self.arrivals_s[0])

    def longest_gap_s(self, until_s: float) -> float:
        """Return the longest silence until ``until_s``, the end of listening [s].

        It begins with the first message, or with ``since_s`` if that is earlier: by then every connection should stand.
        """
        late = [self.since_s] if self.arrivals_s and self.since_s < self.arrivals_s[0] else []
        times = [*late, *self.arrivals_s, until_s]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)


@dataclass(frozen=True)
class TopicSeen:
    """A topic."""

    name: str  # full name
    publishers: tuple[Endpoint, ...] = ()
    subscriptions: tuple[Endpoint, ...] = ()  # without the doctor's
    samples: Samples = field(default_factory=Samples)


@dataclass(frozen=True)
class Need:
    """A topic that the policy node listens to, and how."""

    what: str  # the feature
    topic: str  # as the contract has it
    type: str
    reliability: str
    durability: str
    max_gap_s: float  # a longer silence makes the policy hold
    timeline: str  # "header" or "receive"


@dataclass(frozen=True)
class NodeSeen:
    """One of our nodes."""

    name: str  # full name
    count: int = 0  # of nodes with this name
    parameters: Mapping[str, Any] | None = None  # None = did not answer
    lifecycle: str = ""  # one of LIFECYCLE_STATES; empty = no answer, or none is expected
    status: TopicSeen | None = None  # its ~/status; samples.last is the message
    subscribed: frozenset[str] = frozenset()  # full names of topics


def needs(contract: Contract) -> list[tuple[Need, Source | None]]:
    """Return the topics that the contract makes the policy node listen to, each with its source (motion_enabled has none)."""
    found: list[tuple[Need, Source | None]] = []
    for observation in contract.observations:
        for source in observation.sources:
            need = Need(
                observation.key, source.topic, source.type, source.qos.reliability, source.qos.durability,
                allowed_gap_s(source.align, contract), source.align.timeline,
            )  # fmt: skip
            found.append((need, source))
    if contract.motion.required:
        motion = contract.motion
        need = Need(
            "motion_enabled", motion.topic, "std_msgs/msg/Bool", "best_effort", "volatile", motion.timeout_s, "receive"
        )
        found.append((need, None))
    return found


def allowed_gap_s(align: Align, contract: Contract) -> float:
    """Return how old an observation may become [s]."""
    if align.strategy == "drop":
        return min(contract.period_s, contract.observation_max_age_s)
    if align.tolerance_ms is not None:
        return min(align.tolerance_ms / 1e3, contract.observation_max_age_s)
    return contract.observation_max_age_s


def with_defaults(settings: type[Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return every field of a settings class with the node's value, or its default where the node did not say."""
    values = {f.name: f.default for f in dataclasses.fields(settings)}
    return values | {k: v for k, v in (given or {}).items() if k in values and v is not None}
