# SPDX-License-Identifier: Apache-2.0
"""``python -m vla_sim.fleet.flywheel --out build/demo-flywheel``: plays the story, prints it, writes report and picture.

Exits with 0 if everything has happened as it should, with 1 and a list of what did not otherwise.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from vla_fleet.client import Json
from vla_learning.simulate.newcomer import make_newcomer
from vla_sim.bundle import NAME
from vla_sim.dds import DEMO_DOMAINS, NoDomainError, claim_domain
from vla_sim.demo.command import run_command
from vla_sim.demo.processes import DemoError, Processes
from vla_sim.fleet.flywheel.chapters import CHAPTERS
from vla_sim.fleet.flywheel.checks import problems, told
from vla_sim.fleet.flywheel.picture import draw
from vla_sim.fleet.flywheel.report import make_report
from vla_sim.fleet.flywheel.ros.tasks import Tasks
from vla_sim.fleet.flywheel.stage import ROBOTS, FlywheelStage
from vla_sim.fleet.play.arm import start_arm
from vla_sim.fleet.play.stage import play, tell_end
from vla_sim.fleet.play.watch import Watch
from vla_sim.fleet.server import FleetServer

REPORT, PICTURE = "report.json", "flywheel.png"
_CONTRACT = Path(__file__).resolve().parents[3] / "config" / "sim_arm.contract.yaml"
_OWN: dict[str, dict[str, Any]] = {
    "sim_robot": {"camera_rate_hz": 15.0, "operator_after_s": 3.5, "run_tasks": False},
    "policy_node": {"load_timeout_s": 300.0},
    "recorder": {"upload": "all", "upload_only_idle": False},  # a robot's tasks follow each other within 0.2 s
}
"""Parameters of these robots; with ``recorder`` a robot has one."""
_HEARTBEAT_S, _START_S, _SEED = 5.0, 120.0, 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration and return its exit status."""
    what = "Robots fail at a new colour, an operator corrects them, a policy is trained, and the fleet can do it."
    return run_command(_run, "python -m vla_sim.fleet.flywheel", what, "build/demo-flywheel", arguments)


def _run(out: Path) -> int:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    console = Console(highlight=False)
    with ExitStack() as stack:
        try:
            stage = _set_up(stack, out, console)
        except (DemoError, NoDomainError, RuntimeError) as e:
            console.print(f"The demonstration could not begin: {e}", style="bold red", markup=False)
            return 1
        play(CHAPTERS, stage)
        report = make_report(stage)
    report["problems"] = problems(report)
    (out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(report, out / PICTURE)
    _print_success(console, report["success"])
    return tell_end(console, out, PICTURE, REPORT, report["problems"])


def _print_success(console: Console, success: Json) -> None:
    console.print("\nSuccess without an operator, with its 95 % interval", style="bold")
    for part, name in (("new", "new colour"), ("old", "old colours"), ("all", "all tasks")):
        rates = [told(success[when][part]) for when in ("before", "after") if part in success[when]]
        console.print(f"  {name:12} {' -> '.join(rates)}", markup=False, soft_wrap=True)


def _set_up(stack: ExitStack, out: Path, console: Console) -> FlywheelStage:
    """Start the server and the robots, enrol them by codes, and wait until all are connected."""
    bundles = out / "bundles" / NAME
    bundles.mkdir(parents=True)
    base = make_newcomer(bundles / "1.0.0", _SEED)
    domain = stack.enter_context(claim_domain(DEMO_DOMAINS))
    environment = {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    server = FleetServer(out / "server", _HEARTBEAT_S, environment=environment)
    stack.callback(lambda: (out / "server.log").write_text(server.log))
    stack.enter_context(server)
    client = stack.enter_context(server.client())
    processes = stack.enter_context(Processes(out / "logs", environment))
    tasks = stack.enter_context(Tasks(domain, ROBOTS))
    watch = stack.enter_context(Watch(client, console, lambda: "; ".join(processes.ended())))
    watch.say("demo", f"starts vla-fleet serve and {len(ROBOTS)} robots, six processes each, in ROS domain {domain}")
    for name in ROBOTS:
        start_arm(processes, name, out, _CONTRACT, server.url, client.make_code(name, "arms"), _OWN)
    stage = FlywheelStage(
        server=server, client=client, processes=processes, watch=watch, folder=out, tasks=tasks, base=base
    )
    watch.wait(lambda seen: all(seen.get(n, {}).get("online") for n in ROBOTS), "every robot to connect", _START_S)
    return stage


if __name__ == "__main__":
    raise SystemExit(main())
