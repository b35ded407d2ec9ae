# SPDX-License-Identifier: Apache-2.0
"""How fast data sets are built, beside plain pandas, and how time and memory grow: ``python -m benchmarks.dataset``.

Every build is a process of its own, so that its peak of memory is its own. Both read the same episode files and write Parquet
with the same columns, pictures as they were recorded, and statistics of every number and of 32 pictures an episode. The plain one
is what one writes in an afternoon: the public MCAP reader with its ROS 2 decoder, a list of dictionaries, ``pandas.concat`` and
``to_parquet``. It checks nothing, and its weights are all 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mcap.decoder import DecoderFactory as Decoders

from benchmarks.machine import describe, sentence
from vla_evidence.tables import table
from vla_learning.datasets.build import build_dataset
from vla_learning.datasets.selection import BuildSettings, Source
from vla_learning.episodes.format import Channel, EpisodeMeta, Feature
from vla_learning.episodes.summary import EpisodeSummary, summarize
from vla_learning.episodes.writing import write_episode

SIZES = (100, 300, 1000)
DISTINCT = 50
"""Episode files that are made; larger data sets take each several times, at another place."""
STEPS, SIDE, JOINTS, RATE_HZ = 100, 96, 6, 20.0
CAMERA, STATE = "observation.images.top", "observation.state"
SAMPLED = 32
TIMEOUT_S = 1800.0


def make_episodes(folder: Path) -> None:
    """Write episodes in which a block moves over a plain ground and the camera sees every step another picture."""
    joints = tuple(Channel(f"j{i}", "rad") for i in range(JOINTS))
    features = {STATE: Feature("float32", (JOINTS,)), CAMERA: Feature("image", (SIDE, SIDE, 3))}
    for number in range(DISTINCT):
        rng = np.random.default_rng(number)
        pictures = np.full((STEPS, SIDE, SIDE, 3), 90, np.uint8)
        pictures += rng.integers(0, 6, (1, SIDE, SIDE, 3), np.uint8)  # the grain of the ground
        for step in range(STEPS):
            at = 5 + (step * 3 + number) % (SIDE - 20)
            pictures[step, at : at + 12, 20 : 32 + number] = (200, 40, 40)
        values = rng.normal(size=(STEPS, JOINTS)).cumsum(axis=0).astype(np.float32)
        meta = EpisodeMeta(
            f"e-{number}",
            "pick",
            "1.0.0",
            RATE_HZ,
            joints,
            features,
            "arm",
            "sim_arm",
            instruction="pick",
            success=True,
        )
        corrected = (np.arange(STEPS) >= 80) if number % 5 == 0 else np.zeros(STEPS, np.bool_)
        write_episode(
            folder / f"{number}.mcap", meta, {STATE: values, CAMERA: pictures}, values * 0.5, intervention=corrected
        )


def build_ours(paths: list[Path], out: Path, known: Mapping[Path, EpisodeSummary]) -> None:
    """Build with ``vla_learning``, 70 % of the episodes old. The server has summarised them when they were uploaded."""
    first_new = int(0.7 * len(paths))
    sources = [Source(known[path], path, number, number >= first_new) for number, path in enumerate(paths)]
    build_dataset(sources, out, BuildSettings(replay_frames=10**9))


def build_with_pandas(paths: list[Path], out: Path, known: Mapping[Path, EpisodeSummary]) -> None:
    """Build with pandas."""
    import pandas as pd  # type: ignore[import-untyped]
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory
    from PIL import Image

    frames, sample = [], []
    for index, path in enumerate(paths):
        rows: list[dict[str, Any]] = []
        picture = b""
        with path.open("rb") as stream:
            for _, channel, message, decoded in make_reader(
                stream, decoder_factories=[DecoderFactory(), _Json()]
            ).iter_decoded_messages():
                if channel.topic == CAMERA:
                    picture = bytes(decoded.data)
                elif channel.topic == "step":
                    row = {"action": decoded["action"], STATE: decoded["state"][STATE], "time": message.log_time}
                    row |= {"policy_action": decoded["policy_action"], "intervention": decoded["intervention"]}
                    rows.append({**row, CAMERA: {"bytes": picture, "path": None}, "task_index": 0})
        episode = pd.DataFrame(rows)
        episode["episode_index"], episode["frame_index"] = index, np.arange(len(rows))
        episode["timestamp"], episode["sampling_weight"] = np.arange(len(rows)) / RATE_HZ, 1.0
        steps = np.unique(np.linspace(0, len(rows) - 1, SAMPLED).astype(int))
        seen = [np.asarray(Image.open(io.BytesIO(rows[step][CAMERA]["bytes"]))) for step in steps]
        sample.append(_stats(np.stack(seen).reshape(-1, 3) / 255.0))
        frames.append(episode)
    everything = pd.concat(frames, ignore_index=True)
    everything["index"] = np.arange(len(everything))
    out.mkdir()
    everything.to_parquet(out / "data.parquet")
    stats = {name: _stats(np.stack(everything[name].to_numpy())) for name in ("action", STATE)}
    stats[CAMERA] = {name: np.mean([one[name] for one in sample], axis=0).tolist() for name in sample[0]}
    (out / "stats.json").write_text(json.dumps(stats))


class _Json(Decoders):
    """What the public reader needs to decode JSON messages."""

    def decoder_for(self, message_encoding: str, schema: Any) -> Any:
        return json.loads if message_encoding == "json" else None


def _stats(values: Any) -> dict[str, Any]:
    quantiles = np.quantile(values, (0.01, 0.1, 0.5, 0.9, 0.99), axis=0)
    return {"mean": values.mean(axis=0).tolist(), "std": values.std(axis=0).tolist(), "quantiles": quantiles.tolist()}


BUILDS = {"vla_learning": build_ours, "pandas": build_with_pandas}


def measure(name: str, episodes: Path, count: int) -> dict[str, float]:
    """Build in a process of its own; return seconds and the peak of its memory [MB]."""
    command = [sys.executable, "-m", "benchmarks.dataset", "--one", name, str(episodes), str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def one(name: str, episodes: Path, count: int) -> dict[str, float]:
    """Build in this process."""
    files = sorted(episodes.glob("*.mcap"))
    paths = [files[number % len(files)] for number in range(count)]
    known = {path: summarize(path) for path in files} if name == "vla_learning" else {}
    with tempfile.TemporaryDirectory() as warm:
        BUILDS[name](files[:1] * 2, Path(warm) / "set", known)  # imports, and what libraries set up once
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        BUILDS[name](paths, Path(folder) / "set", known)
        seconds = time.monotonic() - begin
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "memory_mb": peak / 1024, "written_mb": size / 1e6}


def growth(figures: dict[int, dict[str, float]], key: str) -> float:
    """Return the exponent with which a figure grows from the smallest data set to the largest: 1 is proportional."""
    small, large = min(figures), max(figures)
    return math.log(max(figures[large][key], 1e-9) / max(figures[small][key], 1e-9)) / math.log(large / small)


def main(argv: list[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dataset", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for dataset.json")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="episodes of each data set")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        name, episodes, count = options.one
        print(json.dumps(one(name, Path(episodes), int(count))))
        return 0
    machine = describe()
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in BUILDS}
    with tempfile.TemporaryDirectory() as folder:
        make_episodes(Path(folder))
        for count in options.sizes:
            for name in BUILDS:
                print(f"{name}, {count} episodes …", file=sys.stderr, flush=True)
                found[name][count] = measure(name, Path(folder), count)
    rows = [
        [name, f"{count:,}", f"{count / f['seconds']:.1f}", f"{f['memory_mb']:.0f} MB", f"{f['written_mb']:.1f} MB"]
        for name, figures in found.items()
        for count, f in figures.items()
    ]
    print(table("Data sets built", ["with", "episodes", "episodes/s", "memory", "written"], rows))
    exponents = {name: {key: growth(f, key) for key in ("seconds", "memory_mb")} for name, f in found.items()}
    for name, e in exponents.items():
        print(f"{name}: time grows as episodes^{e['seconds']:.2f}, memory as episodes^{e['memory_mb']:.2f}")
    print(sentence(machine))
    versions = {name: importlib.metadata.version(name) for name in ("pyarrow", "pandas", "mcap")}
    settings = {"steps": STEPS, "picture": [SIDE, SIDE, 3], "joints": JOINTS, "sizes": options.sizes}
    document = {"benchmark": "dataset", "machine": machine | versions, "settings": settings}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "dataset.json"
    path.write_text(json.dumps({**document, "builds": found, "growth": exponents}) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
