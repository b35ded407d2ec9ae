# SPDX-License-Identifier: Apache-2.0
"""A shadow-only node on real ROS: no command publisher, no permission, and every chunk for whoever wants to look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters
from support.policy_rig import PolicyRig
from support.scripted import scripted_bundle
from vla_ota.msg import ShadowActions

from vla_ros import qos


def test_a_shadow_only_node_publishes_what_it_would_do_and_has_no_way_to_the_robot(
    ros_domain: int, tmp_path: Path
) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0", offset=(0.3, 0.1), amplitude=0.0, horizon=16)
    locked = {"motion_required": True, "auto_resume": False}  # nobody permits motion, nobody resumes
    with PolicyRig(ros_domain, tmp_path, model_path=str(tmp_path / "a"), contract=locked, shadow_only=True) as rig:
        shown = rig.ros.subscribe(ShadowActions, "policy_node/shadow_actions", qos.EVENTS)
        diagnostics = rig.ros.subscribe(DiagnosticArray, "/diagnostics")
        chunk = shown.wait(what="a chunk in shadow")
        assert (chunk.version, list(chunk.channels), list(chunk.units)) == ("1.0.0", ["j1", "j2"], ["rad", "rad"])
        assert (chunk.execute, chunk.period_s, len(chunk.actions)) == (8, 0.02, 32)
        assert np.allclose(np.reshape(chunk.actions, (16, 2)), [0.3, 0.1], atol=1e-6)
        assert rig.wait_running("1.0.0").shadow_only

        def difference(message: DiagnosticArray) -> dict[str, str]:
            found = [s for s in message.status if s.name == "policy_node: shadow"]
            return {v.key: v.value for s in found for v in s.values if v.value != "nan"}

        told = difference(diagnostics.wait(lambda m: bool(difference(m)), what="the difference"))
        assert np.allclose([float(told["j1 [rad]"]), float(told["j2 [rad]"])], [0.3, 0.1], atol=1e-3)

        assert rig.ros.node.count_publishers("commands") == 0 and rig.robot.commands == []
        assert "_policy_node_control" not in rig.ros.node.get_node_names()
        acting = Parameter(name="shadow_only", value=ParameterValue(type=1, bool_value=False))
        reply = rig.ros.call(SetParameters, "policy_node/set_parameters", SetParameters.Request(parameters=[acting]))
        assert not reply.results[0].successful
