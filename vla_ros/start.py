# SPDX-License-Identifier: Apache-2.0
"""The executables' first code: what a signal or a missing module does while the rest is being imported. Standard library only."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import NoReturn

REFUSED = os.EX_CONFIG
"""Exit status (78) of a program that its next start would refuse in the same way; the launch files do not start it again."""

_FROM_PIP = ("mcap", "rfc8785", "safetensors", "semver")
"""What every robot needs and rosdep does not have (semver: not in version 3)."""
_ONLY_FOR_SOME = ("mujoco", "pydantic", "torch", "websockets")
_FROM_ROSDEP = ("PIL", "numpy", "requests", "scipy", "yaml")


def policy_node() -> None:
    """Entry point of ``ros2 run vla_ota policy_node``."""
    _run("vla_policy_node.ros.policy_node", interrupted=0)


def ota_manager() -> None:
    """Entry point of ``ros2 run vla_ota ota_manager``."""
    _run("vla_ota_manager.ros.manager_node", interrupted=0)


def fleet_bridge() -> None:
    """Entry point of ``ros2 run vla_ota fleet_bridge``."""
    _run("vla_fleet_bridge.ros.fleet_bridge", interrupted=0)


def recorder() -> None:
    """Entry point of ``ros2 run vla_ota recorder``."""
    _run("vla_recorder.ros.recorder", interrupted=0)


def sim_robot() -> None:
    """Entry point of ``ros2 run vla_ota sim_robot``."""
    _run("vla_sim.ros.sim_robot", interrupted=0)


def doctor() -> None:
    """Entry point of ``ros2 run vla_ota doctor``."""
    _run("vla_doctor.ros.doctor", interrupted=130)


def vla_checkpoint() -> None:
    """Entry point of ``vla-checkpoint``."""
    _run("vla_policy_node.desk.cli", interrupted=130)


def vla_contract() -> None:
    """Entry point of ``vla-contract``."""
    _run("vla_contract.cli", interrupted=130)


def vla_replay() -> None:
    """Entry point of ``vla-replay``."""
    _run("vla_policy_node.replay.ros.cli", interrupted=130)


def vla_evidence() -> None:
    """Entry point of ``vla-evidence``."""
    _run("vla_evidence.cli", interrupted=130)


def _run(module: str, *, interrupted: int) -> NoReturn:
    """Import a module and run its ``main``. ``interrupted``: exit status after Ctrl-C; a node was asked to end, and did."""
    before = {
        number: signal.signal(number, lambda *_: os._exit(interrupted)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        main = importlib.import_module(module).main
    except ImportError as e:
        sys.stderr.write(f"[FATAL] [{os.path.basename(sys.argv[0])}]: {_missing(e)}\n")  # noqa: PTH119
        sys.exit(REFUSED)
    if interrupted:  # a tool: its own main says what Ctrl-C does
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.exit(main())


def _missing(error: ImportError) -> str:
    name = (error.name or "").partition(".")[0]
    if name in _FROM_PIP or name in _ONLY_FOR_SOME:
        wanted = [*_FROM_PIP, *(n for n in _ONLY_FOR_SOME if n == name)]
        packages = " ".join("'semver>=3'" if n == "semver" else n for n in wanted)
        advice = f"pip install {packages} in a virtual environment, and build the package there"
    elif name in _FROM_ROSDEP:
        advice = "rosdep install --from-paths src --ignore-src -y"
    else:
        advice = "source the workspace (install/setup.bash)"
    return f"MODULE_MISSING: {error} ({sys.executable}): {advice}; see README, With ROS 2 installed"
