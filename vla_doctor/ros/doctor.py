# SPDX-License-Identifier: Apache-2.0
"""``doctor``: looks at the ROS graph, listens for some seconds, and reports. It publishes nothing.

Its subscriptions are best effort and raw: they match every publisher, and only a few messages a second are looked into.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import rclpy
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import qos_profile_parameters
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from rclpy.task import Future
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rclpy.utilities import remove_ros_args

from vla_doctor.examination import examine
from vla_doctor.findings import Finding, exit_status, report, report_json
from vla_doctor.seen import Endpoint, Samples, TopicSeen
from vla_doctor.settings import DoctorSettings, parse_arguments
from vla_doctor.wiring import examine_list
from vla_ros import qos
from vla_ros.interfaces import message_class
from vla_ros.parameters import ParameterError, declare, refuse_unknown

USAGE = 2
_DISCOVERY_MIN_S, _DISCOVERY_MAX_S, _SETTLED_S = 2.0, 5.0, 1.0
"""A fresh process learns of the others in 0.25 to 2 s; a lost packet of discovery is sent again after 3 s [s]."""
_CALL_TIMEOUT_S, _CALL_ATTEMPTS = 2.5, 4
_LOOK_INTO_EVERY_S = 0.2


class Doctor(Node):
    """Sees what :func:`examine` wants to know. Spun by its own methods, from one thread."""

    def __init__(self, arguments: Mapping[str, Any], namespace: str) -> None:
        overrides = [Parameter(name, value=value) for name, value in arguments.items()]
        super().__init__("doctor", namespace=namespace or None, parameter_overrides=overrides, enable_rosout=False)
        refuse_unknown(self, DoctorSettings)
        self.settings = declare(self, DoctorSettings)
        self.namespace: str = self.get_namespace()
        self.rmw: str = rclpy.get_rmw_implementation_identifier()
        self._listeners: list[Subscription[Any]] = []
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self.destroy_node()

    # -- waiting ------------------------------------------------------------------------------------------------------------

    def wait(self, seconds: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Spin until ``done``; return whether it was within ``seconds``."""
        deadline = time.monotonic() + seconds
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._executor.spin_once(timeout_sec=min(left, 0.1))
        return True

    def discover(self, expected: Collection[str]) -> None:
        """Wait until the graph has stopped growing; longer while nodes of the names ``expected`` are not in it."""
        began_s = changed_s = time.monotonic()
        graph: Any = None
        while (now_s := time.monotonic()) - began_s < _DISCOVERY_MAX_S:
            seen = (sorted(self.get_node_names_and_namespaces()), self.get_topic_names_and_types())
            if seen != graph:
                graph, changed_s = seen, now_s
            settled = now_s - began_s > _DISCOVERY_MIN_S and now_s - changed_s > _SETTLED_S
            if settled and {name for name, _ in seen[0]}.issuperset(expected):
                return
            self.wait(0.1)

    # -- the graph ----------------------------------------------------------------------------------------------------------

    def full_name(self, name: str, node_name: str, namespace: str) -> str:
        """Return the full name of a topic as a node writes it, with the doctor's own remappings."""
        return str(self.resolve_topic_name(expand_topic_name(name, node_name, namespace)))

    def node_names(self) -> list[str]:
        """Return the full names of all nodes; a name that is there twice comes twice."""
        return [_full(name, namespace) for name, namespace in self.get_node_names_and_namespaces()]

    def topic(self, name: str, samples: Samples | None = None) -> TopicSeen:
        """Return who publishes and subscribes now."""
        own = self.get_fully_qualified_name()
        publishers = [_endpoint(info) for info in self.get_publishers_info_by_topic(name)]
        subscriptions = [_endpoint(info) for info in self.get_subscriptions_info_by_topic(name)]
        others = tuple(s for s in subscriptions if s.node != own)
        return TopicSeen(name, tuple(publishers), others, samples or Samples())

    def topics(self) -> list[tuple[str, list[str]]]:
        """Return each topic with its types."""
        return self.get_topic_names_and_types()

    def topics_of_type(self, kind: str, *, published: bool) -> list[str]:
        """Return topics of a type that somebody publishes (or subscribes to)."""
        count = self.count_publishers if published else self.count_subscribers
        return [name for name, kinds in self.get_topic_names_and_types() if kind in kinds and count(name)]

    def subscribed_by(self, full: str) -> frozenset[str]:
        """Return the topics that a node subscribes to; none if it is not there."""
        namespace, _, name = full.rpartition("/")
        try:
            return frozenset(topic for topic, _ in self.get_subscriber_names_and_types_by_node(name, namespace or "/"))
        except Exception:  # rclpy raises a private error when the node has just left
            return frozenset()

    # -- asking -------------------------------------------------------------------------------------------------------------

    def parameters(self, full: str, names: list[str]) -> dict[str, Any] | None:
        """Return those parameters of a node that have a value; None if it does not answer.

        Each is asked for by itself: one without a value makes the answer to a list of them empty.
        """
        requests = [GetParameters.Request(names=[name]) for name in names]
        responses = self._call(GetParameters, f"{full}/get_parameters", requests)
        if responses is None:
            return None
        answers = zip(names, responses, strict=True)
        return {name: parameter_value_to_python(r.values[0]) for name, r in answers if r.values}

    def lifecycle(self, full: str) -> str:
        """Return the label of a lifecycle node's state; empty if it does not answer."""
        responses = self._call(GetState, f"{full}/get_state", [GetState.Request()])
        return "" if responses is None else str(responses[0].current_state.label)

    def use_sim_time(self) -> None:
        """Take the time of ``/clock``, as the policy node does."""
        self.set_parameters([Parameter("use_sim_time", value=True)])

    def _call(self, kind: Any, name: str, requests: list[Any]) -> list[Any] | None:
        """Return the responses to requests that are sent all at once; None if one does not come.

        The client stays until the end: a server whose client has gone cannot send its answer, and warns of it.
        """
        client = self.create_client(kind, name, qos_profile=qos_profile_parameters)  # the default drops all but ten
        if not self.wait(_CALL_TIMEOUT_S, client.service_is_ready):
            return None
        for _ in range(_CALL_ATTEMPTS):  # an answer is lost if its server has not yet discovered this client
            futures = [client.call_async(request) for request in requests]
            if self.wait(_CALL_TIMEOUT_S, partial(_all_done, futures)):
                return [future.result() for future in futures]
        return None

    # -- listening ----------------------------------------------------------------------------------------------------------

    def stop_listening(self) -> None:
        """Leave the topics of ``listen`` and ``listen_to_status``."""
        for subscription in self._listeners:
            self.destroy_subscription(subscription)
        self._listeners.clear()

    def listen(self, name: str, kind: str, decode: Callable[[Any], object] | None = None) -> Samples:
        """Collect a topic's messages from now on.

        ``decode`` raises an error with ``code`` for a message that is of no use. Raises :class:`UnknownTypeError`.
        """
        samples, message_type = Samples(), message_class(kind)
        take = partial(self._take, samples, message_type, decode)
        self._listeners.append(self.create_subscription(message_type, name, take, qos.SENSORS, raw=True))
        return samples

    def listen_to_status(self, name: str, kind: str) -> Samples:
        """Collect a status of ours; matches publishers that are not latched too, and asks for the last one of those that are."""
        samples = Samples()
        latched = all(p.durability == "transient_local" for p in self.topic(name).publishers)
        profile = qos.LATCHED if latched else qos.SENSORS
        take = partial(self._take_status, samples)
        self._listeners.append(self.create_subscription(message_class(kind), name, take, profile))
        return samples

    @staticmethod
    def _take_status(samples: Samples, message: Any) -> None:
        samples.arrivals_s.append(time.monotonic())
        samples.last = message

    def _take(self, samples: Samples, kind: Any, decode: Callable[[Any], object] | None, data: bytes) -> None:
        now_s = time.monotonic()
        last_s = samples.looked_into_s
        samples.arrivals_s.append(now_s)
        samples.largest_bytes = max(samples.largest_bytes, len(data))
        if now_s - last_s < _LOOK_INTO_EVERY_S:
            return
        samples.looked_into_s = now_s
        message = samples.last = deserialize_message(data, kind)
        stamp = getattr(getattr(message, "header", None), "stamp", None)
        if stamp is not None:
            stamp_ns = stamp.sec * 10**9 + stamp.nanosec
            if stamp_ns:
                samples.ages_s.append((self.get_clock().now().nanoseconds - stamp_ns) * 1e-9)
            else:
                samples.unstamped += 1
        if decode is not None and not samples.complaint[0]:
            try:
                decode(message)
            except Exception as e:  # whatever the decoder raises on, the policy node cannot use either
                samples.complaint = (str(getattr(e, "code", "MESSAGE_INVALID")), str(e))


def _all_done(futures: list[Future]) -> bool:
    return all(future.done() for future in futures)


def _full(name: str, namespace: str) -> str:
    return f"{namespace.rstrip('/')}/{name}"


def _endpoint(info: TopicEndpointInfo) -> Endpoint:
    profile = info.qos_profile
    reliability, durability = profile.reliability.name.lower(), profile.durability.name.lower()
    return Endpoint(_full(info.node_name, info.node_namespace), info.topic_type, reliability, durability)


def run(argv: list[str]) -> int:
    """Run with a command line (program name first); return the exit status."""
    try:
        arguments, namespace = parse_arguments(remove_ros_args(argv)[1:])
    except SystemExit as e:
        return int(e.code or 0)
    except Exception as e:  # rclpy has an exception of its own for each fault, none of them public
        return _usage(f"ARGUMENTS_INVALID: {e}")
    doctor: Doctor | None = None
    try:
        rclpy.init(args=argv)
        doctor = Doctor(arguments, namespace)
        settings = doctor.settings
        findings = _examine_list(doctor) if settings.topics else examine(doctor, settings)
    except (KeyboardInterrupt, ExternalShutdownException):
        return 130
    except ParameterError as e:
        return _usage(f"{e.code}: {e}")
    except Exception as e:  # as above
        if doctor is not None:
            raise
        return _usage(f"ARGUMENTS_INVALID: {e}")
    finally:
        if doctor is not None:
            doctor.close()
        rclpy.try_shutdown()
    sys.stdout.write((report_json if settings.json else report)(findings) + "\n")
    return exit_status(findings)


def _examine_list(doctor: Doctor) -> list[Finding]:
    """Check a recorded list of topics; names are expanded and remapped as the policy node's are."""
    node = doctor.settings.policy_node.rpartition("/")[2]
    return examine_list(lambda topic, ns: doctor.full_name(topic, node, ns), doctor.namespace, doctor.settings)


def _usage(reason: str) -> int:
    sys.stderr.write(f"doctor: error: {' '.join(reason.split())}\n")
    return USAGE


def main() -> None:
    """Entry point of ``ros2 run vla_ota doctor``."""
    sys.exit(run(sys.argv))


if __name__ == "__main__":
    main()
