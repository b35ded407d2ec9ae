# SPDX-License-Identifier: Apache-2.0
"""The executables' first code: what a signal or a missing module does while the rest is being imported. Standard library only."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from functools import partial
from typing import NoReturn

REFUSED = os.EX_CONFIG
"""Exit status (78) of a program that its next start would refuse in the same way; the launch files do not start it again."""

_FROM_PIP = ("mcap", "rfc8785", "safetensors", "semver")
"""What every robot needs and rosdep does not have (semver: not in version 3)."""
_ONLY_FOR_SOME = ("mujoco", "pydantic", "torch", "websockets")
_FROM_ROSDEP = ("PIL", "numpy", "requests", "scipy", "yaml")


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


# Entry points of `ros2 run vla_ota …`
policy_node = partial(_run, "vla_policy_node.ros.policy_node", interrupted=0)
ota_manager = partial(_run, "vla_ota_manager.ros.manager_node", interrupted=0)
fleet_bridge = partial(_run, "vla_fleet_bridge.ros.fleet_bridge", interrupted=0)
recorder = partial(_run, "vla_recorder.ros.recorder", interrupted=0)
adaptation = partial(_run, "vla_adaptation.ros.adaptation", interrupted=0)
sim_robot = partial(_run, "vla_sim.ros.sim_robot", interrupted=0)
doctor = partial(_run, "vla_doctor.ros.doctor", interrupted=130)
# … and of commands
worker_host = partial(_run, "vla_policy_node.remote.host", interrupted=130)
vla_checkpoint = partial(_run, "vla_policy_node.desk.cli", interrupted=130)
vla_contract = partial(_run, "vla_contract.cli", interrupted=130)
vla_replay = partial(_run, "vla_policy_node.replay.ros.cli", interrupted=130)
vla_evidence = partial(_run, "vla_evidence.cli", interrupted=130)
