# SPDX-License-Identifier: Apache-2.0
"""Makes ACT policies by LeRobot's classes, in LeRobot's interpreter: ``python -m benchmarks.swap_lerobot_make FOLDER``.

LeRobot's default network with random weights (52 million parameters; nothing is downloaded), on seven joints and a small picture.
``FOLDER/VERSION/pretrained_model`` is what ``save_pretrained`` writes; ``FOLDER/VERSION/golden.npz`` has observations and
LeRobot's chunks for them. A version shows in its actions: joint 0 of every action is :data:`MARKS` of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors

MARKS = {"1.0.0": 0.1, "1.1.0": -0.1, "1.2.0": -0.1}
JOINTS, CAMERA_PX, CHUNK, EXECUTED = 7, 96, 100, 50
STATE, PICTURE, ACTION = "observation.state", "observation.images.top", "action"
_SPREAD = 0.1


def config() -> ACTConfig:
    """Return LeRobot's default ACT for the robot of this benchmark."""
    return ACTConfig(
        input_features={
            STATE: PolicyFeature(FeatureType.STATE, (JOINTS,)),
            PICTURE: PolicyFeature(FeatureType.VISUAL, (3, CAMERA_PX, CAMERA_PX)),
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (JOINTS,))},
        chunk_size=CHUNK,
        n_action_steps=EXECUTED,
        pretrained_backbone_weights=None,
        device="cpu",
        push_to_hub=False,
    )


def statistics() -> dict[str, dict[str, torch.Tensor]]:
    """Return mean and spread of every feature."""
    shapes: dict[str, tuple[int, ...]] = {STATE: (JOINTS,), PICTURE: (3, 1, 1), ACTION: (JOINTS,)}
    found = {}
    for key, shape in shapes.items():
        mean, std = torch.zeros(shape), torch.full(shape, _SPREAD)
        found[key] = {"mean": mean, "std": std, "min": mean - 3 * std, "max": mean + 3 * std}
    return found


def make(folder: Path, mark: float, seed: int) -> None:
    """Write one version."""
    torch.manual_seed(seed)
    policy = ACTPolicy(config()).eval()
    with torch.no_grad():
        policy.model.action_head.weight[0] = 0.0
        policy.model.action_head.bias[0] = mark / _SPREAD
    checkpoint = folder / "pretrained_model"
    policy.save_pretrained(checkpoint)
    for processor in make_pre_post_processors(policy.config, dataset_stats=statistics()):
        processor.save_pretrained(checkpoint)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    rng = np.random.default_rng(seed)
    states = rng.uniform(-0.1, 0.1, (2, JOINTS)).astype(np.float32)
    pictures = rng.integers(0, 256, (2, CAMERA_PX, CAMERA_PX, 3), dtype=np.uint8)
    chunks = [chunk(policy, before, after, *observed) for observed in zip(states, pictures, strict=True)]
    golden: dict[str, Any] = {STATE: states, PICTURE: pictures, ACTION: np.stack(chunks)}
    np.savez(folder / "golden.npz", **golden)


def chunk(policy: ACTPolicy, before: Any, after: Any, state: Any, picture: Any) -> Any:
    """Return LeRobot's actions for an observation, ``[CHUNK, JOINTS]``."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        actions = policy.predict_action_chunk(before({STATE: torch.from_numpy(state), PICTURE: pixels}))
    return after(actions)[0].numpy()


def main() -> None:
    """Write all versions."""
    for seed, (version, mark) in enumerate(MARKS.items()):
        make(Path(sys.argv[1]) / version, mark, seed)


if __name__ == "__main__":
    main()
