# SPDX-License-Identifier: Apache-2.0
"""Another unit than the contract's, seen in the data: a policy in degrees on a robot in radians, and the reverse.

Bundle and contract both name the unit of a channel, but a person types both. The statistics come from the data, so their range is
held against the contract's limits, by reach: the largest absolute value.

* Too far: the data of a channel reach three times as far as its limits. A joint that uses its whole range has 57 times the limits
  if it is in degrees and they are in radians (180/π), and three times if it uses a twentieth of it.
* Too near: no channel of a unit reaches further than 1/45 of its limits. Data in radians that fit a robot in degrees stay within
  1/57; the rest is slack. One joint may well move so little, all of them together do not: it takes two channels at least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vla_checkpoint.config import ACTION
from vla_checkpoint.stats import Stats
from vla_policy_node.contract.model import Channel, Contract

_TOO_FAR = 3.0
_TOO_NEAR = 1 / 45


@dataclass(frozen=True)
class _Range:
    """What the data of one channel span, in the channel's unit."""

    channel: Channel
    low: float
    high: float

    @property
    def share(self) -> float:
        """Reach of the data over reach of the limits."""
        limits = self.channel.limits
        return max(abs(self.low), abs(self.high)) / max(abs(limits.low), abs(limits.high))

    def text(self, what: str) -> str:
        channel, limits = self.channel, self.channel.limits
        data = f"{channel.name}: {what} in the data {self.low:.3g}…{self.high:.3g}"
        return f"{data}, contract limits {limits.low:.3g}…{limits.high:.3g} [{channel.unit}]"


def doubtful_units(stats: Stats, contract: Contract) -> list[str]:
    """Return a text with channel and figures for all that the statistics do not fit.

    Args:
        stats: of the bundle, feature → statistic → ``[n]``; features without statistics are not judged.
        contract: says each channel's limits, and which feature measures it.
    """
    actions = [(c, ACTION, i) for i, c in enumerate(contract.channels) if c.mode == "absolute"]
    states = [(c, *c.measured) for c in contract.channels if c.measured is not None]
    found = []
    for what, places in (("actions", actions), ("state", states)):
        ranges = [_Range(c, *span) for c, key, i in places if (span := _span(stats.get(key, {}), i)) is not None]
        found += [r.text(what) for r in ranges if r.share > _TOO_FAR]
        for unit in dict.fromkeys(r.channel.unit for r in ranges):
            group = [r for r in ranges if r.channel.unit == unit]
            if len(group) > 1 and all(r.share < _TOO_NEAR for r in group):
                widest = max(group, key=lambda r: r.share)
                found.append(f"{widest.text(what)}, and no channel in that unit uses more of its limits")
    return found


def _span(entry: Mapping[str, npt.NDArray[np.float64]], i: int) -> tuple[float, float] | None:
    """Return the range of one number: its extremes, else its quantiles, else two standard deviations about its mean."""
    for low, high in (("min", "max"), ("q01", "q99")):
        if low in entry and high in entry and i < entry[low].size:
            return float(entry[low][i]), float(entry[high][i])
    if "mean" in entry and "std" in entry and i < entry["mean"].size:
        mean, width = float(entry["mean"][i]), 2 * float(entry["std"][i])
        return mean - width, mean + width
    return None
