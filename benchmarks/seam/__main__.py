# SPDX-License-Identifier: Apache-2.0
"""What a moving arm feels of a swap: ``python -m benchmarks.seam --out build/bench [--picture docs/pictures/seam.png]``.

The simulated arm does its tasks while two policies take turns, each trained by itself from another seed: the shipped one and one
that is trained here first, unless ``build/seam`` has it (some minutes).
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe, sentence
from benchmarks.results import Table, finish
from benchmarks.seam.arm import MovingArm
from benchmarks.seam.picture import draw
from benchmarks.seam.replayed import Switch, switches
from vla_checkpoint import load_manifest
from vla_policy_node.contract.model import Contract
from vla_policy_node.generations.swapping import Report, SwapRequest
from vla_sim.bundle import NAME, SHIPPED_BUNDLE

_OTHER = Path("build/seam") / NAME / "2.0.0"
_TRAINING = ("--seed", "1", "--scale", "0.3", "--version", "2.0.0")
_SPEED_RAD_S = 0.2  # of a joint: the arm is under way
_LAST_S = 1.5
COLUMNS = (
    ("waited", "ticks waited", ".0f"),
    ("apart_boundary", "apart at the boundary, rad", ".3f"),
    ("apart", "where it switched, rad", ".3f"),
    ("change_boundary", "largest change of step, boundary, rad", ".4f"),
    ("change", "where it switched, rad", ".4f"),
    ("seam_jump", "seam_jump, rad", ".4f"),
    ("typical_step", "typical_step, rad", ".4f"),
    ("starved", "starved", ".0f"),
)


def train(folder: Path) -> None:
    """Train the other policy, unless it is there."""
    if not (folder / "manifest.json").exists():
        print(f"training {folder}", flush=True)
        command = [sys.executable, "-m", "vla_sim.train", "--out", str(folder), *_TRAINING]
        subprocess.run(command, check=True, timeout=3600.0)


def run(arm: MovingArm, other: Path, swaps: int) -> list[Report]:
    """Swap from one to the other so often, each time while the arm is under way in a new task."""
    folders, reports = (other, SHIPPED_BUNDLE), []
    arm.engine.prepare(str(other), "", lambda state, share: None, lambda: False)
    for n in range(swaps):
        tasks = arm.runner.counts.started + 1
        arm.wait_for(lambda: arm.runner.counts.started >= tasks and _moves(arm), "the arm under way")  # noqa: B023
        _, report = arm.engine.swap(SwapRequest(digest=load_manifest(folders[n % 2]).digest, at="CHUNK"))
        assert report is not None
        reports.append(report)
    time.sleep(_LAST_S)
    return reports


def _moves(arm: MovingArm) -> bool:
    (before_s, before), (now_s, now) = arm.joints[-10], arm.joints[-1]
    return bool(abs(now - before).max() / (now_s - before_s) > _SPEED_RAD_S)


def table(found: list[Switch], reports: list[Report], contract: Contract) -> Table:
    """The swaps one by one, and all of them."""
    made = Table(
        "What the boundary would have cost by the same chunks, and what the tick that was chosen cost", COLUMNS
    )
    rows = [
        {
            "waited": switch.plan - switch.boundary,
            "apart_boundary": switch.at_boundary.apart,
            "apart": switch.chosen.apart,
            "change_boundary": switch.at_boundary.change,
            "change": switch.chosen.change,
            "seam_jump": report.seam_jump,
            "typical_step": report.typical_step,
            "starved": report.starved,
        }
        for switch, report in zip(found, reports, strict=True)
    ]
    for n, (row, report) in enumerate(zip(rows, reports, strict=True), 1):
        made.row(f"{n:2d}: {report.from_version} to {report.to_version}").add(**row)
    for row in rows:
        made.row("all").add(**row)
    rate, step = (min(getattr(c.limits, name) for c in contract.channels) for name in ("rate", "step"))
    largest = f"A command changes by {rate * contract.period_s:g} rad in a tick at most"
    made.notes.append(f"{largest}; a policy that jumps by more than {step:g} rad is refused.")
    return made


def main() -> int:
    """Run, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the JSON file")
    parser.add_argument("--picture", type=Path, help="default: seam.png in that folder")
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=3, help="of tasks and layouts")
    arguments = parser.parse_args()
    logging.getLogger("vla_policy_node").setLevel(logging.ERROR)
    machine = describe()
    print(sentence(machine), flush=True)
    train(_OTHER)
    with tempfile.TemporaryDirectory() as folder:
        roots = (SHIPPED_BUNDLE.parent, _OTHER.parent)
        with MovingArm(SHIPPED_BUNDLE, roots, Path(folder) / "commands", arguments.seed) as arm:
            reports = run(arm, _OTHER.resolve(), arguments.swaps)
    found = switches(arm.ticks, arm.chunks, arm.contract)
    settings = {"swaps": arguments.swaps, "seed": arguments.seed, "tasks done": arm.runner.counts.succeeded}
    finish("seam", arguments.out, machine, settings, [table(found, reports, arm.contract)])
    draw(arm, found, reports, arguments.picture or arguments.out / "seam.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
