# SPDX-License-Identifier: Apache-2.0
"""Each room imports only what DESIGN allows it: ROS stays in folders called ros/, torch away from the control loop."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]

ROS = {
    "rclpy", "vla_ota", "std_msgs", "std_srvs", "sensor_msgs", "geometry_msgs", "trajectory_msgs", "diagnostic_msgs",
    "builtin_interfaces", "lifecycle_msgs", "action_msgs", "rcl_interfaces", "rosidl_runtime_py", "unique_identifier_msgs",
}  # fmt: skip

ROOMS = {
    "vla_adaptation": {
        "requests",
        "vla_checkpoint",
        "vla_learning.episodes.format",
        "vla_policy_node.worker.environment",
        "vla_recorder",
        "vla_ros",
    },
    "vla_checkpoint": {"numpy", "pcodec", "safetensors", "rfc8785", "semver", "vla_ros.plain", "zstandard"},
    "vla_contract": {"yaml", "vla_checkpoint", "vla_doctor", "vla_policy_node", "vla_ros"},
    "vla_evidence": {"numpy", "scipy", "vla_ros.drawing"},
    "vla_ros": {"numpy"},
    "vla_policy_node": {"numpy", "safetensors", "yaml", "vla_checkpoint", "vla_ros"},
    "vla_recorder": {
        "PIL",
        "mcap",
        "numpy",
        "requests",
        "vla_learning.episodes.format",
        "vla_policy_node.contract",
        "vla_policy_node.decoding",
        "vla_policy_node.errors",
        "vla_ros",
    },
    "vla_ota_manager": {"numpy", "requests", "tuf", "urllib3", "vla_checkpoint", "vla_evidence", "vla_ros"},
    "vla_doctor": {"numpy", "yaml", "vla_checkpoint", "vla_ota_manager", "vla_policy_node", "vla_recorder", "vla_ros"},
    "vla_fleet": {
        "alembic",
        "asyncpg",
        "fastapi",
        "httpx",
        "jinja2",
        "markupsafe",  # what Jinja escapes with
        "nats",
        "obstore",
        "prometheus_client",
        "pydantic",
        "rich",
        "sqlalchemy",
        "starlette",  # what FastAPI is made of: its types of ASGI messages
        "structlog",
        "typer",
        "uvicorn",
        "vla_checkpoint",
        "vla_evidence",
        "vla_learning",
    },
    "vla_fleet_bridge": {"requests", "websockets", "pydantic", "vla_fleet.protocol", "vla_ros"},
    "vla_learning": {"PIL", "mcap", "numpy", "pyarrow", "zstandard", "vla_checkpoint", "vla_evidence"},
    "vla_sim": {"numpy", "mujoco", "safetensors", "vla_checkpoint", "vla_policy_node.policies", "vla_ros"},
}
"""Third-party and sibling packages that a room may import, beside the standard library and itself."""

EXTRA = {
    # Who signs.
    "vla_checkpoint/repository/": {"cryptography", "securesystemslib", "tuf"},
    "vla_fleet/registry/signing.py": {"securesystemslib", "tuf"},
    "vla_fleet/server/line_protocol.py": {"websockets"},  # of uvicorn's protocol: how it compresses
    "vla_adaptation/training.py": {"vla_learning"},  # the training process
    "vla_fleet_bridge/": {"vla_fleet"},  # its protocol: ``from vla_fleet import protocol``
    "vla_policy_node/pictures.py": {"PIL"},  # in the node: neither the control process nor a worker decodes
    # Whoever starts a worker or trains may use torch; so may policies, which run in workers.
    "vla_policy_node/worker/": {"torch"},
    "vla_policy_node/policies/": {"torch"},
    "vla_policy_node/policies/lerobot/": {"draccus", "lerobot"},
    # Replay of a recording at a desk: reads MCAP, draws what differs.
    "vla_policy_node/replay/": {"PIL", "mcap"},
    "vla_policy_node/replay/plot.py": {"matplotlib"},
    "vla_sim/train.py": {"torch"},
    # One command line for all that is done at a desk, a robot's store included.
    "vla_policy_node/desk/cli.py": {"vla_ota_manager.store"},
    # Training: policies, their own loader, and packages for plots within functions.
    "vla_learning/adapters/": {"safetensors", "scipy"},
    "vla_learning/running.py": {"vla_policy_node.errors", "vla_policy_node.policies", "vla_policy_node.worker.loading"},
    "vla_learning/training/": {"safetensors", "torch", "vla_policy_node.policies"},
    "vla_learning/gate/": {"scipy", "vla_policy_node.policies", "vla_sim"},
    "vla_learning/simulate/federated.py": {"safetensors"},
    "vla_learning/simulate/": {"matplotlib", "torch", "vla_policy_node.policies", "vla_sim"},
    "vla_learning/training/log.py": {"matplotlib", "tqdm"},
    "vla_learning/datasets/ray_engine.py": {"ray"},
    # Analysis at a desk: within functions, never when the module is imported (tested below).
    "vla_evidence/analysis.py": {"tqdm"},
    "vla_evidence/simulate/plots.py": {"matplotlib"},
    # The demo reads what the nodes report; it draws a picture where matplotlib is there.
    "vla_sim/demo/": {"vla_ota"},
    "vla_sim/demo/picture.py": {"matplotlib"},
    # A fleet is simulated on the real line; its demonstration prints as people see it.
    "vla_sim/fleet/": {"vla_evidence", "vla_fleet", "vla_fleet_bridge"},
    "vla_sim/fleet/demo/": {"rich"},
    "vla_sim/fleet/demo/picture.py": {"matplotlib"},
    "vla_sim/fleet/play/": {"rich"},
    "vla_sim/fleet/flywheel/": {"rich", "vla_learning"},
    "vla_sim/fleet/flywheel/picture.py": {"matplotlib"},
}


def sources() -> Iterator[Path]:
    for room in ROOMS:
        yield from sorted((TOP / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def allowed(name: str, path: Path) -> bool:
    relative = path.relative_to(TOP).as_posix()
    room = relative.split("/")[0]
    names = set(ROOMS[room])
    for prefix, more in EXTRA.items():
        if relative.startswith(prefix):
            names |= more
    if "ros" in path.relative_to(TOP).parts[1:-1] or room == "vla_ros":
        names |= ROS
    top = name.split(".")[0]
    return top in sys.stdlib_module_names or top == room or any(name == n or name.startswith(n + ".") for n in names)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = [path for path in sources() if path.relative_to(TOP).parts[0] == room]
    assert files
    broken = [
        f"{path.relative_to(TOP)}: {name}" for path in files for name in imported(path) if not allowed(name, path)
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "module", ["vla_policy_node.control.process", "vla_policy_node.ros.command_publisher", "vla_policy_node.engine"]
)
def test_the_control_loop_and_the_engine_come_up_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=TOP, timeout=110, check=False).returncode == 0


@pytest.mark.parametrize(
    "module", ["vla_evidence", "vla_evidence.cli", "vla_evidence.canary.judge", "vla_ota_manager.trial.judge"]
)
def test_evidence_comes_up_without_the_packages_for_analysis(module: str) -> None:
    """They are not on a robot, and scipy.stats takes a second of start-up."""
    heavy = "{'matplotlib', 'tqdm', 'scipy.stats'}"
    code = f"import sys, {module}; sys.exit(' '.join({heavy} & sys.modules.keys()) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, timeout=110, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module", ["vla_policy_node.engine", "vla_policy_node.control.process", "vla_ota_manager.engine"]
)
def test_an_engine_comes_up_without_ros(module: str) -> None:
    code = f"import sys, {module}; sys.exit(' '.join(m for m in sys.modules if m.split('.')[0] == 'rclpy') or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, timeout=110, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_source_file_unpickles() -> None:
    """A pickle runs code when it is read: nothing on a robot reads one."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    broken = [str(path) for path in sources() if banned & {name.split(".")[0] for name in imported(path)}]
    assert not broken
    calls = [
        str(path) for path in sources() if "torch.load(" in path.read_text() or "allow_pickle=True" in path.read_text()
    ]
    assert not calls


def test_an_executable_begins_with_the_standard_library_alone() -> None:
    """It must be there to say which module is missing, and to take a signal while the others are imported."""
    start = TOP / "vla_ros" / "start.py"
    assert {name.split(".")[0] for name in imported(start)} <= sys.stdlib_module_names
    modules = re.findall(r'_run, "([\w.]+)"', start.read_text())
    assert modules and all((TOP / (module.replace(".", "/") + ".py")).is_file() for module in modules)
