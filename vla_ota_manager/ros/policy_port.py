# SPDX-License-Identifier: Apache-2.0
"""``PolicyPort`` over ROS: the action ``prepare_model``, the service ``swap_model``, the topics ``status`` and ``swap_report``.

``prepare`` and ``swap`` block the engine's thread, never one of the executor's. They watch the policy node's heartbeat while they
wait: a node that was killed stays in the graph for many seconds, and a restarted one knows nothing of the goal.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from vla_ota.action import PrepareModel
from vla_ota.msg import PolicyStatus, SwapReport
from vla_ota.srv import SwapModel

from vla_ota_manager.port import Cancelled, OnProgress, PolicySnapshot, PrepareResult, SwapRequest, SwapResult, absence
from vla_ros import qos
from vla_ros.calls import GivenUpError, GroupThread, wait, wait_until
from vla_ros.diagnostics import Diagnostics
from vla_ros.executor import QuickCallbackGroup
from vla_ros.fault import Fault
from vla_ros.plain import plain
from vla_ros.stamps import to_seconds

DISCOVERY_S = 2.0
"""How long a server may take to be discovered before it counts as absent [s]."""
REPLY_S = 5.0
"""What a policy node may need beyond the timeout that it was given, before its reply counts as lost [s]."""
STATUS_S = 2.0
"""How long the status may come after the reply to a swap that it must tell of [s]."""
CANCEL_S = 2.0
"""How long to wait for a cancelled preparation to end [s]; it ends by itself if that is not enough."""

_CANCELLED, _TIMEOUT, _ABSENT = "CANCELLED", "TIMEOUT", "POLICY_ABSENT"
_RUNNING = (PolicyStatus.STATE_RUNNING, PolicyStatus.STATE_HOLDING, PolicyStatus.STATE_OPERATOR)


class RosPolicyPort:
    """Implements ``vla_ota_manager.port.PolicyPort``.

    Args:
        node: whose executor delivers what is received; it must be spinning.
        prefix: the policy node's name, relative to this node's namespace, or absolute.
        silent_s: a policy node that was silent this long counts as absent [s].
        on_status: called with the snapshot whenever a status or a swap report has arrived.
        diagnostics: gets incompatible-QoS events.
    """

    def __init__(
        self, node: Node, prefix: str, silent_s: float, on_status: Callable[[], None], diagnostics: Diagnostics
    ) -> None:
        self._silent_s, self._on_status = silent_s, on_status
        self._mutex = threading.Lock()
        self._status: PolicyStatus | None = None
        self._heard_s = -math.inf
        self._error: tuple[str, str, float] = "", "", -math.inf
        self._unconfigured: tuple[float, str] = (-math.inf, "")  # when it last said that it is, and in what words
        self._report: SwapReport | None = None
        self._closed = False

        self._among_callbacks = GroupThread(node)
        self._prepare = ActionClient(
            node, PrepareModel, f"{prefix}/prepare_model", callback_group=self._among_callbacks.group
        )
        self._swap = node.create_client(SwapModel, f"{prefix}/swap_model", callback_group=ReentrantCallbackGroup())
        in_order = QuickCallbackGroup()
        for message_type, name, callback, profile in (
            (PolicyStatus, "status", self._take_status, qos.LATCHED_EACH),
            (SwapReport, "swap_report", self._take_report, qos.LATCHED),
        ):
            topic = f"{prefix}/{name}"
            node.create_subscription(
                message_type, topic, callback, profile,
                callback_group=in_order, event_callbacks=diagnostics.subscription_events(topic),
            )  # fmt: skip

    def close(self) -> None:
        """Let every call that still waits return."""
        self._closed = True

    # -- what the policy node says ------------------------------------------------------------------------------------------

    def _take_status(self, message: PolicyStatus) -> None:
        with self._mutex:
            if message.state == PolicyStatus.STATE_UNCONFIGURED:  # it has no services and no boot_id yet
                self._unconfigured = time.monotonic(), _refusal(message)
            else:
                self._note_error(message)
                self._status, self._heard_s = message, time.monotonic()
                self._unconfigured = -math.inf, ""
        self._on_status()

    def _note_error(self, message: PolicyStatus) -> None:
        """Keep the error of a status that is new in it: a later one may say no more of it."""
        before = self._status or PolicyStatus()
        new = (message.boot_id, message.error_code, message.message) != (
            before.boot_id,
            before.error_code,
            before.message,
        )
        if message.error_code and new:
            lines = message.message.strip().splitlines()  # of a traceback the last line says what it was
            text = lines[-1] if lines and lines[0].startswith("Traceback") else message.message
            self._error = message.error_code, plain(text), time.monotonic()

    def _take_report(self, message: SwapReport) -> None:
        with self._mutex:
            self._report = message
        self._on_status()

    def status(self) -> PolicySnapshot | None:
        """Return the last status, or None if none ever came. Its cause is empty until the report of that swap is there."""
        now_s = time.monotonic()
        with self._mutex:
            status, report, age_s = self._status, self._report, now_s - self._heard_s
            told_s, unconfigured = self._unconfigured
            error_code, error_text, error_heard_s = self._error
        if now_s - told_s > self._silent_s:
            unconfigured = ""
        if status is None and not unconfigured:
            return None
        status = status or PolicyStatus()
        explained = report is not None and (report.generation, report.to_digest) == _acting(status)
        return replace(
            _snapshot(status, age_s, report if explained else None),
            error_code=error_code,
            error_text=error_text,
            error_heard_s=error_heard_s,
            unconfigured=unconfigured,
        )

    # -- what it is asked ---------------------------------------------------------------------------------------------------

    def prepare(
        self,
        bundle_path: Path,
        digest: str,
        on_progress: OnProgress,
        cancelled: Cancelled,
        timeout_s: float,
        *,
        skip_shadow: bool,
    ) -> PrepareResult:
        """Load a bundle beside the running one, check it, warm it up and let it go through its shadow."""
        over = threading.Event()
        goal = PrepareModel.Goal(bundle_path=str(bundle_path), digest=digest, skip_shadow=skip_shadow)
        try:
            result = self._run_prepare(goal, on_progress, over, self._give_up(cancelled, timeout_s), cancelled)
        except GivenUpError as e:
            late = "PREPARE_TIMEOUT", f"not prepared within {timeout_s:g} s", Fault.ROBOT
            return PrepareResult(False, *self._given_up(e.reason, late))
        finally:
            over.set()
        if result.success:
            return PrepareResult(True, message=plain(result.message))
        message = plain(result.message) or "no reason given"
        return PrepareResult(False, result.error_code or "PREPARE_FAILED", message, Fault(result.fault) or Fault.BUNDLE)

    def _run_prepare(
        self,
        goal: PrepareModel.Goal,
        on_progress: OnProgress,
        over: threading.Event,
        give_up: Callable[[], str],
        cancelled: Cancelled,
    ) -> PrepareModel.Result:
        def on_feedback(message: Any) -> None:
            if not over.is_set():
                on_progress(message.feedback.state, float(message.feedback.progress))

        asked: list[Any] = []

        def send() -> Any:
            sent = self._prepare.send_goal_async(goal, feedback_callback=on_feedback)
            sent.add_done_callback(lambda future: self._cancel_late(future, over))
            asked.append(sent)
            return sent

        self._await_server(self._prepare.server_is_ready, cancelled)
        try:
            handle = self._accepted(send, give_up, self._give_up(cancelled, REPLY_S))
        except GivenUpError:
            over.set()  # before the look: what is accepted from now on is cancelled by its callback
            for sent in asked:
                if sent.done():
                    self._cancel_late(sent, over)
            raise
        if not handle.accepted:
            return PrepareModel.Result(message="the policy node refused the goal")
        try:
            return wait(self._among_callbacks.run(handle.get_result_async, give_up), give_up).result
        except GivenUpError:
            self._cancel(handle)
            raise

    def _accepted(self, send: Callable[[], Any], give_up: Callable[[], str], too_late: Callable[[], str]) -> Any:
        """Wait for the goal's acceptance. A request to a node that has just come, or is just going, may be lost."""
        try:
            return wait(self._among_callbacks.run(send, give_up), lambda: give_up() or too_late())
        except GivenUpError as e:
            raise GivenUpError(_ABSENT if e.reason == _TIMEOUT and not give_up() else e.reason) from e

    def swap(self, request: SwapRequest, cancelled: Cancelled) -> SwapResult:
        """Activate a resident generation at a boundary."""
        message = SwapModel.Request(
            digest=request.digest,
            expected_active_digest=request.expected_active_digest,
            at=request.at,
            timeout_s=request.timeout_s,
            trial=request.trial,
            trial_lease_s=request.lease_s,
            cause=request.cause,
        )
        future, longest_s = None, request.timeout_s + request.load_s + REPLY_S
        try:
            self._await_server(self._swap.service_is_ready, cancelled)
            future = self._swap.call_async(message)
            reply = wait(future, self._give_up(cancelled, longest_s))
        except GivenUpError as e:
            if future is not None:
                self._swap.remove_pending_request(future)
            late = "SWAP_TIMEOUT", f"no reply within {longest_s:g} s", Fault.BUSY
            code, text, fault = self._given_up(e.reason, late)
            return SwapResult(False, code, text, fault=fault)
        if reply.success:
            self._await_status(reply.generation, request.digest, cancelled)
        swapped = reply.report.to_digest == request.digest
        return SwapResult(
            success=reply.success,
            error_code="" if reply.success else reply.error_code or "SWAP_FAILED",
            message=plain(reply.message),
            active_version=reply.active_version,
            active_digest=request.digest if reply.success else "",
            generation=reply.generation,
            swap_latency_s=reply.report.swap_latency_s if swapped else 0.0,
            warm=reply.report.warm if swapped else reply.success,
            stamp_s=to_seconds(reply.report.header.stamp) if swapped else 0.0,
            fault=Fault(reply.fault),
        )

    def _await_status(self, generation: int, digest: str, cancelled: Cancelled) -> None:
        """Let the status catch up with a reply, so that no decision is made on what acted before the swap."""

        def told() -> bool:
            with self._mutex:
                return self._status is not None and _acting(self._status) == (generation, digest)

        with contextlib.suppress(GivenUpError):  # it swapped again, or is gone: the next status says so
            wait_until(told, self._give_up(cancelled, STATUS_S))

    def _await_server(self, is_ready: Callable[[], bool], cancelled: Cancelled) -> None:
        give_up = self._give_up(cancelled, DISCOVERY_S)
        try:
            wait_until(lambda: bool(is_ready()), give_up)
        except GivenUpError as e:
            raise GivenUpError(_ABSENT if e.reason == _TIMEOUT else e.reason) from e
        if (reason := give_up()) and reason != _TIMEOUT:  # it was found, be it at the last moment
            raise GivenUpError(reason)

    def _give_up(self, cancelled: Cancelled, timeout_s: float) -> Callable[[], str]:
        """Return a function that says why a call that begins now should stop waiting, "" while it should not."""
        begun_s = time.monotonic()
        with self._mutex:
            boot_id = self._status.boot_id if self._status is not None else ""

        def reason() -> str:
            now_s = time.monotonic()
            with self._mutex:
                status, heard_s, unconfigured = self._status, self._heard_s, self._unconfigured[1]
            if self._closed or cancelled():
                return _CANCELLED
            restarted = bool(boot_id) and status is not None and status.boot_id != boot_id
            silent = now_s - max(heard_s, begun_s) > self._silent_s
            if restarted or silent or unconfigured:
                return _ABSENT
            return _TIMEOUT if now_s - begun_s > timeout_s else ""

        return reason

    def _given_up(self, reason: str, late: tuple[str, str, Fault]) -> tuple[str, str, Fault]:
        """Return code, text and fault of a call that was given up; ``late``: those of one that took too long."""
        if reason == _CANCELLED:
            return "CANCELLED", "cancelled", Fault.PERSON
        if reason != _ABSENT:
            return late
        snapshot = self.status()
        unconfigured = snapshot is not None and snapshot.unconfigured
        return "POLICY_ABSENT", f"policy_node {absence(snapshot) if unconfigured else 'does not answer'}", Fault.BUSY

    def _cancel(self, handle: ClientGoalHandle) -> None:
        """Ask for the end of a preparation and wait for it a little, so that what it held is free again."""
        give_up = self._give_up(lambda: False, CANCEL_S)
        try:
            wait(self._among_callbacks.run(handle.cancel_goal_async, give_up), give_up)
            wait(self._among_callbacks.run(handle.get_result_async, give_up), give_up)
        except GivenUpError:
            pass  # the policy node ends it, or is gone

    def _cancel_late(self, sent: Any, over: threading.Event) -> None:
        """Cancel a goal that was accepted too late."""
        handle = sent.result()
        if over.is_set() and handle is not None and handle.accepted and not self._closed:
            self._among_callbacks.submit(handle.cancel_goal_async)


def _acting(status: PolicyStatus) -> tuple[int, str]:
    return status.generation, status.active_digest


def _snapshot(status: PolicyStatus, age_s: float, report: SwapReport | None) -> PolicySnapshot:
    return PolicySnapshot(
        age_s=age_s,
        boot_id=status.boot_id,
        generation=status.generation,
        active_digest=status.active_digest,
        active_version=status.active_version,
        standby_digest=status.standby_digest,
        prepared_digest=status.prepared_digest,
        load_in_place=status.load_in_place,
        holding=status.holding,
        hold_latched=status.hold_latched,
        hold_reason=status.hold_reason,
        on_trial=status.on_trial,
        episode_id=status.episode_id,
        experiment=status.experiment,
        draw_error_code=status.draw_error_code,
        draw_message=plain(status.draw_message),
        running=status.state in _RUNNING,
        motion_enabled=status.motion_enabled,
        last_swap_cause="" if report is None else report.cause,
        last_swap_stamp_s=0.0 if report is None else to_seconds(report.header.stamp),
    )


def _refusal(status: PolicyStatus) -> str:
    """Return what a node that is not configured says of that, to be put after its name."""
    code = "" if status.message.startswith(status.error_code) else status.error_code
    return plain(": ".join(part for part in ("is not configured", code, status.message) if part))
