# SPDX-License-Identifier: Apache-2.0
"""Where the exercises begin: a policy that does three of the four block colours well and was never told of the fourth.

It is the shipped policy with the word for one colour unlearned: its embedding is drawn anew, as it was before training. It
sees these blocks, and has no idea that an instruction means them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vla_sim.arm import BLOCK_COLOURS
from vla_sim.bundle import SHIPPED_BUNDLE, read_weights, seal, write_own_golden, write_weights
from vla_sim.task import Episode, instruction_for, sample_episode

NEW_COLOUR = "yellow"
OLD_COLOURS = tuple(colour for colour in BLOCK_COLOURS if colour != NEW_COLOUR)


def make_newcomer(folder: Path, seed: int) -> Path:
    """Write the bundle to a new folder; ``seed`` draws the unknown word's embedding."""
    folder.mkdir(parents=True)
    for name in ("config.json", "stats.json"):
        shutil.copyfile(SHIPPED_BUNDLE / name, folder / name)
    weights = read_weights(SHIPPED_BUNDLE)
    words = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocabulary"]
    embedding = weights["word.weight"].astype(np.float32)
    embedding[words.index(NEW_COLOUR)] = np.random.default_rng(seed).normal(size=embedding.shape[1])  # as torch begins
    write_weights(folder, {**weights, "word.weight": embedding})
    write_own_golden(folder)
    seal(folder, "1.0.0", {"derived_from": "the shipped bundle", "unlearned": NEW_COLOUR, "seed": seed})
    return folder


def fleet_tasks(rng: np.random.Generator, count: int, share_new: float) -> Iterator[Episode]:
    """Yield tasks as the fleet gets them: ``share_new`` of them ask for the new colour, the others for the old ones alike."""
    for _ in range(count):
        colours: Sequence[str] = (NEW_COLOUR,) if rng.random() < share_new else OLD_COLOURS
        yield task_for(colours[int(rng.integers(len(colours)))], rng)


def task_for(colour: str, rng: np.random.Generator) -> Episode:
    """Return an episode that asks for this colour."""
    return replace(sample_episode(rng), colour=colour, instruction=instruction_for(colour, rng))
