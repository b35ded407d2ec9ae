# SPDX-License-Identifier: Apache-2.0
"""Talking to real nodes in tests: a probe node that is spun in the background, and nodes as real processes.

::

    with NodeProcess("vla_ota_manager.ros.manager_node", domain, tmp_path) as manager, RosHarness(domain) as ros:
        status = ros.subscribe(ModelStatus, "ota_manager/status", qos.LATCHED)
        status.wait(lambda m: m.state_name == "IDLE")
        reply = ros.call(Rollback, "ota_manager/rollback")
        assert manager.stop() == 0

Every wait is bounded; one that runs out says what it waited for and what it had seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rclpy
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.action import ActionClient
from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from vla_ota.srv import ListModels

from support.waits import TIMEOUT_S, wait_for
from vla_ros import qos
from vla_ros.runtime import await_callbacks

_UNKNOWN_NODE = "_NODE_NAME_UNKNOWN_"  # of an endpoint that was discovered before its node
_ONLY_ASKS, _ASK_AGAIN_S = (GetParameters, GetState, ListModels), 4.0


class Inbox:
    """The messages that a subscription has received, oldest first (thread-safe)."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._messages: list[Any] = []
        self._changed = threading.Condition()

    def put(self, message: Any) -> None:
        """Callback of the subscription."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    @property
    def messages(self) -> list[Any]:
        """All of them so far."""
        with self._changed:
            return list(self._messages)

    @property
    def last(self) -> Any:
        """The newest one, None if there is none."""
        with self._changed:
            return self._messages[-1] if self._messages else None

    def clear(self) -> None:
        """Forget what came so far, so that ``wait`` looks at later messages only."""
        with self._changed:
            self._messages.clear()

    def wait(self, accept: Callable[[Any], bool] = lambda _: True, timeout_s: float = TIMEOUT_S, what: str = "") -> Any:
        """Return the first message, of those received and those to come, that ``accept`` likes."""
        deadline = time.monotonic() + timeout_s
        seen = 0
        with self._changed:
            while True:
                for message in self._messages[seen:]:
                    if accept(message):
                        return message
                seen = len(self._messages)
                left = deadline - time.monotonic()
                if left <= 0:
                    newest = self._messages[-1] if self._messages else "nothing"
                    raise AssertionError(
                        f"{self.topic}: waited {timeout_s} s for {what or 'a message'}; last: {newest}"
                    )
                self._changed.wait(left)


class Goal:
    """A goal that was sent to an action server.

    Everything is asked on the probe's executor: asked beside it, rclpy may see an answer before it has noted the question, and
    drops it.
    """

    def __init__(self, handle: Any, feedback: Inbox, owner: RosHarness) -> None:
        self._handle, self._owner = handle, owner
        self.feedback = feedback
        self.accepted: bool = handle.accepted
        self._result = owner.on_executor(handle.get_result_async) if handle.accepted else None

    def result(self, timeout_s: float = TIMEOUT_S) -> Any:
        """Wait for the result message."""
        return self._owner.wait_future(self._result, "the result of the action", timeout_s).result

    def status(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for the end and return its ``action_msgs/GoalStatus`` number."""
        return int(self._owner.wait_future(self._result, "the end of the action", timeout_s).status)

    def cancel(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Ask for cancellation; return whether the server agreed to try."""
        asked = self._owner.on_executor(self._handle.cancel_goal_async)
        response = self._owner.wait_future(asked, "the reply to cancel", timeout_s)
        return bool(response.goals_canceling)


class RosHarness:
    """A probe node in a context of its own, spun by a thread of its own. Use as a context manager.

    Args:
        domain: ROS_DOMAIN_ID.
        name: of the node.
        namespace: of the node.
        threads: above 1, callbacks in reentrant groups run beside each other (servers that block need it).
    """

    def __init__(self, domain: int, name: str = "probe", namespace: str = "", *, threads: int = 1) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node(name, namespace=namespace, context=self.context, enable_rosout=False)
        self._executor = (
            MultiThreadedExecutor(threads, context=self.context)
            if threads > 1
            else SingleThreadedExecutor(context=self.context)
        )
        self._executor.add_node(self.node)
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._clients: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._spin, name=f"{name} spin", daemon=True)
        self._thread.start()

    def __enter__(self) -> RosHarness:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _spin(self) -> None:
        try:
            while not self._stopping.is_set():
                with contextlib.suppress(InvalidHandle):  # of what a test has withdrawn this moment
                    self._executor.spin_once()
        except ExternalShutdownException:
            pass
        except Exception as e:  # kept: a probe that died must fail the test that uses it
            self._error = e

    def on_executor(self, task: Callable[[], Any]) -> Any:
        """Run ``task`` between two callbacks, so that it does not race with them; return or raise what it does."""
        outcome: dict[str, Any] = {}

        def guarded() -> None:
            try:
                outcome["value"] = task()
            except Exception as e:  # the caller's, not the executor's
                outcome["error"] = e

        self.wait_future(self._executor.create_task(guarded), "the probe's executor")
        if "error" in outcome:
            raise outcome["error"]
        return outcome["value"]

    def close(self) -> None:
        """Stop spinning and leave the domain."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        deadline = time.monotonic() + 10.0
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._executor.create_task(lambda: None)  # makes spin_once return
            self._thread.join(0.05)
        alive = self._thread.is_alive()
        if isinstance(self._executor, MultiThreadedExecutor):  # its threads would live on, and use what is gone
            await_callbacks(self._executor)
        self._executor.shutdown()
        for client in self._clients.values():
            client.destroy()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context, uninstall_handlers=False)
        assert not alive, "the probe's executor does not stop"
        if self._error is not None:
            raise self._error

    # -- topics -------------------------------------------------------------------------------------------------------------

    def subscribe(self, message_type: type, topic: str, profile: QoSProfile = qos.EVENTS) -> Inbox:
        """Collect the messages of a topic. ``qos.LATCHED`` also gets the one published before."""
        inbox = Inbox(topic)
        self.on_executor(lambda: self.node.create_subscription(message_type, topic, inbox.put, profile))
        return inbox

    def advertise(self, message_type: type, topic: str, profile: QoSProfile = qos.EVENTS, *, readers: int = 1) -> Any:
        """Return a publisher that ``readers`` subscriptions are matched with already, and they with it (0: do not wait).

        That we see a subscription is not enough: a best-effort one gets nothing until its side has seen us.
        """
        publisher = self.on_executor(lambda: self.node.create_publisher(message_type, topic, profile))
        if readers:
            wait_for(lambda: publisher.get_subscription_count() >= readers, f"{readers} subscription(s) of {topic}")
            for node in wait_for(lambda: self._readers(publisher.topic_name), f"the nodes that subscribe to {topic}"):
                self.known_to(node)
        return publisher

    def _readers(self, topic: str) -> set[str]:
        """Return the nodes that subscribe to a topic; none while the name of one is not known yet."""
        found = self.node.get_subscriptions_info_by_topic(topic)
        if any(reader.node_name == _UNKNOWN_NODE for reader in found):
            return set()
        return {f"{reader.node_namespace.rstrip('/')}/{reader.node_name}" for reader in found}

    def withdraw(self, publisher: Any) -> None:
        """Take a publisher out of the graph, and with it what it has latched."""
        self.on_executor(lambda: self.node.destroy_publisher(publisher))

    def known_to(self, node: str) -> None:
        """Wait until a node knows every publisher, subscription and client that this probe has made so far.

        To see a server or a publisher is not enough: until it has discovered us too it sends us nothing, be it an answer. What we
        make is discovered in the order in which we make it; so we make one client more, and ask until it gets an answer.
        """
        client = self.on_executor(lambda: self.node.create_client(GetParameters, f"{node}/get_parameters"))
        wait_for(client.service_is_ready, f"the node {node}")
        self._ask(client, GetParameters.Request(), TIMEOUT_S)
        self.on_executor(lambda: self.node.destroy_client(client))

    def now(self) -> Any:
        """Return the ROS time as a message."""
        return self.node.get_clock().now().to_msg()

    # -- services and actions -----------------------------------------------------------------------------------------------

    def wait_future(self, future: Any, what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Wait for a future of the probe's executor and return its result."""
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout_s):
            raise AssertionError(
                f"waited {timeout_s} s in vain for {what}" + (f": {self._error!r}" if self._error else "")
            )
        return future.result()

    def call(self, service_type: type, name: str, request: Any = None, timeout_s: float = TIMEOUT_S) -> Any:
        """Call a service, as soon as server and client know each other, and return its response; no request = an empty one."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self.on_executor(lambda: self.node.create_client(service_type, name))
            self._meet(client.service_is_ready, name, timeout_s)
        wait_for(client.service_is_ready, f"the service {name}", timeout_s)
        request = request if request is not None else service_type.Request()
        if service_type in _ONLY_ASKS:
            return self._ask(client, request, timeout_s)
        return self.wait_future(client.call_async(request), f"a reply of {name}", timeout_s)

    def asked(self, name: str) -> int:
        """Return how many requests of ``call`` to a service are not answered yet."""
        return len(self._clients[name]._pending_requests)

    def _ask(self, client: Any, request: Any, timeout_s: float) -> Any:
        """Ask, and again every few seconds: a question to a node that has just come, or just gone, may be lost."""
        answered, futures = threading.Event(), []
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            futures.append(client.call_async(request))
            futures[-1].add_done_callback(lambda _: answered.set())
            if answered.wait(_ASK_AGAIN_S):
                return next(future for future in futures if future.done()).result()
        raise AssertionError(f"waited {timeout_s} s in vain for a reply of {client.srv_name}: {self._error!r}")

    def _meet(self, is_ready: Callable[[], bool], name: str, timeout_s: float) -> None:
        """Wait until a client that was just made and its server know each other."""
        wait_for(is_ready, f"the server of {name}", timeout_s)
        node = name.rpartition("/")[0]
        if node:
            self.known_to(node)

    def send_goal(self, action_type: type, name: str, goal: Any, timeout_s: float = TIMEOUT_S) -> Goal:
        """Send a goal, as soon as the server is there, and return it, accepted or not."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self.on_executor(lambda: ActionClient(self.node, action_type, name))
            self._meet(client.server_is_ready, name, timeout_s)
        wait_for(client.server_is_ready, f"the action {name}", timeout_s)
        feedback = Inbox(f"{name} feedback")
        take = lambda message: feedback.put(message.feedback)  # noqa: E731
        future = self.on_executor(lambda: client.send_goal_async(goal, feedback_callback=take))
        return Goal(self.wait_future(future, f"a reply of {name}", timeout_s), feedback, self)


class NodeProcess:
    """A node as a process of its own: ``python -m <module> --ros-args …``. Use as a context manager."""

    def __init__(
        self,
        module: str,
        domain: int,
        folder: Path,
        *,
        parameters: Mapping[str, Any] | None = None,
        namespace: str = "",
        remaps: Sequence[str] = (),
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        group: bool = False,
    ) -> None:
        """``group``: lead a process group, as what is started in a terminal does."""
        self.module = module
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{module}-{time.monotonic_ns()}"
        self.log_file = folder / f"{stem}.log"
        command = [sys.executable, "-m", module, "--ros-args"]
        if parameters:
            file = folder / f"{stem}.yaml"  # JSON is YAML
            file.write_text(json.dumps({"/**": {"ros__parameters": dict(parameters)}}))
            command += ["--params-file", str(file)]
        if namespace:
            command += ["-r", f"__ns:={namespace}"]
        for remap in remaps:
            command += ["-r", remap]
        command += list(arguments)
        env = {**os.environ, "ROS_DOMAIN_ID": str(domain), "PYTHONUNBUFFERED": "1", **(environment or {})}
        with self.log_file.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                process_group=0 if group else None,
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30.0)
            except subprocess.TimeoutExpired:
                self.kill()
        if exc_type is not None:
            print(f"--- log of {self.module}\n{self.log}")

    @property
    def log(self) -> str:
        """What it has written to stdout and stderr."""
        return self.log_file.read_text(errors="replace")

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for it to end by itself; return its exit status."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.module} did not end within {timeout_s} s\n{self.log}") from None

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = TIMEOUT_S) -> int:
        """Ask it to end; return its exit status."""
        self.process.send_signal(number)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, as a power loss would."""
        self.process.kill()
        self.process.wait(10.0)
