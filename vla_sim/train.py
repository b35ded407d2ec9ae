# SPDX-License-Identifier: Apache-2.0
"""Train ``tiny_vla`` for the simulated arm by behaviour cloning, and write a whole bundle. Minutes on two cores, seeded.

    python -m vla_sim.train --out vla_sim/bundles/reach_block/1.0.0 --seed 0

Rounds: in the first the expert flies and the network learns to say what it would do; in later ones the network flies half of the
episodes while the expert still says what it would do (DAgger). Each batch asks the expert anew, for a colour drawn at random.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vla_policy_node.policies.base import Policy
from vla_policy_node.policies.tiny_vla import TinyVLAPolicy
from vla_policy_node.policies.tiny_vla.configuration_tiny_vla import ACTION, STATE, TinyVLAConfig
from vla_policy_node.policies.tiny_vla.modeling_tiny_vla import TinyVLA
from vla_policy_node.policies.tiny_vla.processor_tiny_vla import TinyVLAProcessor
from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M, JOINT_NAMES
from vla_sim.bundle import seal, statistics, write_json, write_own_golden, write_weights
from vla_sim.camera import SIZE, project
from vla_sim.dataset import Frames, collect, expert_chunks
from vla_sim.expert import goal_point
from vla_sim.kinematics import joints_for
from vla_sim.observation import IMAGE_KEY
from vla_sim.task import PHRASINGS, instruction_for

_REPORT_EVERY_STEPS = 100


@dataclass(frozen=True)
class Recipe:
    """How long and on how much."""

    seed: int = 0
    frames: tuple[int, ...] = (16_000, 8_000, 8_000)  # recorded before each round
    steps: tuple[int, ...] = (1000, 1000, 1500)  # of each round
    batch: int = 160
    peak_lr: float = 2e-3
    warm_up_steps: int = 100
    weight_decay: float = 1e-4
    goal_weight: float = 0.5
    place_weight: float = 2.0

    def scaled(self, factor: float) -> Recipe:
        """Return the recipe with ``factor`` times the frames and steps."""
        frames, steps = (tuple(max(1, round(n * factor)) for n in numbers) for numbers in (self.frames, self.steps))
        return replace(self, frames=frames, steps=steps)


def vocabulary() -> tuple[str, ...]:
    """Padding, unknown, and every word that the task's instructions use."""
    words = {word for phrasing in PHRASINGS for colour in BLOCK_COLOURS for word in phrasing.format(colour).split()}
    return ("<pad>", "<unk>", *sorted(words))


def configuration() -> TinyVLAConfig:
    """The configuration of the shipped bundle: a horizon of one second, of which half is executed."""
    return TinyVLAConfig(
        state_dim=len(JOINT_NAMES),
        action_dim=len(JOINT_NAMES),
        image_key=IMAGE_KEY,
        image_shape=(SIZE, SIZE),
        chunk_size=50,
        n_action_steps=25,
        normalization_mapping={"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        vocabulary=vocabulary(),
    )


@dataclass(frozen=True)
class Batch:
    """What the network gets and what it should say, normalised; ``goal`` and ``places`` are for the auxiliary tasks."""

    picture: torch.Tensor
    state: torch.Tensor
    words: torch.Tensor
    offsets: torch.Tensor
    goal: torch.Tensor  # [B, A] joints at rest on the block
    places: torch.Tensor  # [B, tokens, colours] whether this colour's block is seen there


class Trainer:
    """The network, its optimiser and its source of randomness."""

    def __init__(
        self, config: TinyVLAConfig, processor: TinyVLAProcessor, recipe: Recipe, rng: np.random.Generator
    ) -> None:
        self.model = TinyVLA(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._processor, self._recipe, self._rng = processor, recipe, rng
        # Auxiliary tasks, thrown away afterwards: where would the joints come to rest, and which block is seen where? Without
        # them the eye takes many times as long to find the blocks.
        self._goal_head = nn.Linear(config.dim_model, config.action_dim)
        self._place_head = nn.Linear(config.dim_model, len(BLOCK_COLOURS))
        parameters = [*self.model.parameters(), *self._goal_head.parameters(), *self._place_head.parameters()]
        self._optimizer = torch.optim.AdamW(parameters, lr=recipe.peak_lr, weight_decay=recipe.weight_decay)
        total = sum(recipe.steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: (
                min(1.0, (step + 1) / recipe.warm_up_steps) * 0.5 * (1 + np.cos(np.pi * min(1.0, step / total)))
            ),
        )

    def policy(self) -> Policy:
        """The network as it is now, as a policy."""
        return TinyVLAPolicy(self.model.eval(), self._processor, torch.device("cpu"))

    def fit(self, frames: Frames, steps: int) -> None:
        """Take ``steps`` optimiser steps on batches of these frames."""
        self.model.train()
        running, began = np.zeros(3), time.monotonic()
        for step, batch in enumerate(self._batches(frames, steps), start=1):
            losses = self._losses(batch)
            self._optimizer.zero_grad()
            total = losses[0] + self._recipe.goal_weight * losses[1] + self._recipe.place_weight * losses[2]
            torch.autograd.backward(total)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()
            self._schedule.step()
            running += [loss.item() for loss in losses]
            if step % _REPORT_EVERY_STEPS == 0:
                chunk, goal, place = running / _REPORT_EVERY_STEPS
                print(
                    f"  step {step}: chunk {chunk:.4f}, goal {goal:.4f}, place {place:.4f}, {time.monotonic() - began:.0f} s",
                    flush=True,
                )
                running[:] = 0.0

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        vision = self.model.vision(batch.picture)
        features = self.model.features(vision, batch.state, batch.words)
        rare = torch.tensor(10.0)  # a block is seen in one token of many
        return (
            functional.l1_loss(self.model.chunk_from(features), batch.offsets),
            functional.l1_loss(self._goal_head(features.mean(dim=1)), batch.goal),
            functional.binary_cross_entropy_with_logits(self._place_head(vision), batch.places, pos_weight=rare),
        )

    def _batches(self, frames: Frames, steps: int) -> Iterator[Batch]:
        for _ in range(steps):
            chosen = frames.take(self._rng.integers(len(frames), size=self._recipe.batch))
            if self._rng.uniform() < 0.5:
                chosen = chosen.mirrored()
            yield self._batch(chosen)

    def _batch(self, frames: Frames) -> Batch:
        colours = self._rng.integers(len(BLOCK_COLOURS), size=len(frames))
        processor = self._processor
        state = torch.from_numpy(frames.joints).float()
        chunks = torch.from_numpy(expert_chunks(frames, colours, self.model.config.chunk_size)).float()
        goal = goal_point(frames.blocks[np.arange(len(frames)), colours], BLOCK_SIZE_M)
        resting = joints_for(
            np.stack([np.arctan2(goal[:, 1], goal[:, 0]), np.hypot(goal[:, 0], goal[:, 1]), goal[:, 2]], axis=-1)
        )
        words = [processor.tokenize(instruction_for(BLOCK_COLOURS[colour], self._rng)) for colour in colours]
        return Batch(
            picture=processor.picture(frames.images).contiguous(memory_format=torch.channels_last),
            state=processor.state.normalise(state),
            words=torch.tensor(words),
            offsets=processor.offsets(chunks, state),
            goal=processor.action.normalise(torch.from_numpy(resting).float()),
            places=self._places(frames),
        )

    def _places(self, frames: Frames) -> torch.Tensor:
        rows, columns = self.model.vision.grid
        pixels, _ = project(frames.blocks)
        column, row = (
            np.clip(pixels[..., i] * n // SIZE, 0, n - 1).astype(np.int64) for i, n in ((0, columns), (1, rows))
        )
        places = torch.zeros(len(frames), rows * columns, len(BLOCK_COLOURS))
        return places.scatter_(1, torch.from_numpy(row * columns + column)[:, None], 1.0)


def train(recipe: Recipe, out: Path) -> None:
    """Train and write the bundle (without a manifest) to ``out``."""
    rng = np.random.default_rng(recipe.seed)
    torch.manual_seed(recipe.seed)
    config = configuration()
    frames = collect(recipe.frames[0], rng)
    chunks = expert_chunks(frames, rng.integers(len(BLOCK_COLOURS), size=len(frames)), config.chunk_size)
    stats = {STATE: statistics(frames.joints), ACTION: statistics(chunks.reshape(-1, config.action_dim))}
    trainer = Trainer(config, TinyVLAProcessor(config, stats), recipe, rng)
    for round_, steps in enumerate(recipe.steps):
        if round_:
            frames = frames + collect(recipe.frames[round_], rng, trainer.policy())
        print(f"round {round_ + 1}: {len(frames)} frames, {steps} steps", flush=True)
        trainer.fit(frames, steps)

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", config.to_json())
    write_json(out / "stats.json", stats)
    write_weights(
        out, {name: tensor.detach().contiguous().numpy() for name, tensor in trainer.model.state_dict().items()}
    )
    write_own_golden(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and write a bundle with its manifest."""
    parser = argparse.ArgumentParser(description="Train tiny_vla for the simulated arm and write a bundle.")
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to write")
    parser.add_argument("--version", default="1.0.0", help="Semantic Versioning 2.0.0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="scale steps and frames: 0.01 for a smoke test")
    parser.add_argument("--threads", type=int, default=2, help="of torch; part of what a seed reproduces")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = Recipe(seed=options.seed).scaled(options.scale)
    train(recipe, options.out)
    numbers = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
    lineage = {"trained_by": "vla_sim.train", "threads": options.threads, "recipe": numbers}
    manifest = seal(options.out, options.version, lineage)
    print(f"{options.out}: {manifest.total_bytes} bytes, digest {manifest.digest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
