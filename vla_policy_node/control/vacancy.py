# SPDX-License-Identifier: Apache-2.0
"""The acting generation is to leave so that another can be loaded in its place: when that may be."""

from __future__ import annotations

from dataclasses import dataclass

from vla_policy_node.control.swap import UPDATE, WAYS_BACK


@dataclass(frozen=True)
class Vacancy:
    """``at``: EPISODE = next start of an episode; REST = command at rest, or nothing is commanded; NOW = at once."""

    swap_id: str
    at: str
    deadline_ns: int
    episode: int  # when it was asked for
    cause: str = UPDATE

    @property
    def is_way_back(self) -> bool:
        """Whether it may happen while motion is disabled or the node is not active."""
        return self.cause in WAYS_BACK

    def is_due(self, episode: int, *, at_rest: bool) -> bool:
        """Whether the acting generation leaves on this tick."""
        if self.at == "EPISODE":
            return episode != self.episode
        return at_rest if self.at == "REST" else True
