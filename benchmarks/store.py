# SPDX-License-Identifier: Apache-2.0
"""What a verified, crash-safe download costs: ``python -m benchmarks.store --out build/bench``.

A bundle of about 300 MB comes over HTTP from this machine: into our store, and as scripts do it with ``requests`` and
``sha256sum``. And ``vla_checkpoint.verify_bundle`` against one plain pass of hashlib over the same files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from benchmarks.machine import describe
from benchmarks.processes import Host
from benchmarks.results import Table, finish
from vla_checkpoint import Channel, build_manifest, write_manifest

TENSORS, ELEMENTS = 75, 1_000_000
PLAIN, DURABLE, OURS = "requests, sha256sum", "requests, flushed, hashlib", "ours: fetch, verify, install"
CURL, HUB = "curl, sync, sha256sum", "huggingface_hub, not hashed"
FETCHES = {"plain": PLAIN, "durable": DURABLE, "curl": CURL, "hub": HUB, "ours": OURS}
NEEDS = {"curl": shutil.which("curl"), "hub": importlib.util.find_spec("huggingface_hub")}
"""What not every machine has."""
HASHLIB = "hashlib, one pass"
CHECKS = {"hashed": HASHLIB, "verified_without_values": "verify_bundle without values", "verified": "verify_bundle"}
COLUMNS = (("mb_s", "MB/s", ".0f"), ("seconds", "s", ".2f"), ("peak_mb", "peak resident memory, MB", ".0f"))


def make_bundle(folder: Path) -> int:
    """Write a bundle with random float32 weights and return its size [bytes]."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {f"layer.{i}.weight": rng.standard_normal((1000, ELEMENTS // 1000), np.float32) for i in range(TENSORS)}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    feature = {"shape": [1]}
    config = {
        "type": "bench",
        "input_features": {"observation.state": {"type": "STATE", **feature}},
        "output_features": {"action": {"type": "ACTION", **feature}},
        "normalization_mapping": {"STATE": "IDENTITY", "ACTION": "IDENTITY"},
        "chunk_size": 16,
        "n_action_steps": 8,
        "n_obs_steps": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "stats.json").write_text("{}")
    manifest = build_manifest(
        folder, name="bench", version="1.0.0", policy_type="bench", robot_type="bench_arm",
        channels=[Channel("j0", "rad", "absolute")], rate_hz=50.0,
    )  # fmt: skip
    write_manifest(folder, manifest)
    os.sync()
    return manifest.total_bytes


def measure(folder: Path, runs: int, stop_at_s: float) -> tuple[int, list[Table]]:
    """Go through all ways, and that ``runs`` times."""
    bundle, target = folder / "bundle", folder / "target"
    size = make_bundle(bundle)
    fetches, checks = (
        Table("A bundle over HTTP from this machine", COLUMNS),
        Table("A bundle that is on the disk", COLUMNS),
    )
    with Host("benchmarks.file_server", {"folder": str(bundle)}) as server:
        url = f"http://127.0.0.1:{server.hear(30.0)['port']}/"
        for _ in range(runs):
            begin = time.monotonic()
            for way, name in {**FETCHES, **CHECKS}.items():
                if not NEEDS.get(way, True):
                    continue
                settings = {"way": way, "bundle": str(bundle), "base_url": url, "target": str(target)}
                with Host("benchmarks.store_clients", settings) as client:
                    found = client.hear(120.0)
                seconds, peak_mb = found["seconds"], found["peak_bytes"] / 1e6
                table = fetches if way in FETCHES else checks
                table.row(name).add(mb_s=size / seconds / 1e6, seconds=seconds, peak_mb=peak_mb)
                shutil.rmtree(target, ignore_errors=True)
                os.sync()  # what one way left to be written is not the next one's to wait for
            if time.monotonic() + (time.monotonic() - begin) > stop_at_s:
                break
    fetches.notes += [f"not installed, so not measured: {FETCHES[way]}" for way, there in NEEDS.items() if not there]
    for peer in (PLAIN, DURABLE, CURL, HUB):
        fetches.note_ratio("mb_s", OURS, peer, "throughput")
        fetches.note_ratio("peak_mb", OURS, peer, "peak memory")
    for name in CHECKS.values():
        if name != HASHLIB:
            checks.note_ratio("mb_s", name, HASHLIB, "throughput")
    return size, [fetches, checks]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--budget", type=float, default=40.0, help="begin no further run when it would take longer [s]")
    arguments = parser.parse_args()
    stop_at_s = time.monotonic() + arguments.budget
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="vla_ota_bench_") as name:
        size, tables = measure(Path(name), arguments.runs, stop_at_s)
    finish("store", arguments.out, machine, {"bundle_bytes": size, "tensors": TENSORS}, tables)


if __name__ == "__main__":
    main()
