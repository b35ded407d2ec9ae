# SPDX-License-Identifier: Apache-2.0
"""``python -m vla_sim.fleet.demo --out build/demo-fleet``: plays the story, prints a timeline, writes report and picture.

Exits with 0 if everything that the story expects has happened, with 1 and a list of what did not otherwise.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from vla_fleet.client import Client
from vla_sim.dds import DEMO_DOMAINS, NoDomainError, claim_domain
from vla_sim.demo.command import run_command
from vla_sim.demo.processes import DemoError, Processes
from vla_sim.fleet.clock import FastClock
from vla_sim.fleet.demo.chapters import CHAPTERS
from vla_sim.fleet.demo.loops import undisturbed
from vla_sim.fleet.demo.picture import draw
from vla_sim.fleet.demo.report import make_report, print_loops
from vla_sim.fleet.demo.ros.arms import Arms
from vla_sim.fleet.demo.stage import ARMS, EVERYBODY, SIMULATED, FleetStage, Work
from vla_sim.fleet.demo.versions import BEHAVIOURS, RATE_HZ, make_versions, write_contract
from vla_sim.fleet.play.arm import start_arm
from vla_sim.fleet.play.stage import play, tell_end
from vla_sim.fleet.play.watch import Watch
from vla_sim.fleet.server import FleetServer
from vla_sim.fleet.simulated_robot import SimulatedRobot
from vla_sim.witness import FIFO_PRIORITY, Witness

CLOCK_RATE = 120.0
"""The fleet's clock against the machine's: an hour of a rollout takes half a minute."""
EPISODE_S = 0.1
"""Time between two episodes of a simulated robot by the machine's clock [s]: twelve seconds of the fleet's."""
HEARTBEAT_S = 5.0
_ARM = {"joint_rate_hz": RATE_HZ, "camera_rate_hz": 10.0, "task_timeout_s": 15.0}
REPORT, PICTURE = "report.json", "fleet.png"
_START_S = 90.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration and return its exit status."""
    what = "One server and eight robots: good versions reach them all, bad ones are found and taken back."
    return run_command(_run, "python -m vla_sim.fleet.demo", what, "build/demo-fleet", arguments)


def _run(out: Path) -> int:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    logging.basicConfig(filename=out / "simulated.log")  # of the simulated robots' bridges
    console = Console(highlight=False)
    clock = FastClock(time.time(), CLOCK_RATE)
    with ExitStack() as stack:
        try:
            witness = stack.enter_context(Witness(RATE_HZ))
            stage = _set_up(stack, out, console, clock)
        except (DemoError, NoDomainError, RuntimeError) as e:
            console.print(f"The demonstration could not begin: {e}", style="bold red")
            return 1
        play(CHAPTERS, stage)
        loops = stage.arms.loops(witness.late(clock=time.time))
        for problem in undisturbed(loops):
            stage.check(False, problem)
        report = make_report(stage, loops, witness.fifo)
    (out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(report, out / PICTURE)
    console.print()
    print_loops(console, loops)
    return tell_end(console, out, PICTURE, REPORT, stage.problems)


def _set_up(stack: ExitStack, out: Path, console: Console, clock: FastClock) -> FleetStage:
    """Start the server and the robots, enrol them by codes, and wait until all are connected."""
    contract = write_contract(out / "arm.contract.yaml")
    bundles = make_versions(out / "versions")
    domain = stack.enter_context(claim_domain(DEMO_DOMAINS))
    environment = {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", **clock.environment()}
    server = FleetServer(out / "server", HEARTBEAT_S, (sys.executable, "-m", "vla_sim.fleet.fast_server"), environment)
    stack.callback(lambda: (out / "server.log").write_text(server.log))
    stack.enter_context(server)
    client = stack.enter_context(server.client())
    processes = stack.enter_context(Processes(out / "logs", environment))
    arms = stack.enter_context(Arms(domain, ARMS))
    watch = stack.enter_context(Watch(client, console, lambda: "; ".join(processes.ended())))
    watch.say(
        "demo",
        f"starts {len(EVERYBODY)} robots in ROS domain {domain}; the fleet's clock is {clock.rate:g} times as fast",
    )
    for name in ARMS:
        start_arm(
            processes,
            name,
            out,
            contract,
            server.url,
            client.make_code(name, "arms"),
            {"sim_robot": _ARM, "policy_node": {"fifo_priority": FIFO_PRIORITY}},
            "vla_sim.fleet.ros.fast_bridge",
        )
    simulated = {name: SimulatedRobot(name, BEHAVIOURS, episode_arms=True, now=clock.now) for name in SIMULATED}
    stage = FleetStage(
        clock=clock,
        server=server,
        client=client,
        processes=processes,
        arms=arms,
        watch=watch,
        simulated=simulated,
        tokens=_enrol(client),
        bundles=bundles,
        folder=out,
    )
    for name, robot in simulated.items():
        stage.connect(name)
        stack.callback(robot.disconnect)
    stack.enter_context(Work(simulated.values(), EPISODE_S))
    watch.wait(lambda seen: all(seen.get(n, {}).get("online") for n in EVERYBODY), "every robot to connect", _START_S)
    return stage


def _enrol(client: Client) -> dict[str, str]:
    """Return the tokens of the simulated robots."""
    return {name: client.enrol(client.make_code(name, "simulated"))[1] for name in SIMULATED}


if __name__ == "__main__":
    raise SystemExit(main())
