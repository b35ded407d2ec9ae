"""docs/first_hour.md, walked: its shell commands are run as they stand, and its nodes do what it shows, on real LeRobot."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import Float64MultiArray
from support.ros import NodeProcess, RosHarness
from vla_ota.msg import PolicyStatus, ShadowActions

from vla_checkpoint import load_manifest
from vla_ros import qos

pytestmark = pytest.mark.timeout(600)

TOP = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("VLA_OTA_LEROBOT_PYTHON", str(TOP / ".venv-lerobot/bin/python"))
PATIENCE_S = 120.0
NAMESPACE = "arm_1"
AT_THE_DESK = ("cp", "python3", "~/lerobot/bin/python", "vla-checkpoint")
TRIAL: dict[str, Any] = {"min_trial_episodes": 0, "min_trial_chunks": 8, "min_trial_time_s": 0.0, "min_free_bytes": 0}
"""The page's trial takes a minute; here it is enough that there is one."""


@dataclass
class Page:
    """The page's commands, in order, as a user types them."""

    commands: list[str]

    @classmethod
    def read(cls) -> Page:
        text = (TOP / "docs" / "first_hour.md").read_text()
        blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
        typed = [re.findall(r"^\$ ((?:.*\\\n)*.*)", block, flags=re.MULTILINE) for block in blocks]
        return cls([command.replace("\\\n", " ") for commands in typed for command in commands])

    def those(self, *words: str) -> list[list[str]]:
        """Return the arguments of the commands that begin with these words."""
        split = [shlex.split(command.rstrip("& "), comments=True) for command in self.commands]
        return [command for command in split if tuple(command[: len(words)]) == words]


@dataclass
class Desk:
    """A user's folder, in which the page's commands have made two bundles."""

    folder: Path
    said: dict[str, str] = field(default_factory=dict)  # command → what it printed

    def run(self, command: str) -> None:
        """Run one of the page's commands in a shell, with less to learn from and fewer steps."""
        quick = re.sub(r"--steps \d+", "--steps 40", command).replace(" record ", " record --frames 500 ")
        environment = {**os.environ, "HOME": str(self.folder), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            ["bash", "-c", quick], cwd=self.folder, env=environment, timeout=300, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        self.said[command] = done.stdout


@pytest.fixture(scope="module")
def page() -> Page:
    return Page.read()


@pytest.fixture(scope="module")
def desk(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The page up to the robot, and its second version: everything that needs no ROS."""
    assert Path(PYTHON).exists(), f"{PYTHON} is not there: run `make test-lerobot`, or set VLA_OTA_LEROBOT_PYTHON"
    desk = Desk(tmp_path_factory.mktemp("desk"))
    (desk.folder / "lerobot").symlink_to(Path(PYTHON).parents[1])
    (desk.folder / "vla_ota").symlink_to(TOP)
    for command in page.commands:
        if command.split()[0] in AT_THE_DESK and "http.server" not in command:
            desk.run(command)
    return desk


@pytest.fixture
def server(desk: Desk) -> Iterator[str]:
    """What ``python3 -m http.server`` is, on a free port."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(desk.folder / "bundles"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join(5.0)


class Arm:
    """The nodes that one ``ros2 launch`` line of the page starts; ``ros2`` itself is not here."""

    MODULES = ("vla_sim.ros.sim_robot", "vla_policy_node.ros.policy_node", "vla_ota_manager.ros.manager_node")

    def __init__(self, line: list[str], desk: Desk, domain: int, source: str) -> None:
        given = dict(word.split(":=", 1) for word in line[4:])
        launched = "".join((TOP / "launch" / name).read_text() for name in ("sim.launch.py", "robot.launch.py"))
        unknown = [name for name in given if f'"{name}"' not in launched]
        assert line[:4] == ["ros2", "launch", "vla_ota", "sim.launch.py"] and not unknown, unknown
        path = lambda text: text.replace("$HOME", str(desk.folder)).replace("$PWD", str(desk.folder))  # noqa: E731
        store = str(desk.folder / "store")
        bundle = path(given["model_path"])
        policy = {
            "contract": str(desk.folder / "sim_arm.contract.yaml"), "model_path": bundle, "store_dir": store,
            "worker_python": path(given["worker_python"]), "shadow_only": given.get("shadow_only") == "true",
            "status_period_s": 0.2,
        }  # fmt: skip
        manager = {"store_dir": store, "factory_bundle": bundle, "status_period_s": 0.2, **TRIAL}
        if "allowed_sources" in given:
            manager["allowed_sources"] = [source]
        self._nodes = [
            NodeProcess(module, domain, desk.folder / "log", parameters=parameters, namespace=f"/{given['namespace']}")
            for module, parameters in zip(self.MODULES, ({}, policy, manager), strict=True)
        ]

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *exc: Any) -> None:
        for node in reversed(self._nodes):
            node.__exit__(*exc)


def echoed(page: Page) -> set[str]:
    """Return the topics that the page looks at."""
    return {word for line in page.those("ros2", "topic", "echo") for word in line if word.startswith("/")}


def published(ros: RosHarness) -> set[str]:
    """Return the topics that somebody publishes."""
    names = [name for name, _ in ros.node.get_topic_names_and_types()]
    return {name for name in names if ros.node.count_publishers(name)}


def interface(name: str) -> Any:
    package, kind, own = name.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), own)


def test_what_check_says_on_the_page_is_what_it_says(desk: Desk) -> None:
    checked = [said for command, said in desk.said.items() if command.startswith("vla-checkpoint check")]
    assert checked and all(said.endswith("fit to be published for this robot\n") for said in checked)
    shown = (TOP / "docs" / "first_hour.md").read_text()
    for said in checked:
        for line in said.splitlines()[:-1]:
            assert line.split(":")[0] in shown, line


def test_the_policy_is_shadowed_then_acts_then_is_updated_and_taken_back(
    page: Page, desk: Desk, server: str, ros_domain: int
) -> None:
    shadowed, acting = page.those("ros2", "launch")
    running = lambda version: lambda m: m.state == PolicyStatus.STATE_RUNNING and m.active_version == version  # noqa: E731
    with RosHarness(ros_domain, namespace=NAMESPACE) as ros:
        status = ros.subscribe(PolicyStatus, "policy_node/status", qos.LATCHED)
        shown = ros.subscribe(ShadowActions, "policy_node/shadow_actions")
        diagnostics = ros.subscribe(DiagnosticArray, "/diagnostics")
        commands = ros.subscribe(Float64MultiArray, "forward_position_controller/commands", qos.SENSORS)
        with Arm(shadowed, desk, ros_domain, server):
            chunk = shown.wait(timeout_s=PATIENCE_S, what="a chunk in shadow")
            assert (chunk.version, list(chunk.channels), chunk.execute) == ("1.0.0", ["j1", "j2", "j3"], 25)
            diagnostics.wait(lambda m: any(s.name.endswith("policy_node: shadow") for s in m.status), PATIENCE_S)
            assert not commands.messages and status.last.shadow_only
            assert ros.node.count_publishers(commands.topic) == 0
            assert echoed(page) <= published(ros)

        status.clear()
        with Arm(acting, desk, ros_domain, server):
            status.wait(running("1.0.0"), PATIENCE_S, "1.0.0 acting")
            commands.wait(timeout_s=PATIENCE_S, what="a command")

            (goal,) = page.those("ros2", "action", "send_goal")
            name, kind, fields = goal[-3:]
            action, wanted = interface(kind), yaml.safe_load(fields)
            wanted["manifest_url"] = re.sub(r"http://[^/]+/", server, wanted["manifest_url"])
            wanted["manifest_sha256"] = load_manifest(desk.folder / "bundles/reach/1.1.0").digest
            result = ros.send_goal(action, name, action.Goal(**wanted), PATIENCE_S).result(PATIENCE_S)
            assert (result.success, result.state, result.version) == (True, "COMMITTED", "1.1.0"), result.message

            (call,) = page.those("ros2", "service", "call")
            name, kind, *fields = call[3:]
            service = interface(kind)
            request = service.Request(**(yaml.safe_load(fields[0]) if fields else {}))
            back = ros.call(service, name, request, PATIENCE_S)
            assert (back.success, back.from_version, back.to_version, back.warm) == (True, "1.1.0", "1.0.0", True)
            status.clear()
            status.wait(running("1.0.0"), PATIENCE_S, "1.0.0 acting again")
