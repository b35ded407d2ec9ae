# SPDX-License-Identifier: Apache-2.0
"""Settings that only the ROS node has, beside those of the engine in ``config.py``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from vla_ota_manager.errors import ConfigError
from vla_ota_manager.trial.inbox import POLICY_SOURCES
from vla_ros.settings import setting

_TOKEN = "[A-Za-z_{][A-Za-z0-9_{}]*"
_NAME = re.compile(f"(~?/)?{_TOKEN}(/{_TOKEN})*")
_SOURCE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class ScoreTopic:
    """A topic of scores besides ``anomaly_score``. With a ``source`` it carries std_msgs/Float64, without AnomalyScore."""

    topic: str
    source: str = ""

    @staticmethod
    def parse(text: str) -> ScoreTopic:
        """Read ``topic`` or ``topic:source`` (a topic's name has no colon).

        Raises:
            ConfigError: the name of the topic or of the source is malformed, or the source is one of the policy node's.
        """
        topic, colon, source = text.partition(":")
        if not _NAME.fullmatch(topic):
            raise ConfigError("PARAMETER_INVALID", f"{topic!r} is not a topic's name", "score_topics")
        if colon and not _SOURCE.fullmatch(source):
            raise ConfigError(
                "PARAMETER_INVALID", f"{source!r} is not a source: 1 to 64 of [A-Za-z0-9_.-]", "score_topics"
            )
        if source in POLICY_SOURCES:
            raise ConfigError("PARAMETER_INVALID", f"the source {source!r} is the policy node's own", "score_topics")
        return ScoreTopic(topic, source)


@dataclass(frozen=True)
class NodeConfig:
    """Settings of the ROS side. ``fields(NodeConfig)`` carry ``metadata`` ``doc``, ``low`` and ``high``.

    Raises:
        ConfigError: a value is malformed or outside its range.
    """

    policy_node: str = setting("policy_node", "Name of the policy node, relative to this namespace, or absolute")
    score_topics: tuple[str, ...] = setting(
        (),
        "Further topics of scores, larger is worse: 'topic' (vla_ota/AnomalyScore) or 'topic:source' (std_msgs/Float64, "
        "counted as that source and stamped on arrival)",
    )
    update_permitted: bool = setting(
        True,
        "Whether swaps to other versions may happen at all, beside what the topic of this name says; never gates a rollback",
        live=True,
    )
    permission_timeout_s: float = setting(
        3.0, "With require_permission: an update_permitted older than this counts as false [s]", 0.1, 3600.0
    )

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.policy_node):
            raise ConfigError("PARAMETER_INVALID", f"{self.policy_node!r} is not a node's name", "policy_node")
        if not (math.isfinite(self.permission_timeout_s) and 0.1 <= self.permission_timeout_s <= 3600.0):
            raise ConfigError(
                "PARAMETER_INVALID", f"is {self.permission_timeout_s}, allowed 0.1 to 3600", "permission_timeout_s"
            )
        topics = [entry.topic for entry in self.scores]
        if len(set(topics)) < len(topics):
            raise ConfigError("PARAMETER_INVALID", "names a topic twice", "score_topics")

    @property
    def scores(self) -> tuple[ScoreTopic, ...]:
        """``score_topics``, parsed."""
        return tuple(ScoreTopic.parse(text) for text in self.score_topics)
