# SPDX-License-Identifier: Apache-2.0
"""Carries orders out, each once, over restarts of bridge and manager, and answers with what really happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from vla_fleet import protocol
from vla_fleet.protocol import AckState
from vla_fleet_bridge.outbox import OpenOrder, Outbox
from vla_fleet_bridge.port import Answer, RobotPort

_ENDS = {
    "COMMITTED": AckState.DONE,
    "REJECTED": AckState.REFUSED,
    "CANCELLED": AckState.FAILED,
    "ROLLED_BACK": AckState.FAILED,
    "FAILED": AckState.FAILED,
}
_BEGUN = "begun"
_OFFER_AGAIN_S = 5.0
_RETRY_S = 2.0


class Orders:
    """Works on the outbox's open orders, in their sequence. Everything here runs in the bridge's event loop."""

    def __init__(
        self, outbox: Outbox, port: RobotPort, changed: Callable[[], None], now: Callable[[], float] = time.time
    ) -> None:
        self._outbox, self._port, self._changed, self._now = outbox, port, changed, now
        self._status: protocol.Status | None = None
        self._stale = True  # something has happened since the manager's last status
        self._taken_up: set[str] = set()
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

    def on_status(self, status: protocol.Status) -> None:
        """Take in the manager's status; it tells how an update ended whose events were missed."""
        self._status, self._stale = status, False
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
            for order in self._outbox.open_orders():
                if not await self._work(order):
                    break  # what comes after it would not know what it finds
            try:
                async with asyncio.timeout(_RETRY_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

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
        elif command_id not in self._taken_up and self._due(open_order):
            self._outbox.begin_order(command_id, repr(time.time()))
            self.way_back = "", ""
            self._port.offer(command_id, order)
        return command_id in self._taken_up

    @staticmethod
    def _due(open_order: OpenOrder) -> bool:
        return not open_order.begun or time.time() - float(open_order.begun) > _OFFER_AGAIN_S

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
            target = target or (status.committed_version if status.trial_version else status.previous_version)
            self._outbox.begin_order(command.id, f"{_BEGUN} {target}")
            self._answer(command.id, AckState.RUNNING, "ROLLING_BACK", target)
        self.way_back = command.id, target
        answer = await asyncio.to_thread(self._port.rollback, target, order.reason)
        if not answer.success:
            self.way_back = "", ""
        return self._finish(command.id, answer)

    # -- ASSIGN -------------------------------------------------------------------------------------------------------------

    async def _assign(self, command_id: str, order: protocol.Assign) -> bool:
        kept = self._outbox.assignment
        if not order.versions and kept is not None and kept.experiment != order.experiment:
            return self._finish(command_id, Answer(True, "", f"takes part in {kept.experiment} by now"))
        answer = await asyncio.to_thread(self._port.assign, order)
        if answer.success:
            self._outbox.keep_assignment(order if order.versions else None)
        return self._finish(command_id, answer)

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
