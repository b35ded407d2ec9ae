# SPDX-License-Identifier: Apache-2.0
"""The work of exercise 4: recording, training and judging."""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from vla_learning.simulate.operator import Recording, examples_of
from vla_learning.simulate.operator import run as record_episode
from vla_learning.workers import Job, serve
from vla_sim.arm import BLOCK_COLOURS, Arm
from vla_sim.bundle import load_policy
from vla_sim.evaluate import Execution, run_episode
from vla_sim.task import Episode, sample_episode

WORDS = ("crimson", "emerald", "azure", "amber")
"""New words for the blocks, in the order of ``BLOCK_COLOURS``; each is what one robot's site says most."""
ROBOTS = len(WORDS)
_NEW_SHARE, _OWN_SHARE = 0.5, 0.55
"""Share of the episodes that ask by a new word, and of these the share of the site's own."""
_EVERY_TICKS = 5


def site_episode(rng: np.random.Generator, site: int | None) -> Episode:
    """Return an episode of a site: half of them ask by a new word, mostly the site's own. ``None``: by all words alike."""
    episode = sample_episode(rng)
    if rng.uniform() >= _NEW_SHARE:
        return episode
    others = [word for word in range(ROBOTS) if word != site]
    own = site is not None and rng.uniform() < _OWN_SHARE
    block = site if site is not None and own else others[int(rng.integers(len(others)))]
    text = episode.instruction.replace(episode.colour, WORDS[block])
    return replace(episode, colour=BLOCK_COLOURS[block], instruction=text)


def record(base: str, site: int, episodes: int, seed: int) -> float:
    """Return the bytes of an episode of a site, as its robot records it: pictures as PNG, states and actions as float32."""
    return sum(map(_size, _recordings(base, site, episodes, seed))) / episodes


def train(
    start: str, base: str, sites: list[int], episodes: int, seed: int, out: str, draw: int, training: Job
) -> None:
    """Fine-tune an adapter on the recordings of some sites.

    Args:
        start: folder of the policy to adapt.
        base: folder of the first policy, for the recordings.
        sites: whose recordings.
        episodes: that each site recorded.
        seed: of the recordings.
        out: folder to write to.
        draw: seed of the training.
        training: steps, batch, learning rate and rank.
    """
    from vla_learning.training.lora import LoRASettings
    from vla_learning.training.tiny_vla import Settings, fine_tune

    steps = training["steps"]
    settings = Settings(
        "lora",
        steps,
        training["batch"],
        learning_rate=training["learning_rate"],
        checkpoint_every=steps,
        lora=LoRASettings(training["rank"]),
    )
    examples = examples_of([(1.0, _recordings(base, site, episodes, seed)) for site in sites])
    fine_tune(Path(start), examples, Path(out), Path(f"{out}.work"), settings, seed=draw, quiet=True)


def judge(policy: str, trials: int, seed: int, number: int) -> dict[str, tuple[int, int]]:
    """Return successes and episodes, of those that ask by a new word (``new``) and of the others (``old``)."""
    rng, arm, loaded = np.random.default_rng([seed, 2, number]), Arm(), load_policy(Path(policy))
    found: dict[str, list[bool]] = {"new": [], "old": []}
    for _ in range(trials):
        episode = site_episode(rng, None)
        asked = "new" if any(word in episode.instruction for word in WORDS) else "old"
        found[asked].append(run_episode(arm, loaded, episode, Execution()).success)
    return {name: (sum(successes), len(successes)) for name, successes in found.items()}


@functools.cache
def _recordings(base: str, site: int, episodes: int, seed: int) -> list[Recording]:
    """The expert flies; the policy is only there because a robot has one."""
    rng = np.random.default_rng([seed, 1, site])
    arm, policy = Arm(), load_policy(Path(base))
    tasks = [site_episode(rng, site) for _ in range(episodes)]
    return [record_episode(arm, policy, task, patience_s=0.0, every=_EVERY_TICKS) for task in tasks]


def _size(recording: Recording) -> int:
    size = recording.states.nbytes + recording.actions.nbytes
    for picture in recording.pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png")
        size += file.tell()
    return size


if __name__ == "__main__":
    serve({"record": record, "train": train, "judge": judge})
