# SPDX-License-Identifier: Apache-2.0
"""Passes: URLs with which one robot can fetch for a while."""

from __future__ import annotations

import hashlib
import hmac

from vla_fleet import protocol
from vla_fleet.clock import Clock
from vla_fleet.errors import RoleError

VALID_S = 7 * 24 * 3600.0
"""A download may be interrupted for days."""


class Passes:
    """Makes and checks passes ``<robot>~<end [s since 1970]>~<HMAC-SHA-256>``.

    Args:
        key: secret; with another one, passes given before end.
        files_url: below which the passes lead, without a slash at its end.
        clock: ends them.
    """

    def __init__(self, key: bytes, files_url: str, clock: Clock) -> None:
        self.key, self._files_url, self._clock = key, files_url, clock

    def through(self, order: protocol.Order, robot: str) -> protocol.Order:
        """Return an order whose URL carries a pass for ``robot``; an order without a URL of this server stays as it is."""
        if not isinstance(order, protocol.ModelUpdate) or not order.manifest_url.startswith(f"{self._files_url}/"):
            return order
        path = order.manifest_url.removeprefix(f"{self._files_url}/")
        return order.model_copy(update={"manifest_url": f"{self._files_url}/{self._make(robot)}/{path}"})

    def holder(self, ticket: str) -> str:
        """Return the robot that a pass was made for.

        Raises:
            RoleError: PASS_INVALID: it was not made here, or is too old.
        """
        robot, _, rest = ticket.partition("~")
        end, _, mac = rest.partition("~")
        if not hmac.compare_digest(mac.encode(), self._mac(robot, end).encode()):
            raise RoleError("PASS_INVALID", "this server did not give the pass in the URL; order the version again")
        if int(end) < self._clock.now():
            raise RoleError("PASS_INVALID", "the pass in the URL is too old; order the version again")
        return robot

    def _make(self, robot: str) -> str:
        end = str(int(self._clock.now() + VALID_S))
        return f"{robot}~{end}~{self._mac(robot, end)}"

    def _mac(self, robot: str, end: str) -> str:
        return hmac.new(self.key, f"{robot}~{end}".encode(), hashlib.sha256).hexdigest()
