# SPDX-License-Identifier: Apache-2.0
"""``make_bundle``: what training would write, as a bundle: config.json, model.safetensors, stats.json, manifest.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from vla_checkpoint import Channel, build_manifest, write_manifest

ROBOT_TYPE, RATE_HZ, JOINTS = "reach_robot", 50.0, ("j1", "j2", "j3")  # as in config/reach_robot.contract.yaml
STEP_RAD = 0.02  # an action: 1 rad/s


def make_bundle(out: Path, version: str, target: list[float]) -> str:
    """Write the bundle into the new folder ``out``; return its digest."""
    out.mkdir(parents=True)
    numbers = {"shape": [len(JOINTS)]}
    config = {
        "type": "reach",
        "input_features": {"observation.state": {"type": "STATE", **numbers}},
        "output_features": {"action": {"type": "ACTION", **numbers}},
        "normalization_mapping": {"STATE": "IDENTITY", "ACTION": "IDENTITY"},
        "chunk_size": 50,
        "n_action_steps": 25,
        "step": STEP_RAD,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))
    (out / "stats.json").write_text("{}")
    save_file({"target": np.asarray(target, np.float32)}, out / "model.safetensors")
    channels = [Channel(joint, "rad", "absolute") for joint in JOINTS]
    manifest = build_manifest(
        out,
        name="reach",
        version=version,
        policy_type="reach",
        robot_type=ROBOT_TYPE,
        channels=channels,
        rate_hz=RATE_HZ,
    )
    write_manifest(out, manifest)
    return manifest.digest


def main() -> None:
    """Entry point of ``ros2 run reach_robot make_bundle``."""
    parser = argparse.ArgumentParser(description="Make a bundle of policy type reach.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--version", required=True)
    parser.add_argument("--target", type=float, nargs=len(JOINTS), required=True, metavar="RAD")
    given = parser.parse_args()
    print(f"{given.out}: reach {given.version} {make_bundle(given.out, given.version, given.target)}")


if __name__ == "__main__":
    main()
