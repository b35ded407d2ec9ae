# SPDX-License-Identifier: Apache-2.0
"""Carries orders out, each once, over restarts of bridge and manager, and answers with what really happened."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from vla_fleet import protocol
from vla_fleet.protocol import AckState
from vla_fleet_bridge.outbox import OpenOrder, Outbox
from vla_fleet_bridge.port import Answer, RobotPort

log = logging.getLogger("vla_fleet_bridge")

_ENDS = {
    "COMMITTED": AckState.DONE,
    "REJECTED": AckState.REFUSED,
    "CANCELLED": AckState.FAILED,
    "ROLLED_BACK": AckState.FAILED,
    "FAILED": AckState.FAILED,
}
_AT_REST = {"IDLE", "INSTALLED", *_ENDS}
_BEGUN = "begun"
_OFFER_AGAIN_S = 5.0
_MOST_OFFERS = 12
"""To a manager that is there and at rest; one that takes none of them up knows the order from before."""
_RETRY_S = 2.0
_NOT_YET = ("TRIAL_RUNNING", "COMMAND_TIMEOUT")
"""Codes of an assignment that will be carried out when something else is over."""


@dataclass
class _Offers:
    """When an update was offered [monotonic s], and how often while the manager was there and at rest."""

    first_s: float
    last_s: float = -math.inf
    in_vain: int = 0


class Orders:
    """Works on the outbox's open orders, in their sequence. Everything here runs in the bridge's event loop."""

    def __init__(
        self, outbox: Outbox, port: RobotPort, changed: Callable[[], None], now: Callable[[], float] = time.time
    ) -> None:
        self._outbox, self._port, self._changed, self._now = outbox, port, changed, now
        self._status: protocol.Status | None = None
        self._stale = True  # something has happened since the manager's last status
        self._heard = False  # since the last offer
        self._taken_up: set[str] = set()
        self._offers: dict[str, _Offers] = {}
        self._wake = asyncio.Event()
        self.last_id = ""
        """The command that came last."""
        self.way_back: tuple[str, str] = ("", "")
        """The last order to go back, while nothing came after it: command and version."""

    def add(self, command: protocol.Command) -> None:
        """Take in a command; one that came before is answered already, or will be."""
        if self._outbox.add_order(command):
            self.last_id = command.id
            self._answer(command.id, AckState.ACCEPTED)
        self._wake.set()

    def offered(self, command_id: str) -> bool:
        """Whether an update was offered since the bridge began."""
        return command_id in self._offers

    def refuse(self, command_id: str) -> None:
        """Answer an order that this software cannot read, for example one of a newer server."""
        text = "this robot's software does not know such an order; update it"
        self._answer(command_id, AckState.REFUSED, code="MESSAGE_INVALID", message=text)

    def on_status(self, status: protocol.Status) -> None:
        """Take in the manager's status; it tells how an update ended whose events were missed."""
        self._status, self._stale, self._heard = status, False, True
        self._wake.set()

    def on_event(self, event: protocol.Event) -> None:
        """Take in a transition, and answer the order that it belongs to."""
        self._stale = True
        for order in self._outbox.open_orders():
            if order.command.id == event.update_id and isinstance(order.command.order, protocol.ModelUpdate):
                self._taken_up.add(event.update_id)
                self._follow(order, event.to_state, event.version, event.error_code, event.message)

    async def run(self) -> None:
        """Carry orders out until cancelled."""
        while True:
            try:
                await self._pass()
            except sqlite3.Error as e:
                log.error("STATE_DIR: %s; orders wait until the outbox can be read and written", e)
                await asyncio.sleep(_RETRY_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _pass(self) -> None:
        """Take every order further that can be. An order waits for those before it; a rollback not for an update."""
        waits: OpenOrder | None = None
        orders = self._outbox.open_orders()
        for place, order in enumerate(orders):
            if waits is not None:
                if not self._overtakes(order, waits):
                    continue
                self._give_up(orders[:place])
            if not await self._try(order):
                waits = order

    async def _try(self, order: OpenOrder) -> bool:
        try:
            return await self._work(order)
        except Exception as e:  # an order that cannot be carried out must not keep a rollback from it
            log.error("order %s is tried again: %s", order.command.id, e, exc_info=not isinstance(e, sqlite3.Error))
            return False

    def _overtakes(self, order: OpenOrder, waits: OpenOrder) -> bool:
        """Whether an order need not wait: it goes back, and the manager is busy or has not answered to an offer for long."""
        if not isinstance(order.command.order, protocol.Rollback) or isinstance(waits.command.order, protocol.Rollback):
            return False
        offers = self._offers.get(waits.command.id)
        return self._busy or (offers is not None and time.monotonic() - offers.first_s > _OFFER_AGAIN_S)

    @property
    def _busy(self) -> bool:
        return self._status is not None and self._status.state not in ("", *_AT_REST)

    def _give_up(self, orders: list[OpenOrder]) -> None:
        """Close updates that were ordered before a rollback and have not begun: they must not come after it."""
        for order in orders:
            if isinstance(order.command.order, protocol.ModelUpdate) and not order.begun:
                text = "a rollback was ordered before it began"
                self._answer(order.command.id, AckState.FAILED, code="SUPERSEDED", message=text)

    async def _work(self, open_order: OpenOrder) -> bool:
        """Take an order further; false if the orders after it have to wait."""
        command, order = open_order.command, open_order.command.order
        if not open_order.begun and command.expires_s and self._now() > command.expires_s:
            self._answer(command.id, AckState.REFUSED, code="COMMAND_EXPIRED", message="came too late to begin")
        elif isinstance(order, protocol.ModelUpdate):
            return self._update(open_order, order)
        elif isinstance(order, protocol.Rollback):
            return await self._roll_back(open_order, order)
        elif isinstance(order, protocol.Pin):
            return self._finish(command.id, await asyncio.to_thread(self._port.pin, order.version, unpin=order.unpin))
        elif isinstance(order, protocol.Assign):
            return await self._assign(command.id, order)
        else:
            self._answer(command.id, AckState.DONE, message="the status is sent")
        return True

    # -- MODEL_UPDATE -------------------------------------------------------------------------------------------------------

    def _update(self, open_order: OpenOrder, order: protocol.ModelUpdate) -> bool:
        """Offer it until the manager has taken it up; from then on its events and its status say how it goes."""
        status, command_id = self._status, open_order.command.id
        if status is None or not status.state:
            return False  # no manager yet
        if status.update_id == command_id:
            self._taken_up.add(command_id)
            if status.state in _ENDS or status.state == "INSTALLED":
                self._follow(open_order, status.state, "", status.error_code, status.message)
        elif open_order.begun and status.committed_digest == order.manifest_sha256:
            self._follow(open_order, "COMMITTED", order.version, "", "committed, as the status says")
            return True
        elif command_id not in self._taken_up and (open_order.begun or order.urgent or not self._busy):
            return self._offer(open_order, order)
        return command_id in self._taken_up

    def _offer(self, open_order: OpenOrder, order: protocol.ModelUpdate) -> bool:
        """Offer an update if it is time to; true if that is over because the manager takes no notice of it."""
        command_id = open_order.command.id
        now = time.monotonic()
        offers = self._offers.setdefault(command_id, _Offers(now))
        if now - offers.last_s < _OFFER_AGAIN_S:
            return False
        if offers.in_vain >= _MOST_OFFERS:
            text = "the manager does not say what became of it; see `vla-fleet robots ROBOT`"
            self._answer(command_id, AckState.FAILED, code="OUTCOME_UNKNOWN", message=text)
            return True
        if not open_order.begun:
            self._outbox.begin_order(command_id, _BEGUN)
        offers.last_s, offers.in_vain = now, offers.in_vain + (self._heard and not self._busy)
        self._heard, self.way_back = False, ("", "")
        self._port.offer(command_id, order)
        return False

    def _follow(self, open_order: OpenOrder, state: str, version: str, code: str, message: str) -> None:
        order = open_order.command.order
        installed = state == "INSTALLED" and isinstance(order, protocol.ModelUpdate) and not order.activate
        end = AckState.DONE if installed else _ENDS.get(state, AckState.RUNNING)
        self._answer(open_order.command.id, end, state, version, code, message)

    # -- ROLLBACK -----------------------------------------------------------------------------------------------------------

    async def _roll_back(self, open_order: OpenOrder, order: protocol.Rollback) -> bool:
        """Go back. The target is fixed before, so that doing it again after a crash does not go back further."""
        command, status = open_order.command, self._status
        target = open_order.begun.removeprefix(_BEGUN).strip() or order.version
        if not open_order.begun:
            if status is None or not status.state or self._stale:
                return False
            tried = status.trial_version or status.experiment
            target = target or (status.committed_version if tried else status.previous_version)
            self._outbox.begin_order(command.id, f"{_BEGUN} {target}")
            self._answer(command.id, AckState.RUNNING, "ROLLING_BACK", target)
        self.way_back = command.id, target
        answer = await asyncio.to_thread(self._port.rollback, target, order.reason)
        if not answer.success:
            self.way_back = "", ""
        return self._finish(command.id, answer)

    # -- ASSIGN -------------------------------------------------------------------------------------------------------------

    async def _assign(self, command_id: str, order: protocol.Assign) -> bool:
        """Hand it to the manager, which keeps it. It may be handed over again while both versions are not loaded yet."""
        answer = await asyncio.to_thread(self._port.assign, order, self._outbox.robot)
        return answer.error_code not in _NOT_YET and self._finish(command_id, answer)

    # -- answers ------------------------------------------------------------------------------------------------------------

    def _finish(self, command_id: str, answer: Answer) -> bool:
        if answer.error_code == "MANAGER_ABSENT":
            return False  # tried again
        state = AckState.DONE if answer.success else AckState.FAILED
        self._answer(command_id, state, "", answer.version, answer.error_code, answer.message)
        return True

    def _answer(
        self,
        command_id: str,
        state: AckState,
        robot_state: str = "",
        version: str = "",
        code: str = "",
        message: str = "",
    ) -> None:
        ack = protocol.Ack(
            time_s=self._now(), command_id=command_id, state=state, robot_state=robot_state, version=version,
            error_code=code, message=message[:4096],
        )  # fmt: skip
        self._outbox.answer(ack)
        self._changed()
