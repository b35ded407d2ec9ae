# SPDX-License-Identifier: Apache-2.0
"""``python -m vla_sim.demo --out build/demo``: runs the story, prints a timeline and tables, writes report and picture.

Exits with 0 if everything that the story expects has happened, with 1 and a list of what did not otherwise.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from vla_ota.msg import ModelStatus, PolicyStatus

from vla_checkpoint import load_manifest
from vla_sim.bundle import SHIPPED_BUNDLE
from vla_sim.checkpoint_server import Behaviour, CheckpointServer, publish_bundle
from vla_sim.dds import DEMO_DOMAINS, NoDomainError, claim_domain
from vla_sim.demo.command import run_command
from vla_sim.demo.journal import Journal, WaitError
from vla_sim.demo.picture import PictureError, draw
from vla_sim.demo.processes import DemoError, Processes
from vla_sim.demo.report import Evidence, make_report
from vla_sim.demo.ros.driver import DemoDriver
from vla_sim.demo.story import CHAPTERS, MODEL, VERSIONS, Chapter, Published, Stage
from vla_sim.demo.timeline import Timeline, tables
from vla_sim.witness import FIFO_PRIORITY, Witness

CONTRACT = Path(__file__).resolve().parents[2] / "config" / "sim_arm.contract.yaml"
CONTROL_RATE_HZ = 50.0  # of that contract
SERVER_BYTES_S = 500_000.0
REPORT, PICTURE = "report.json", "timeline.png"
_START_LIMIT_S = 60.0
_RECIPE_LIMIT_S = 120.0

# Quick, but honest. A trial takes a quarter of a minute here and minutes on a real robot, and one chunk, not four, makes an
# observation. Chunks of one episode are alike, which costs error probability; the wide tolerance gives it back: what is rolled
# back exceeds the incumbent's 95 % quantile in more than 40 % of its chunks. α is the default.
MANAGER = {
    "min_free_bytes": 64 << 20,
    "block_chunks": 1,
    "tolerated_exceedance": 0.4,
    "first_install_chunks": 10,
    "min_trial_chunks": 20,
    "min_trial_episodes": 10,
    "min_trial_time_s": 10.0,
    "status_period_s": 0.5,
    "backoff_s": 0.2,
}
# The simulated arm trembles a little when it rests on a block; that is no reversal.
POLICY = {
    "shadow_chunks": 8,
    "status_period_s": 0.5,
    "load_timeout_s": 60.0,
    "reversal_deadband": 0.05,
    "fifo_priority": FIFO_PRIORITY,
}
ROBOT = {"seed": 7, "joint_rate_hz": 50.0, "camera_rate_hz": 20.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    what = "A simulated arm changes its policy over the air while it moves, and undoes a bad one by itself."
    return run_command(_run, "python -m vla_sim.demo", what, "build/demo", arguments)


def _run(out: Path) -> int:
    for name in ("store", "registry", "versions", "logs"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (REPORT, PICTURE):
        (out / name).unlink(missing_ok=True)
    timeline = Timeline()
    journal = Journal(timeline.record)
    versions: dict[str, Published] = {}
    with ExitStack() as stack:
        witness = stack.enter_context(Witness(CONTROL_RATE_HZ))
        server = stack.enter_context(CheckpointServer(out / "registry", Behaviour(rate_bytes_s=SERVER_BYTES_S)))

        def look() -> Evidence:
            blobs = {version: published.blobs for version, published in versions.items()}
            return Evidence(journal, server, witness.late(clock=time.time), blobs, witness.fifo)

        timeline.ticks_of = lambda report: look().ticks_of(report)
        try:
            domain = stack.enter_context(claim_domain(DEMO_DOMAINS))
            environment = {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
            processes = stack.enter_context(Processes(out / "logs", environment))
            timeline.say("demo", f"starts sim_robot and policy_node in ROS domain {domain}; logs in {out / 'logs'}")
            start_manager = _start_nodes(processes, timeline, out / "store", server.base + "/")
            driver = stack.enter_context(DemoDriver(domain, journal))
            journal.give_up = lambda: "; ".join(processes.ended())
            timeline.say("demo", f"makes the versions {', '.join(VERSIONS[1:])} from {VERSIONS[0]}")
            versions.update(publish_versions(out / "versions", server.root))
            journal.wait(ModelStatus, lambda s: s.state_name == "IDLE", "the manager's status", _START_LIMIT_S)
            journal.wait(PolicyStatus, lambda s: s.control_rate_hz > 0, "the policy node's status", _START_LIMIT_S)
            stage = Stage(driver, journal, server, processes, versions, start_manager, look)
            problems = play(CHAPTERS, stage, timeline)
        except (DemoError, NoDomainError, WaitError) as e:
            problems = [f"set-up: {e}"]
        evidence = look()
    return _conclude(evidence, problems, out)


def _start_nodes(processes: Processes, timeline: Timeline, store: Path, source: str) -> Callable[[], None]:
    """Start arm, policy node and manager; return what starts the manager again."""
    store.mkdir(parents=True)
    own = {"store_dir": str(store), "model_name": MODEL, "robot_type": load_manifest(SHIPPED_BUNDLE).robot_type}
    manager = {**MANAGER, **own, "allowed_sources": [source]}

    def start_manager() -> None:
        timeline.say("demo", "starts ota_manager")
        processes.start("ota_manager", "vla_ota_manager.ros.manager_node", manager)

    processes.start("sim_robot", "vla_sim.ros.sim_robot", ROBOT)
    policy = {**POLICY, "contract": str(CONTRACT), "store_dir": str(store)}
    processes.start("policy_node", "vla_policy_node.ros.policy_node", policy)
    start_manager()
    return start_manager


def publish_versions(folder: Path, registry: Path) -> dict[str, Published]:
    """Make the demo's versions and lay them out for the server. Raises DemoError if a recipe fails."""
    command = [sys.executable, "-m", "vla_sim.recipes", "--out", str(folder), "--versions", *VERSIONS[1:]]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=_RECIPE_LIMIT_S, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as e:
        raise DemoError(f"the versions could not be made: {e} {str(e.stderr or '')[-500:]}") from e
    published: dict[str, Published] = {}
    seen: set[str] = set()
    for version in VERSIONS:
        bundle = folder / MODEL / version
        manifest = load_manifest(bundle)
        path = publish_bundle(registry, bundle)
        own = {f"/blobs/sha256/{e.sha256}": e.size for e in manifest.files if e.sha256 not in seen}
        seen |= {entry.sha256 for entry in manifest.files}
        published[version] = Published(path, manifest.digest, own)
    return published


def play(chapters: Sequence[Chapter], stage: Stage, timeline: Timeline) -> list[str]:
    """Play the chapters one after the other; return what did not happen. What cannot be gone on with ends the story."""
    problems: list[str] = []
    for number, chapter in enumerate(chapters, start=1):
        timeline.chapter(number, chapter.title)
        begun_s = time.monotonic()
        try:
            chapter.act(stage)
            found = chapter.expect(stage.look())
            ended = False
        except (DemoError, WaitError) as e:
            found, ended = [str(e)], True
        problems += [f"chapter {number}: {problem}" for problem in found]
        for problem in found:
            timeline.say("demo", f"NOT AS EXPECTED: {problem}")
        if ended:
            left = len(chapters) - number
            return problems + ([f"the last {left} chapters were not played"] if left else [])
        if not found:
            timeline.say("demo", f"as expected, in {time.monotonic() - begun_s:.1f} s")
    return problems


def _conclude(evidence: Evidence, problems: Sequence[str], out: Path) -> int:
    report = {**make_report(evidence), "problems": problems}
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    lines = ["", *tables(report), ""]
    try:
        draw(evidence, report, out / PICTURE)
        lines.append(f"Picture: {out / PICTURE}; report: {out / REPORT}")
    except PictureError as e:
        lines.append(f"No picture: {e}. Report: {out / REPORT}")
    if problems:
        lines += ["The demo did NOT go as expected:", *(f"  - {problem}" for problem in problems)]
        lines.append(f"Logs of the nodes: {out / 'logs'}/*.log")
    else:
        if report["machines_ticks"]:
            lines.append(
                f"Note: this machine stalls, for {report['witness_worst_late_ms']:.0f} ms at the longest: "
                f"{report['machines_ticks']} of {report['ticks']} ticks were missed in that, as a process that only sleeps shows."
            )
        longest_s = max(rollback["duration_s"] for rollback in report["rollbacks"])
        lines.append(
            f"The arm worked at {report['control_rate_hz']:g} Hz through {len(report['swaps'])} swaps and "
            f"{len(report['rollbacks'])} rollbacks, none of which cost a control tick; the slowest rollback took "
            f"{longest_s:.2f} s and no download; it ends with {report['final_version']}."
        )
    print("\n".join(lines), flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
