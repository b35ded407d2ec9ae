# SPDX-License-Identifier: Apache-2.0
"""The log that a person follows: each hold and its end, each stop of motion, once."""

from __future__ import annotations

import logging
from typing import Any

from vla_ros.repeats import Repeats

LOG = logging.getLogger("vla_policy_node")

_HOLD_AGAIN_S = 30.0  # a policy that is too slow holds several times a second


class Journal:
    """Writes the events of the control process. Called from one thread."""

    def __init__(self) -> None:
        self._holds = Repeats(LOG.warning, _HOLD_AGAIN_S)
        self._hold_told = self._operated = False

    def note(self, event: dict[str, Any], version: str) -> None:
        """Log an event of the control process if it is one for people. ``version``: the active one, empty = none."""
        kind = event.get("type")
        if kind == "HOLD":
            until = " (until resume)" if event.get("latched") else ""
            text = f"hold: {event.get('reason')}{until}: {event.get('message') or 'no reason given'}"
            if until:  # each of these waits for a person
                self._holds.over()
            self._hold_told = self._holds.say(text) or self._hold_told
        elif kind == "RESUMED":
            if self._hold_told:
                held = f"the hold {event.get('reason')} is over after {float(event.get('held_s') or 0.0):.1f} s"
                LOG.info("%s acts: %s", "the operator" if self._operated else version or "the policy", held)
            self._hold_told = False
        elif kind in ("TAKEN_OVER", "GIVEN_BACK"):
            self._take_over(on=kind == "TAKEN_OVER")
        elif kind == "MOTION_DISABLED":
            LOG.warning("motion stopped: motion_enabled is false or silent; nothing is commanded")
        elif kind == "MOTION_ENABLED":
            LOG.info("motion is permitted again")

    def _take_over(self, *, on: bool) -> None:
        if on and not self._operated:
            LOG.warning("an operator has taken over: the policy commands nothing until take_over is called with false")
        elif self._operated and not on:
            LOG.info("the operator has given back")
        self._operated = on
