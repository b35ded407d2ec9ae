# SPDX-License-Identifier: Apache-2.0
"""The ROS face of the policy engine: a lifecycle node. What it does is in ``engine.py``; here are names, messages and threads."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.action import CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from vla_ota.action import PrepareModel, RunPolicy
from vla_ota.msg import (
    AnomalyScore,
    EpisodeOutcome,
    ModelStatus,
    PolicyStatus,
    PolicySteps,
    ShadowActions,
    SwapReport,
)
from vla_ota.srv import EndEpisode, StartEpisode, SwapModel

from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract.model import Contract, Source, load_contract
from vla_policy_node.engine import PolicyEngine, Score
from vla_policy_node.episodes import Episode, Outcome
from vla_policy_node.errors import ControlError, ObservationError, PolicyNodeError, fault_of
from vla_policy_node.generations.recovery import EXPECTED_ERRORS
from vla_policy_node.generations.residents import Resident
from vla_policy_node.generations.swapping import Report, SwapRequest
from vla_policy_node.operator_actions import operator_topic
from vla_policy_node.ros import diagnostics, messages
from vla_policy_node.ros.run_policy import require, run_policy
from vla_policy_node.shadow.follower import ShadowActions as ShadowChunk
from vla_policy_node.steps import Steps
from vla_ros import qos
from vla_ros.action_server import DestroyableActionServer
from vla_ros.diagnostics import Diagnostics
from vla_ros.executor import QuickCallbackGroup
from vla_ros.interfaces import message_class
from vla_ros.log_forwarding import forward_log
from vla_ros.parameters import declare, on_live_change, refuse_unknown
from vla_ros.repeats import Repeats
from vla_ros.runtime import main as run_main
from vla_ros.runtime import process_arguments
from vla_ros.stamps import ago

LOG = logging.getLogger("vla_policy_node")

_FEEDBACK_PERIOD_S = 1.0
_STATUS_POLL_S = 0.05
_START_WAIT_S, _START_WAIT_MAX_S = 0.5, 30.0  # before autostart is tried again; doubled each time
_PASSING = ("COMMAND_TOPIC_LOCKED", "COMMAND_TOPIC_TAKEN", "CONTROL_START_TIMEOUT")
"""Why a node may not start now and may later: above all, its predecessor is still dying."""


class PolicyNode(LifecycleNode):
    """Runs a policy on a robot and lets it be replaced in motion."""

    def __init__(self) -> None:
        super().__init__("policy_node")
        refuse_unknown(self, PolicyNodeConfig)
        self.config = declare(self, PolicyNodeConfig)
        on_live_change(self, PolicyNodeConfig, self._set_live)
        forward_log(self, "vla_policy_node")
        self._engine: PolicyEngine | None = None
        self._closing = False
        self._calls = ReentrantCallbackGroup()  # blocking services and actions
        self._changed = threading.Event()
        self._published_s = 0.0
        self._outcomes: dict[str, EpisodeOutcome] = {}
        self._refusal = ("", "")  # code and text of what on_configure could not do
        self._swaps_refused, self._preparations_refused = Repeats(LOG.warning), Repeats(LOG.warning)
        self._configured: list[tuple[Callable[[Any], Any], Any]] = []  # how to destroy what on_configure made
        self.diagnostics = Diagnostics(self, self._robot_type)
        self.diagnostics.add("control loop", lambda: diagnostics.loop(self._engine, self._refusal))
        self.diagnostics.add("policy", lambda: diagnostics.policy(self._engine))
        if self.config.shadow_only:
            self.diagnostics.add("shadow", lambda: diagnostics.shadow(self._engine))
            self._shadow_actions = self._advertise(ShadowActions, "~/shadow_actions", qos.EVENTS)
        # Plain publishers: a lifecycle publisher would drop the status of a node that is not active.
        self._status = self._advertise(PolicyStatus, "~/status", qos.LATCHED)
        self._reports = self._advertise(SwapReport, "~/swap_report", qos.LATCHED)
        self._scores = self._advertise(AnomalyScore, "anomaly_score", qos.EVENTS)
        self._episodes = self._advertise(EpisodeOutcome, "episode_outcome", qos.EVENTS)
        self._steps = self._advertise(PolicySteps, "~/steps", qos.EVENTS)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # also while simulated time stands still
        group = MutuallyExclusiveCallbackGroup()
        self.create_timer(_STATUS_POLL_S, self._publish_status, callback_group=group, clock=steady)
        self._autostarts, self._starting, self._start_wait_s = self.config.autostart, False, _START_WAIT_S
        if self.config.autostart:
            # Its group is that of the lifecycle services: one transition at a time. Only its own callback may cancel it: rclpy
            # ends the program when it calls a timer that another thread has cancelled this moment.
            self._starter = self.create_timer(
                0.0, self._autostart, callback_group=self.default_callback_group, clock=steady
            )

    # -- lifecycle -------------------------------------------------------------------------------------------------

    def _autostart(self) -> None:
        """Configure and activate; what fails for a reason that may pass is tried again, later and later."""
        self._starter.cancel()
        if not self._autostarts:
            return
        self._starting = True
        try:
            if self._engine is None:
                self.trigger_configure()
            if self._engine is not None:
                self.trigger_activate()
        except Exception as e:  # rclpy's own, private to it
            self._log_failure("start", e)
        finally:
            self._starting = False
        if self._refusal[0] in _PASSING:
            self._start_wait_s = min(2.0 * self._start_wait_s, _START_WAIT_MAX_S)
            self.get_logger().info(f"starting again in {self._start_wait_s:g} s")
            self._starter.timer_period_ns = int(self._start_wait_s * 1e9)
            self._starter.reset()

    def _stop_starting(self) -> None:
        """Somebody else decides on the node's state from now on."""
        if not self._starting:
            self._autostarts = False

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the control process and the workers; nothing is commanded yet."""
        self._stop_starting()
        try:
            contract = load_contract(self.config.contract)
            engine = self._engine = PolicyEngine(self.config, contract, sink=self._sink(contract), listener=self)
            if self._closing:  # close() may have come before there was an engine to end
                raise ControlError("CLOSED", "the node is shutting down")
            engine.start()
            self._make_interfaces(contract)
        except Exception as e:  # rclpy swallows what a transition raises
            self._refusal = (str(getattr(e, "code", "CONFIGURE_FAILED")), str(e))
            self._log_failure("configure", e)
            self._take_down()
            return TransitionCallbackReturn.FAILURE
        self._refusal = ("", "")
        LOG.info("configured: %s, %d channels at %g Hz", contract.robot_type, len(contract.channels), contract.rate_hz)
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Command the robot from now on: it holds until resume, after every activation."""
        self._stop_starting()
        try:
            self._require_engine().enable(True)
        except Exception as e:  # as above
            self._refusal = (str(getattr(e, "code", "ACTIVATE_FAILED")), str(e))
            self._log_failure("activate", e)
            return TransitionCallbackReturn.FAILURE if isinstance(e, ControlError) else TransitionCallbackReturn.ERROR
        self._refusal = ("", "")
        LOG.info("activated")
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop commanding. Without an answer the control process was killed: everything is taken down then."""
        self._stop_starting()
        try:
            self._require_engine().enable(False)
        except Exception as e:
            self._log_failure("deactivate", e)
            return TransitionCallbackReturn.ERROR
        LOG.info("deactivated: nothing is commanded")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End every process."""
        return self._end("clean up", lambda: super(PolicyNode, self).on_cleanup(state))

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End every process."""
        return self._end("shut down", lambda: super(PolicyNode, self).on_shutdown(state))

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition failed half way: end every process, so that the node is unconfigured in deed as in name."""
        return self._end("recover from an error", lambda: TransitionCallbackReturn.SUCCESS)

    def _end(self, what: str, then: Callable[[], TransitionCallbackReturn]) -> TransitionCallbackReturn:
        self._stop_starting()
        try:
            self._take_down()
            LOG.info("%s: every process has ended", what)
            return then()
        except Exception as e:
            self._log_failure(what, e)
            return TransitionCallbackReturn.ERROR

    def _log_failure(self, what: str, error: Exception) -> None:
        if self._closing:
            return  # the node was asked to end, and ends what it was about to start
        code = getattr(error, "code", "")
        trace = "" if code else "\n" + "".join(traceback.format_exception(error))
        self.get_logger().error(f"cannot {what}: {code or type(error).__name__}: {error}{trace}")

    def close(self) -> None:
        """End every process; called once, while callbacks still run. What on_configure made goes with the node."""
        self._closing = True
        self._end_engine()

    def _end_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _take_down(self) -> None:
        self._end_engine()
        for destroy, thing in reversed(self._configured):
            destroy(thing)
        self._configured.clear()
        self._changed.set()

    def _robot_type(self) -> str:
        engine = self._engine
        return engine.contract.robot_type if engine is not None else ""

    def _require_engine(self) -> PolicyEngine:
        return require(self._engine)

    def _sink(self, contract: Contract) -> dict[str, Any]:
        topics = {output.topic: self.resolve_topic_name(output.topic) for output in contract.outputs}
        return {
            "kind": "ros",
            "node_name": f"_{self.get_name()}_control",  # hidden: it has no parameter services for `ros2 param list` to wait for
            "namespace": self.get_namespace(),
            "domain_id": self.context.get_domain_id(),
            "topics": topics,
            "arguments": process_arguments(sys.argv),
        }

    # -- interfaces ------------------------------------------------------------------------------------------------

    def _make_interfaces(self, contract: Contract) -> None:
        keep = self._configured.append
        # Made anew: an event that is destroyed just before it is taken keeps its group busy for ever (rclpy 7).
        # Several: the measured state does not wait until a picture is decoded.
        pictures, words = MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()
        numbers = QuickCallbackGroup()
        for observation in contract.observations:
            for index, source in enumerate(observation.sources):
                receive = partial(self._on_observation, observation.key, index)
                group = pictures if observation.is_image else numbers
                keep((self.destroy_subscription, self._subscribe(source, receive, group)))
        if contract.instruction is not None:
            keep((self.destroy_subscription, self._subscribe(contract.instruction, self._on_instruction, words)))
        heard: list[tuple[type[Any], str, Callable[[Any], None], QoSProfile]] = [
            (ModelStatus, f"{self.config.ota_manager}/status", self._on_manager, qos.EVENTS),
        ]
        if not self.config.shadow_only:
            heard.append((Bool, contract.motion.topic, self._on_motion, qos.FLAGS))
            heard += [
                (message_class(output.type), operator_topic(output), partial(self._on_operator, index), qos.FLAGS)
                for index, output in enumerate(contract.outputs)
            ]
        for message, topic, callback, profile in heard:
            # A group of its own each: neither the stop nor the lease waits until a picture is decoded.
            group = MutuallyExclusiveCallbackGroup()
            events = self.diagnostics.subscription_events(topic)
            subscription = self.create_subscription(
                message, topic, callback, profile, callback_group=group, event_callbacks=events
            )
            keep((self.destroy_subscription, subscription))
        if not self.config.shadow_only:
            service = self.create_service(SetBool, "~/take_over", self._take_over, callback_group=self._calls)
            keep((self.destroy_service, service))
        for kind, name, handler in (
            (SwapModel, "~/swap_model", self._swap_model),
            (StartEpisode, "~/start_episode", self._start_episode),
            (EndEpisode, "~/end_episode", self._end_episode),
            (Trigger, "~/resume", self._resume),
        ):
            service = self.create_service(kind, name, handler, callback_group=self._calls)
            keep((self.destroy_service, service))
        for kind, name, execute in (
            (PrepareModel, "~/prepare_model", self._prepare_model),
            (RunPolicy, "~/run_policy", self._run_policy),
        ):
            server = DestroyableActionServer(
                self,
                kind,
                name,
                execute,
                callback_group=self._calls,
                goal_callback=lambda goal: GoalResponse.ACCEPT,
                cancel_callback=lambda handle: CancelResponse.ACCEPT,
            )
            keep((lambda s: s.destroy(), server))

    def _advertise(self, kind: type[Any], topic: str, profile: QoSProfile) -> Any:
        return self.create_publisher(kind, topic, profile, event_callbacks=self.diagnostics.publisher_events(topic))

    def _subscribe(self, source: Source, callback: Callable[[Any], None], group: CallbackGroup) -> Any:
        return self.create_subscription(
            message_class(source.type),
            source.topic,
            callback,
            qos.profile(source.qos.reliability, source.qos.durability, source.qos.depth),
            callback_group=group,
            event_callbacks=self.diagnostics.subscription_events(source.topic),
        )

    def _on_observation(self, key: str, index: int, message: Any) -> None:
        engine = self._engine
        if engine is None:
            return
        try:
            engine.observations.receive(key, index, message, ros_now_ns=self.get_clock().now().nanoseconds)
        except ObservationError as e:
            self.get_logger().error(f"{e.code}: {e}", throttle_duration_sec=5.0)

    def _on_instruction(self, message: String) -> None:
        if self._engine is not None:
            try:
                self._engine.set_instruction(message.data)
            except ObservationError as e:
                self.get_logger().error(f"{e.code}: {e}", throttle_duration_sec=5.0)

    def _on_motion(self, message: Bool) -> None:
        if self._engine is not None:
            self._engine.observations.set_motion(message.data)

    def _on_operator(self, output: int, message: Any) -> None:
        if self._engine is not None:
            try:
                self._engine.operator.receive(output, message)
            except ObservationError as e:
                self.get_logger().error(f"{e.code}: of an operator: {e}", throttle_duration_sec=5.0)

    def _on_manager(self, message: ModelStatus) -> None:
        if self._engine is not None:
            assignment = messages.assignment(message)
            self._engine.on_manager_status(message.trial_digest, message.committed_digest, assignment)

    def _set_live(self, name: str, value: Any) -> None:
        if name == "instruction" and self._engine is not None:
            try:
                self._engine.set_instruction(value)
            except PolicyNodeError as e:
                raise ValueError(f"{e.code}: {e}") from e  # refuses the change

    # -- services --------------------------------------------------------------------------------------------------

    def _swap_model(self, request: SwapModel.Request, response: SwapModel.Response) -> SwapModel.Response:
        wanted = SwapRequest(
            bundle_path=request.bundle_path,
            digest=request.digest,
            expected_active_digest=request.expected_active_digest,
            at=request.at,
            timeout_s=request.timeout_s,
            trial=request.trial,
            trial_lease_s=request.trial_lease_s,
            cause=request.cause,
        )
        try:
            engine = self._require_engine()
            resident, report = engine.swap(wanted)
            self._swaps_refused.over()
            response.success = True
            response.message = f"{resident.version} acts" if report else f"{resident.version} was active already"
            if report is not None:
                response.report = self._report_message(report)
        except EXPECTED_ERRORS as e:
            response.error_code, response.message = _code_of(e), str(e)
            response.fault = fault_of(response.error_code)
            self._swaps_refused.say(f"swap refused: {response.error_code}: {e}")
        active = self._engine.snapshot().active if self._engine is not None else None
        if active is not None:
            response.active_version, response.generation = active.version, active.id
        return response

    def _start_episode(self, request: StartEpisode.Request, response: StartEpisode.Response) -> StartEpisode.Response:
        try:
            engine = self._require_engine()
            episode = self._open_episode(engine, request.episode_id, request.instruction, request.timeout_s)
            response.success, response.episode_id, response.arm = True, episode.episode_id, episode.arm
            snapshot = engine.snapshot()
            active, (code, text) = snapshot.active, snapshot.draw_error
            if code and not episode.arm:
                response.message = f"of no arm: {code}: {text}"
            if active is not None:
                response.version, response.generation = active.version, active.id
        except PolicyNodeError as e:
            response.error_code, response.message = e.code, str(e)
        return response

    def _open_episode(self, engine: PolicyEngine, episode_id: str, instruction: str, timeout_s: float) -> Episode:
        """Open an episode, and say so before it may end: its outcome counts only if a status has named it."""
        self._outcomes.pop(episode_id, None)  # of an earlier one of that name
        episode = engine.start_episode(episode_id, instruction, timeout_s)
        self._tell(engine)
        return episode

    def _end_episode(self, request: EndEpisode.Request, response: EndEpisode.Response) -> EndEpisode.Response:
        try:
            engine = self._require_engine()
            outcome = engine.end_episode(request.episode_id, success=request.success, intervention=request.intervention)
            response.success = True
            response.outcome = self._outcomes[outcome.episode_id]
        except PolicyNodeError as e:
            response.error_code, response.message = e.code, str(e)
        return response

    def _resume(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            engine = self._require_engine()
            refusal = engine.resume()
            response.success, response.message = not refusal, refusal or "resuming"
        except ControlError as e:
            response.message = f"{e.code}: {e}"
        return response

    def _take_over(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        try:
            self._require_engine().take_over(on=request.data)
            response.success = True
            response.message = "the operator's actions are commanded" if request.data else "the policy may act again"
        except ControlError as e:
            response.message = f"{e.code}: {e}"
        return response

    # -- actions ---------------------------------------------------------------------------------------------------

    def _prepare_model(self, goal: ServerGoalHandle) -> PrepareModel.Result:
        result = PrepareModel.Result()
        feedback, said_s = PrepareModel.Feedback(state="QUEUED"), 0.0

        def on_progress(state: str, fraction: float) -> None:
            nonlocal feedback, said_s
            feedback, said_s = PrepareModel.Feedback(state=state, progress=float(fraction)), time.monotonic()
            goal.publish_feedback(feedback)

        def cancelled() -> bool:
            # A client misses what is said before it hears that its goal was accepted.
            if time.monotonic() - said_s > _FEEDBACK_PERIOD_S:
                on_progress(feedback.state, feedback.progress)
            return bool(goal.is_cancel_requested)

        try:
            engine = self._require_engine()
            request = goal.request
            resident = engine.prepare(
                request.bundle_path,
                request.digest,
                on_progress,
                cancelled,
                skip_shadow=request.skip_shadow,
            )
            self._preparations_refused.over()
            messages.fill_prepared(result, resident)
            goal.succeed()
        except EXPECTED_ERRORS as e:
            result.error_code, result.message = _code_of(e), str(e)
            result.fault = fault_of(result.error_code)
            self._preparations_refused.say(f"not prepared: {result.error_code}: {e}")
            goal.canceled() if goal.is_cancel_requested else goal.abort()
        return result

    def _run_policy(self, goal: ServerGoalHandle) -> RunPolicy.Result:
        return run_policy(goal, lambda: self._engine, self._open_episode, self._outcomes.get)

    # -- what the engine tells (Listener) --------------------------------------------------------------------------

    def on_change(self) -> None:
        """Publish a status soon."""
        self._changed.set()

    def on_score(self, score: Score) -> None:
        """Publish an anomaly score."""
        self._scores.publish(messages.score(score, self._now()))

    def on_outcome(self, outcome: Outcome, active: Resident | None) -> None:
        """Publish how an episode ended."""
        message = messages.outcome(outcome, active, self._now())
        self._outcomes[outcome.episode_id] = message
        while len(self._outcomes) > 16:
            self._outcomes.pop(next(iter(self._outcomes)))
        self._episodes.publish(message)

    def on_report(self, report: Report) -> None:
        """Publish what a swap cost."""
        self._reports.publish(self._report_message(report))

    def on_steps(self, steps: Steps, episode: Episode, by: Resident | None) -> None:
        """Publish some steps of the open episode."""
        self._steps.publish(messages.steps(steps, episode, by, self._now()))

    def on_shadow_actions(self, shown: ShadowChunk) -> None:
        """Publish what a shadow-only node's policy would do."""
        engine = self._engine
        if engine is not None:  # else it is ending
            stamp = ago(self.get_clock().now(), (time.monotonic_ns() - shown.observed_ns) / 1e9)
            self._shadow_actions.publish(messages.shadow_actions(shown, engine.contract, stamp))

    def _report_message(self, report: Report) -> SwapReport:
        return messages.swap_report(report, ago(self.get_clock().now(), time.monotonic() - report.acted_s))

    def _now(self) -> Any:
        return self.get_clock().now().to_msg()

    # -- status ----------------------------------------------------------------------------------------------------

    def _publish_status(self) -> None:
        now = time.monotonic()
        if not self._changed.is_set() and now - self._published_s < self.config.status_period_s:
            return
        self._changed.clear()
        self._published_s = now
        engine = self._engine
        if engine is None:
            self._status.publish(messages.unconfigured(*self._refusal, self._now()))
        else:
            self._tell(engine)
            if engine.control_lost:  # ends the node: whoever restarts it gets one that commands, and holds
                raise ControlError("CONTROL_LOST", "the control process ended")

    def _tell(self, engine: PolicyEngine) -> None:
        self._status.publish(messages.status(engine.snapshot(), engine.contract.rate_hz, self._now()))


def _code_of(error: Exception) -> str:
    return str(getattr(error, "code", "") or "INTERNAL_ERROR")


def main() -> None:
    """Run the node."""
    about = "Runs a policy on a robot, holds when it must, and lets the policy be replaced in motion."
    run_main(PolicyNode, "policy_node", about, [PolicyNodeConfig], threads=6)


if __name__ == "__main__":
    main()
