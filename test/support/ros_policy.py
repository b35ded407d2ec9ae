# SPDX-License-Identifier: Apache-2.0
"""A stand-in for policy_node, for tests of the manager alone: its ROS interface, and nothing that loads, infers or moves.

It answers on the same topics, service and action with the same QoS, keeps a resident set (active, standby, prepared) by digest
and says so in its status. What it publishes as scores and outcomes is what the test tells it to. End-to-end
tests use the real node.
"""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from vla_ota.action import PrepareModel
from vla_ota.msg import AnomalyScore, EpisodeOutcome, PolicyStatus, SwapReport
from vla_ota.srv import SwapModel

from support.ros import RosHarness
from vla_checkpoint import CheckpointError, load_manifest
from vla_policy_node.errors import fault_of
from vla_ros import qos
from vla_ros.fault import Fault

Bundle = tuple[str, str]
"""Digest and version."""
NOTHING: Bundle = ("", "")
_LONGEST_S = 30.0


class StandInPolicyNode:
    """Use as a context manager.

    Attributes:
        prepare_s: how long a preparation takes [s].
        prepare_error: code with which preparations fail; empty = they succeed.
        swap_error: code with which swaps fail; empty = they succeed.
        silent: no status is published.
        prepared_paths: bundle folders that preparations were asked for, in order.
        swaps: requests of swap_model, in order.
        cancelled: preparations that were cancelled.
        accepting: while it is not set, preparations are not accepted.
        swapping: while it is not set, swaps take.
    """

    def __init__(self, domain: int, namespace: str = "", name: str = "policy_node") -> None:
        self._boots = 0
        self._mutex = threading.RLock()
        self._forget()
        self._ros = RosHarness(domain, name, namespace, threads=4)
        node, group = self._ros.node, ReentrantCallbackGroup()
        self._status = node.create_publisher(PolicyStatus, "~/status", qos.LATCHED)
        self._report = node.create_publisher(SwapReport, "~/swap_report", qos.LATCHED)
        self._score = node.create_publisher(AnomalyScore, "anomaly_score", qos.EVENTS)
        self._outcome = node.create_publisher(EpisodeOutcome, "episode_outcome", qos.EVENTS)
        node.create_service(SwapModel, "~/swap_model", self._swap, callback_group=group)
        self._action = ActionServer(
            node,
            PrepareModel,
            "~/prepare_model",
            self._prepare,
            goal_callback=self._accept,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            callback_group=group,
        )
        node.create_timer(0.5, self.publish_status)
        self.publish_status()

    def __enter__(self) -> StandInPolicyNode:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the graph; what is under way is lost."""
        self.accepting.set()
        self.swapping.set()
        self._forget()
        self._ros.close()

    def restart(self) -> None:
        """Be as new, as another process of this name would be, and say so; preparations under way are lost."""
        self._forget()
        self.publish_status()

    def fall_silent(self, last_words: str) -> None:
        """Say so with this episode_id in the last status that is published."""
        with self._mutex:
            self.episode_id = last_words
            self.publish_status()
            self.silent = True

    def _forget(self) -> None:
        with self._mutex:
            self._boots += 1
            self.prepare_s = 0.05
            self.accepting, self.swapping = threading.Event(), threading.Event()
            self.accepting.set()
            self.swapping.set()
            self.prepare_error, self.swap_error, self.silent = "", "", False
            self.prepared_paths: list[Path] = []
            self.swaps: list[Any] = []
            self.cancelled = 0
            self.active, self.standby, self.prepared = NOTHING, NOTHING, NOTHING
            self.generation, self.on_trial, self.boot_id = 0, False, uuid.uuid4().hex
            self.episode_id = ""

    def is_heard(self, *, scores: bool = True) -> bool:
        """Whether somebody listens to statuses, reports and outcomes, and to scores."""
        publishers = [self._status, self._report, self._outcome] + ([self._score] if scores else [])
        return all(publisher.get_subscription_count() > 0 for publisher in publishers)

    # -- what the robot does ------------------------------------------------------------------------------------------------

    def publish_scores(self, score: float, count: int, source: str = "tce") -> None:
        """Publish so many scores of the active generation, as the real node does one a chunk."""
        for _ in range(count):
            self._score.publish(
                AnomalyScore(
                    header=self._header(),
                    source=source,
                    version=self.active[1],
                    generation=self.generation,
                    score=score,
                )
            )
            time.sleep(0.001)

    def publish_status(self) -> None:
        """Publish the status as it is now."""
        with self._mutex:
            if self.silent:
                return
            self._status.publish(
                PolicyStatus(
                    header=self._header(),
                    boot_id=self.boot_id,
                    state=PolicyStatus.STATE_RUNNING if self.generation else PolicyStatus.STATE_INACTIVE,
                    active_digest=self.active[0],
                    active_version=self.active[1],
                    standby_digest=self.standby[0],
                    standby_version=self.standby[1],
                    prepared_digest=self.prepared[0],
                    prepared_version=self.prepared[1],
                    generation=self.generation,
                    on_trial=self.on_trial,
                    episode_id=self.episode_id,
                    motion_enabled=True,
                    control_rate_hz=50.0,
                )
            )

    def publish_report(self, cause: str) -> None:
        """Publish the report of a swap to what acts now."""
        self._report.publish(
            SwapReport(
                header=self._header(),
                to_digest=self.active[0],
                to_version=self.active[1],
                generation=self.generation,
                cause=cause,
            )
        )

    def _header(self) -> Any:
        message = AnomalyScore()
        message.header.stamp = self._ros.now()
        return message.header

    # -- what it is asked ---------------------------------------------------------------------------------------------------

    def _accept(self, _: Any) -> GoalResponse:
        self.accepting.wait(_LONGEST_S)
        return GoalResponse.ACCEPT

    def _prepare(self, goal: Any) -> Any:
        path = Path(goal.request.bundle_path)
        self.prepared_paths.append(path)
        result = PrepareModel.Result()
        boot, deadline = self._boots, time.monotonic() + self.prepare_s
        while time.monotonic() < deadline:
            if boot != self._boots:
                goal.abort()
                return result
            if goal.is_cancel_requested:
                self.cancelled += 1
                goal.canceled()
                result.error_code, result.fault, result.message = "CANCELLED", Fault.PERSON, "cancelled"
                return result
            goal.publish_feedback(PrepareModel.Feedback(state="LOADING", progress=0.5))
            time.sleep(0.01)
        try:
            manifest = load_manifest(path)
        except CheckpointError as e:
            goal.abort()
            result.error_code, result.fault, result.message = e.code, Fault.BUNDLE, str(e)
            return result
        if self.prepare_error or goal.request.digest not in ("", manifest.digest):
            goal.abort()
            result.error_code, result.message = self.prepare_error or "DIGEST_BUNDLE", f"told to refuse {path}"
            result.fault = fault_of(result.error_code)
            return result
        with self._mutex:
            self.prepared = (manifest.digest, manifest.version)
        self.publish_status()
        goal.succeed()
        result.success, result.version, result.digest = True, manifest.version, manifest.digest
        return result

    def _swap(self, request: Any, response: Any) -> Any:
        self.swapping.wait(_LONGEST_S)
        with self._mutex:
            self.swaps.append(request)
            response.active_version, response.generation = self.active[1], self.generation
            resident = {bundle[0]: bundle for bundle in (self.active, self.standby, self.prepared) if bundle[0]}
            if self.swap_error:
                response.error_code, response.message = self.swap_error, "told to refuse"
            elif request.expected_active_digest not in ("", self.active[0]):
                response.error_code, response.message = "EXPECTATION_FAILED", f"{self.active[1]} is active"
            elif request.digest not in resident:
                response.error_code, response.message = "NOT_PREPARED", f"{request.digest} is not loaded"
            else:
                self._activate(resident[request.digest], request, response)
            response.fault = fault_of(response.error_code)
        self.publish_status()
        return response

    def _activate(self, bundle: Bundle, request: Any, response: Any) -> None:
        self.on_trial = request.trial
        response.success = True
        if bundle != self.active:
            warm = bundle != self.prepared
            before, self.active, self.standby = self.active, bundle, self.active
            self.prepared = NOTHING
            self.generation += 1
            response.report = SwapReport(
                header=self._header(),
                from_version=before[1],
                from_digest=before[0],
                to_version=bundle[1],
                to_digest=bundle[0],
                generation=self.generation,
                cause=request.cause or SwapReport.CAUSE_UPDATE,
                at=request.at or "CHUNK",
                warm=warm,
                swap_latency_s=0.01,
            )
            self._report.publish(response.report)
        response.active_version, response.generation = self.active[1], self.generation
