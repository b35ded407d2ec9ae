# SPDX-License-Identifier: Apache-2.0
"""examples/workspace as a user has it: built by colcon, with a policy type of its own, which drives the simulated arm."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from support.launch_stand_in import stand_in_for_launch
from support.ros import NodeProcess, RosHarness
from vla_ota.msg import PolicyStatus
from vla_ota.srv import SwapModel

from vla_ros import qos

WORKSPACE = Path(__file__).parents[2] / "examples" / "workspace"
PATIENCE_S = 60.0


@dataclass
class Built:
    """The workspace, built."""

    packages: Path  # where Python finds them
    share: Path
    executables: Path
    environment: dict[str, str]

    def bundle(self, out: Path, version: str, *target: float) -> Path:
        command = [self.executables / "make_bundle", "--out", out, "--version", version, "--target", *map(str, target)]
        subprocess.run(
            [*map(str, command)], env={**os.environ, **self.environment}, check=True, timeout=100, capture_output=True
        )
        return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(WORKSPACE, folder / "ws")
    command = [sys.executable, "-m", "colcon", "--log-base", "log", "build", "--event-handlers", "console_direct-"]
    done = subprocess.run(command, cwd=folder / "ws", check=False, timeout=110, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prefix = folder / "ws" / "install" / "reach_robot"
    (site,) = prefix.glob("lib/python*/site-packages")
    environment = {"PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}  # what setup.bash does
    yield Built(site, prefix / "share" / "reach_robot", prefix / "lib" / "reach_robot", environment)


def parameters(built: Built, node: str) -> dict[str, Any]:
    document = yaml.safe_load((built.share / "config" / "params.yaml").read_text())
    return dict(document[f"/**/{node}"]["ros__parameters"])


def test_the_workspaces_own_policy_drives_the_arm_and_is_changed_in_motion(
    built: Built, ros_domain: int, tmp_path: Path
) -> None:
    first, second = (0.6, 0.8, -1.2), (-0.6, 0.8, -1.2)
    policy = {
        **parameters(built, "policy_node"),
        "contract": str(built.share / "config" / "reach_robot.contract.yaml"),
        "model_path": str(built.bundle(tmp_path / "bundles" / "1.0.0", "1.0.0", *first)),
        "bundle_roots": [str(tmp_path / "bundles")],
        "worker_paths": [str(built.packages)],  # from the launch file, see below
        "status_period_s": 0.2,
        "shadow_chunks": 0,  # it wants another place, which a shadow would refuse
    }
    with (
        NodeProcess("vla_sim.ros.sim_robot", ros_domain, tmp_path, parameters=parameters(built, "sim_robot")),
        NodeProcess(
            "vla_policy_node.ros.policy_node", ros_domain, tmp_path, parameters=policy, environment=built.environment
        ),
        RosHarness(ros_domain) as ros,
    ):
        status = ros.subscribe(PolicyStatus, "policy_node/status", qos.LATCHED_EACH)
        joints = ros.subscribe(JointState, "joint_states", qos.SENSORS)
        there = lambda target: lambda m: np.allclose(m.position, target, atol=0.05)  # noqa: E731
        status.wait(lambda m: m.active_version == "1.0.0", PATIENCE_S, "1.0.0 loaded")
        assert ros.call(Trigger, "policy_node/resume").success
        joints.wait(there(first), PATIENCE_S, "the first target")
        path = str(built.bundle(tmp_path / "bundles" / "1.1.0", "1.1.0", *second))
        done = ros.call(SwapModel, "policy_node/swap_model", SwapModel.Request(bundle_path=path), PATIENCE_S)
        assert done.success and done.active_version == "1.1.0", done.message
        joints.wait(there(second), PATIENCE_S, "the second target")


def test_its_launch_file_starts_the_policy_and_the_arm_with_its_own_files(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_launch(monkeypatch)
    monkeypatch.syspath_prepend(built.packages)
    shares = {"reach_robot": str(built.share), "vla_ota": str(WORKSPACE.parents[1])}
    monkeypatch.setattr("ament_index_python.packages.get_package_share_directory", shares.__getitem__)
    file = built.share / "launch" / "reach_robot.launch.py"
    spec = importlib.util.spec_from_file_location("reach_robot_launch", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    *own, included, arm = module.generate_launch_description().values[0]
    defaults = {argument.values[0]: argument.named["default_value"] for argument in own}
    assert Path(defaults["contract"]).is_file() and Path(defaults["params_file"]).is_file()
    assert dict(included.named["launch_arguments"])["worker_paths"] == str(built.packages)
    assert Path(included.values[0].values[0]).is_file() and arm.executable == "sim_robot"
