"""The tests' own probe: it gets what was latched, replies and feedback, and says what it waited for in vain."""

from __future__ import annotations

import pytest
from std_msgs.msg import String
from std_srvs.srv import Trigger
from support.ros import RosHarness
from support.waits import wait_for

from vla_ros import qos


def test_the_probe_meets_latched_topics_services_and_bounded_waits(ros_domain: int) -> None:
    with RosHarness(ros_domain, "server") as server, RosHarness(ros_domain, "probe") as probe:
        server.advertise(String, "word", qos.LATCHED, readers=0).publish(String(data="latched"))
        server.on_executor(
            lambda: server.node.create_service(
                Trigger, "hello", lambda request, response: Trigger.Response(success=True, message="hi")
            )
        )
        assert probe.subscribe(String, "word", qos.LATCHED_EACH).wait().data == "latched"
        assert probe.call(Trigger, "hello").message == "hi"
        with pytest.raises(AssertionError, match=r"waited 0\.1 s for a greeting"):
            probe.subscribe(String, "silence").wait(timeout_s=0.1, what="a greeting")
        with pytest.raises(AssertionError, match=r"in vain for a miracle"):
            wait_for(lambda: False, "a miracle", 0.05)
