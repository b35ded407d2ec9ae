# SPDX-License-Identifier: Apache-2.0
"""A small ACT of LeRobot's for the simulated arm, for docs/first_hour.md: stands in for the checkpoint that you trained.

    python3 sim_arm_act.py record demonstrations.npz               # with vla_ota: what the scripted teacher does
    ~/lerobot/bin/python sim_arm_act.py train demonstrations.npz outputs/train/reach --steps 400      # with LeRobot 0.4

It learns to reach for the red block, whatever it is asked for: an ACT reads no instruction. It is a stand-in, not a good policy.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

STATE, IMAGE, ACTION = "observation.state", "observation.images.top", "action"
CHUNK = 50
RED = 0
SHOWN = 16


def record(out: Path, frames: int, seed: int) -> None:
    """Write ``observation.state`` ``[N, 3]`` [rad], pictures uint8 ``[N, 64, 64, 3]`` and ``action`` ``[N, 50, 3]`` [rad].

    Beside them, ``observations.npz``: a few of the observations, for ``vla-checkpoint golden``.
    """
    from vla_sim.dataset import collect, expert_chunks

    seen = collect(frames, np.random.default_rng(seed))
    chunks = expert_chunks(seen, np.full(len(seen), RED), CHUNK).astype(np.float32)
    observed = {STATE: seen.joints.astype(np.float32), IMAGE: seen.images}
    np.savez(out, **observed, **{ACTION: chunks})
    apart = np.linspace(0, len(seen) - 1, SHOWN).astype(int)
    np.savez(out.with_name("observations.npz"), **{name: array[apart] for name, array in observed.items()})
    print(f"{out}: {len(seen)} moments; {out.with_name('observations.npz')}: {len(apart)} of them")


def train(data: Path, out: Path, steps: int, seed: int, begin_with: Path | None) -> None:
    """Train as LeRobot does (its policy, its processors, its loss), and save as its training does."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    torch.manual_seed(seed)
    recorded = {name: torch.from_numpy(array) for name, array in np.load(data).items()}
    recorded[IMAGE] = recorded[IMAGE].permute(0, 3, 1, 2)
    config = ACTConfig(
        input_features={STATE: PolicyFeature(FeatureType.STATE, (3,)), IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 64, 64))},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (3,))},
        chunk_size=CHUNK, n_action_steps=CHUNK, dim_model=128, n_heads=4, dim_feedforward=256, n_encoder_layers=2,
        use_vae=False, dropout=0.0, pretrained_backbone_weights=None, device="cpu", push_to_hub=False,
    )  # fmt: skip
    before, after = make_pre_post_processors(config, dataset_stats=_statistics(recorded))
    policy = ACTPolicy.from_pretrained(begin_with) if begin_with else ACTPolicy(config)
    policy.train()
    policy.model.backbone.requires_grad_(False)  # as it came: enough for a stand-in, and three times as quick
    learned = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    rate = 1e-4 if begin_with else 1e-3
    optimizer = torch.optim.AdamW(learned, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    rng, began = np.random.default_rng(seed), time.monotonic()
    for step in range(1, steps + 1):
        chosen = torch.from_numpy(rng.integers(len(recorded[STATE]), size=16))
        batch = {name: array[chosen] for name, array in recorded.items()}
        batch[IMAGE] = batch[IMAGE].float() / 255.0
        batch = before(batch) | {"action_is_pad": torch.zeros(len(chosen), CHUNK, dtype=torch.bool)}
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    folder = out / "checkpoints" / f"{steps:06}" / "pretrained_model"
    for part in (policy, before, after):
        part.save_pretrained(folder)
    (out / "checkpoints" / "last").symlink_to(folder.parent.name)
    print(folder)


def _statistics(recorded: dict[str, Any]) -> dict[str, Any]:
    """Mean and spread of each feature over the recording, as LeRobot's data sets have them; pictures a channel, in 0…1."""
    stats = {}
    for name, array in recorded.items():
        values = array.float() / 255.0 if name == IMAGE else array
        over = (0, 2, 3) if name == IMAGE else tuple(range(values.ndim - 1))
        measures = {
            "mean": values.mean(over),
            "std": values.std(over),
            "min": values.amin(over),
            "max": values.amax(over),
        }
        shape = (3, 1, 1) if name == IMAGE else (3,)
        stats[name] = {measure: value.reshape(shape) for measure, value in measures.items()}
    return stats


def main() -> None:
    """Record or train."""
    parser = argparse.ArgumentParser(description="A small ACT of LeRobot's for the simulated arm.")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="with vla_ota's Python")
    recording.add_argument("out", type=Path)
    recording.add_argument("--frames", type=int, default=4000)
    training = commands.add_parser("train", help="with LeRobot's Python")
    training.add_argument("data", type=Path)
    training.add_argument("out", type=Path, help="folder of the run")
    training.add_argument("--steps", type=int, default=400)
    training.add_argument("--begin-with", type=Path, help="pretrained_model to go on from")
    for command in (recording, training):
        command.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command == "record":
        record(options.out, options.frames, options.seed)
    else:
        train(options.data, options.out, options.steps, options.seed, options.begin_with)


if __name__ == "__main__":
    main()
