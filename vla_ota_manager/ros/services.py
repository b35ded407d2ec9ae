# SPDX-License-Identifier: Apache-2.0
"""The manager's services and its action ``install_model``, each a thin shell on one method of the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.node import Node
from vla_ota.action import InstallModel
from vla_ota.srv import AssignExperiment, CommitModel, ListModels, PinModel, Rollback, UnblockModel

from vla_ota_manager.engine import UpdateEngine
from vla_ota_manager.records import ExperimentRequest, RollbackReply, Update, UpdateOutcome
from vla_ota_manager.ros.messages import from_entry
from vla_ota_manager.states import UpdateState
from vla_ros.plain import plain

MAX_GOALS = 4
"""Goals of install_model at a time: each keeps a thread of the executor waiting."""
MAX_ROLLBACKS = 2
"""Requests of rollback at a time, likewise: they must arrive at once, for the second to be known as the same request."""
FEEDBACK_S = 0.2
_CANCEL_RACE_S = 5.0
_LAST_RESULT_S = 0.5
_SEND_S = 0.1


class Services:
    """``~/rollback``, ``~/assign_experiment``, ``~/commit_model``, ``~/pin_model``, ``~/unblock_model``, ``~/list_models``.

    They block a thread each: rollbacks up to ``MAX_ROLLBACKS``, assignments one, commits one, the others one together.
    """

    def __init__(self, node: Node, engine: UpdateEngine) -> None:
        self._node, self._engine = node, engine
        self._rollbacks = threading.Semaphore(MAX_ROLLBACKS)
        waiting, quick = MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()
        self._serve(Rollback, "rollback", self._rollback, ReentrantCallbackGroup())
        self._serve(AssignExperiment, "assign_experiment", self._assign, MutuallyExclusiveCallbackGroup())
        self._serve(CommitModel, "commit_model", self._commit, waiting)
        self._serve(PinModel, "pin_model", self._pin, quick)
        self._serve(UnblockModel, "unblock_model", self._unblock, quick)
        self._serve(ListModels, "list_models", self._list, quick)

    def _serve(self, service: Any, name: str, answer: Callable[[Any, Any], str], group: Any) -> None:
        def callback(request: Any, response: Any) -> Any:
            try:
                line = answer(request, response)
            except Exception as e:  # a request must not take the node down
                self._node.get_logger().error(f"{name} failed: {e!r}")
                response = service.Response(success=False, error_code="INTERNAL_ERROR", message=repr(e))
            else:
                if line and response.success:
                    self._node.get_logger().info(f"{name}: {line}")
                elif line:
                    self._node.get_logger().warning(f"{name}: {line}")
            return response

        self._node.create_service(service, f"~/{name}", callback, callback_group=group)

    def _rollback(self, request: Rollback.Request, response: Rollback.Response) -> str:
        if self._rollbacks.acquire(blocking=False):
            try:
                reply = self._engine.rollback(request.version, plain(request.reason), request.expected_from_version)
            finally:
                self._rollbacks.release()
        else:
            reply = RollbackReply(False, "SWAP_IN_PROGRESS", "other rollbacks are under way; see the status")
        response.from_version, response.to_version = reply.from_version, reply.to_version
        response.duration_s, response.warm = reply.duration_s, reply.warm
        return _answer(reply, response)

    def _commit(self, request: CommitModel.Request, response: CommitModel.Response) -> str:
        reply = self._engine.commit(request.expected_version, plain(request.reason))
        response.committed_version = reply.committed_version or self._engine.status().committed_version
        return _answer(reply, response)

    def _assign(self, request: AssignExperiment.Request, response: AssignExperiment.Response) -> str:
        versions = tuple(request.versions)
        asked = ExperimentRequest(request.experiment, request.robot, versions, request.probability)
        return _answer(self._engine.assign_experiment(asked), response)

    def _pin(self, request: PinModel.Request, response: PinModel.Response) -> str:
        reply = self._engine.pin(request.version, unpin=request.unpin)
        response.pinned = list(reply.versions)
        return _answer(reply, response)

    def _unblock(self, request: UnblockModel.Request, response: UnblockModel.Response) -> str:
        reply = self._engine.unblock(request.version)
        response.blocked = list(reply.versions)
        return _answer(reply, response)

    def _list(self, request: ListModels.Request, response: ListModels.Response) -> str:
        reply = self._engine.list_models(request.name)
        response.models = [from_entry(entry) for entry in reply.models]
        response.history, response.free_bytes = list(reply.history), reply.free_bytes
        _answer(reply, response)
        return "" if reply.success else reply.message


def _answer(reply: Any, response: Any) -> str:
    response.success, response.error_code, response.message = reply.success, reply.error_code, plain(reply.message)
    return plain(f"{reply.error_code} {reply.message}")


class InstallAction:
    """``~/install_model``: an offer whose way is followed. Closing it ends every goal that still waits."""

    def __init__(self, node: Node, engine: UpdateEngine) -> None:
        self._node, self._engine = node, engine
        self._closing = threading.Event()
        self._goals = threading.Semaphore(MAX_GOALS)
        self._server = ActionServer(
            node,
            InstallModel,
            "~/install_model",
            self._execute,
            cancel_callback=self._on_cancel,
            callback_group=ReentrantCallbackGroup(),
        )

    def close(self) -> None:
        """End the goals that still wait, as aborted, and let their results leave; the updates go on at the next start."""
        self._closing.set()
        if all(self._goals.acquire(timeout=_LAST_RESULT_S) for _ in range(MAX_GOALS)):
            time.sleep(_SEND_S)

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        reply = self._engine.cancel(_update_id(goal))
        if not reply.success:
            self._node.get_logger().warning(f"install_model: not cancelled: {reply.error_code} {reply.message}")
        return CancelResponse.ACCEPT if reply.success else CancelResponse.REJECT

    def _execute(self, goal: ServerGoalHandle) -> InstallModel.Result:
        begun = time.monotonic()
        try:
            result = self._install(goal)
        except Exception as e:  # a goal must not take the node down
            self._node.get_logger().error(f"install_model failed: {e!r}")
            result = InstallModel.Result(error_code="INTERNAL_ERROR", message=repr(e))
        result.duration_s = time.monotonic() - begun
        if result.success:
            goal.succeed()
        elif result.state == UpdateState.CANCELLED.name and _is_cancelled(goal):
            goal.canceled()
        else:
            goal.abort()
        return result

    def _install(self, goal: ServerGoalHandle) -> InstallModel.Result:
        request = goal.request
        if not self._goals.acquire(blocking=False):
            return InstallModel.Result(
                error_code="TOO_MANY_GOALS", message=f"{MAX_GOALS} goals wait already", state=UpdateState.REJECTED.name
            )
        try:
            update = Update(
                update_id=_update_id(goal),
                manifest_url=request.manifest_url,
                manifest_sha256=request.manifest_sha256,
                name=request.name,
                version=request.version,
                activate=request.activate,
                urgent=request.urgent,
            )
            reply = self._engine.offer(update)
            if not reply.success:
                return InstallModel.Result(
                    error_code=reply.error_code,
                    message=reply.message,
                    state=UpdateState.REJECTED.name,
                    version=request.version,
                )
            return self._follow(goal, update)
        finally:
            self._goals.release()

    def _follow(self, goal: ServerGoalHandle, update: Update) -> InstallModel.Result:
        enough = {UpdateState.COMMITTED if update.activate else UpdateState.INSTALLED}
        if update.activate and not goal.request.wait_for_commit:
            enough.add(UpdateState.TRIAL)
        while True:
            outcome = self._engine.outcome(update.update_id)
            if outcome is None:
                return InstallModel.Result(error_code="NO_SUCH_UPDATE", message="the store forgot this update")
            done = outcome.final or (outcome.state is UpdateState.TRIAL and UpdateState.TRIAL in enough)
            self._publish_feedback(goal, outcome)
            if done:
                return _result(outcome, outcome.state in enough)
            if self._closing.wait(FEEDBACK_S):
                result = _result(outcome, False)
                result.error_code, result.message = (
                    "ENGINE_STOPPED",
                    "ota_manager stops; the update goes on at its next start",
                )
                return result

    def _publish_feedback(self, goal: ServerGoalHandle, outcome: UpdateOutcome) -> None:
        status = self._engine.status()
        feedback = InstallModel.Feedback(state=outcome.state.name, message=outcome.message)
        if outcome.state is UpdateState.IDLE:
            feedback.message = "waits for its turn"
        elif status.update_id == outcome.update_id:
            feedback.progress, feedback.message = status.progress, status.message
            if outcome.state is UpdateState.TRIAL:
                feedback.progress, feedback.message = status.trial_progress, status.trial_message or status.message
            feedback.bytes_done, feedback.bytes_total = status.bytes_done, status.bytes_total
        goal.publish_feedback(feedback)


def _update_id(goal: ServerGoalHandle) -> str:
    return f"install-{bytes(goal.goal_id.uuid).hex()}"


def _result(outcome: UpdateOutcome, success: bool) -> InstallModel.Result:
    return InstallModel.Result(
        success=success,
        error_code=outcome.error_code,
        message=outcome.message,
        state=outcome.state.name,
        version=outcome.version,
        bytes_downloaded=outcome.bytes_downloaded,
    )


def _is_cancelled(goal: ServerGoalHandle) -> bool:
    """Whether this goal's client asked for the cancellation; the engine may be faster than rclpy's note of it."""
    deadline = time.monotonic() + _CANCEL_RACE_S
    while not goal.is_cancel_requested and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(goal.is_cancel_requested)
