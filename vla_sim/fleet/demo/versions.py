# SPDX-License-Identifier: Apache-2.0
"""The versions that the demonstration publishes, for arms that run at 20 Hz, and how each does on a simulated robot."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from vla_checkpoint import load_manifest, write_manifest
from vla_sim.demo.processes import DemoError
from vla_sim.fleet.simulated_robot import Behaviour

RATE_HZ = 20.0
FIRST, BETTER, WORSE, CANDIDATE = "1.0.0", "1.1.0", "1.3.0", "1.4.0"
BEHAVIOURS = {
    FIRST: Behaviour(success=0.65, duration_s=12.0),
    BETTER: Behaviour(success=0.87, duration_s=12.0),
    WORSE: Behaviour(success=0.60, duration_s=12.0),
    CANDIDATE: Behaviour(success=0.98, duration_s=12.0),
}
"""Of simulated robots. The bundles themselves are all good: what is worse about one shows only in how its episodes end."""
_CONTRACT = Path(__file__).resolve().parents[3] / "config" / "sim_arm.contract.yaml"
_RECIPE_LIMIT_S = 120.0


def make_versions(folder: Path) -> dict[str, Path]:
    """Make the bundles; return version → folder. Raises DemoError if a recipe fails."""
    command = [sys.executable, "-m", "vla_sim.recipes", "--out", str(folder)]
    try:
        done = [*command, "--versions", *(version for version in BEHAVIOURS if version != FIRST)]
        subprocess.run(done, capture_output=True, text=True, timeout=_RECIPE_LIMIT_S, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as e:
        raise DemoError(f"the versions could not be made: {e} {str(e.stderr or '')[-500:]}") from e
    bundles = {path.name: path for path in (folder / "reach_block").iterdir()}
    for bundle in bundles.values():
        manifest = load_manifest(bundle)
        write_manifest(bundle, replace(manifest, action=replace(manifest.action, rate_hz=RATE_HZ)))
    return bundles


def write_contract(path: Path) -> Path:
    """Write the simulated arm's contract for that rate; return its path."""
    text = _CONTRACT.read_text(encoding="utf-8")
    path.write_text(text.replace("fps: 50 ", f"fps: {RATE_HZ:g} "), encoding="utf-8")
    return path
