# SPDX-License-Identifier: Apache-2.0
"""Exercise 4: robots that keep their episodes and merge LoRA adapters, against one training with everybody's episodes.

The people at each robot's site call one block by a word of their own ("reach the crimson block"), which the fleet's policy has in
its vocabulary and has never learned. Each robot records episodes and fine-tunes an adapter on them. Each round the adapters are
merged, the merge is folded into the base of the next round (as FLoRA does, arXiv 2409.05976), and each robot goes on from there.
Only the robot itself sees its episodes; in the end each has to know every site's word.

Compared are the exact merge, the average of the factors A and B (the seed's; with a start of its own for each robot, or a common
one), every robot for itself, and LoRA training on all episodes in one place for as many batches. Policies are judged in the same
simulated episodes of all sites. Trainings and judgements run in processes beside each other; results depend on the seed only.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from PIL import Image

from vla_checkpoint import Bundle, import_folder, open_bundle
from vla_checkpoint.shards import ADAPTER_WEIGHTS_NAME
from vla_evidence.analysis import Bar, Tick, no_bar
from vla_evidence.sequential.intervals import wilson_interval
from vla_evidence.simulate.report import Report
from vla_evidence.tables import table
from vla_learning.adapters.merging import Settings as MergeSettings
from vla_learning.adapters.merging import merge
from vla_learning.adapters.reading import open_clients
from vla_learning.adapters.writing import write_merge
from vla_learning.simulate.federated_plot import draw
from vla_learning.simulate.operator import Recording, examples_of
from vla_learning.simulate.operator import run as record
from vla_learning.training.lora import LoRASettings
from vla_learning.training.tiny_vla import Settings as TrainingSettings
from vla_learning.training.tiny_vla import fine_tune
from vla_sim.arm import BLOCK_COLOURS, Arm
from vla_sim.bundle import SHIPPED_BUNDLE, load_policy, read_weights, seal, write_json, write_weights
from vla_sim.evaluate import Execution, run_episode
from vla_sim.task import Episode, sample_episode

WORDS = ("crimson", "emerald", "azure", "amber")
"""Of each robot's site, for the blocks in the order of ``BLOCK_COLOURS``."""
ROBOTS = len(WORDS)
EXACT, AVERAGED, AVERAGED_ALIKE = "exact merge", "A and B averaged apart", "the same, robots start alike"
WAYS = (EXACT, AVERAGED, AVERAGED_ALIKE)
CENTRAL, ALONE, BASE = "all episodes in one place", "each robot alone", "base"

_OWN_SHARE = 0.5
"""Share of a site's episodes that ask for its block by its word."""
_EVERY_TICKS = 5
_TRIALS_AT_ONCE = 50


@dataclass(frozen=True)
class Settings:
    """Of the exercise.

    Attributes:
        rounds: of training and merging.
        steps: of the optimiser, for each robot in each round.
        episodes: recorded by each robot.
        trials: episodes in which a policy is judged.
        rank: of the robots' adapters.
        jobs: processes at a time; 0: one a core.
    """

    rounds: int = 5
    steps: int = 60
    episodes: int = 40
    trials: int = 200
    rank: int = 8
    learning_rate: float = 1e-3
    seed: int = 0
    jobs: int = 0

    def quick(self) -> Settings:
        """Return a smaller exercise."""
        return replace(self, rounds=2, steps=30, episodes=10, trials=50)


@dataclass(frozen=True)
class Score:
    """Successes and episodes, of those that use a site's word and of the others."""

    new: tuple[int, int] = (0, 0)
    old: tuple[int, int] = (0, 0)

    def __add__(self, other: Score) -> Score:
        new, old = ((a[0] + b[0], a[1] + b[1]) for a, b in ((self.new, other.new), (self.old, other.old)))
        return Score(new, old)

    @property
    def all(self) -> tuple[int, int]:
        """Of both together."""
        return self.new[0] + self.old[0], self.new[1] + self.old[1]


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        scores: of base, central and alone.
        rounds: way → score after each round.
        up, down: bytes that each robot sends and receives in all, by way; an episode's are in ``episode_bytes``.
        episode_bytes: of a recorded episode: pictures as PNG, states and actions as float32.
        exactness: largest relative error of an exact merge, from its certificate.
    """

    settings: Settings
    scores: dict[str, Score]
    rounds: dict[str, list[Score]]
    up: dict[str, float]
    down: dict[str, float]
    episode_bytes: float
    exactness: float


def run(settings: Settings, bar: Bar = no_bar) -> Report:
    """Do the exercise."""
    outcome = simulate(settings, bar)
    sentence = _sentence(outcome)
    text = f"{sentence}\n\n{_table(outcome)}"
    figures = {**asdict(outcome), "settings": asdict(settings)}
    return Report("federated", sentence, text, figures, {"success": partial(draw, outcome)})


def simulate(settings: Settings, bar: Bar = no_bar) -> Outcome:
    """Train, merge and judge."""
    ways, judged = len(WAYS), settings.rounds * len(WAYS) + ROBOTS + 2
    jobs = ROBOTS + (settings.rounds * ways + 2) * ROBOTS + judged * len(_batches(settings))
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    processes = settings.jobs or len(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory(prefix="federated.") as folder,
        ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool,
        bar("federated", jobs) as tick,
    ):
        return _Exercise(settings, Path(folder), pool, tick).run()


class _Exercise:
    """One run of it, its files in one folder."""

    def __init__(self, settings: Settings, folder: Path, pool: ProcessPoolExecutor, tick: Tick) -> None:
        self._settings, self._folder, self._pool, self._tick = settings, folder, pool, tick
        self._base = make_base(folder / "base", settings.seed)
        self._recordings: list[list[Recording]] = []
        self._exactness = 0.0
        self._bytes: dict[str, list[tuple[int, int]]] = {way: [] for way in WAYS}

    def run(self) -> Outcome:
        s = self._settings
        self._recordings = self._all(_record, [(self._base.path, site, s) for site in range(ROBOTS)])
        rounds: dict[str, list[Score]] = {way: [] for way in WAYS}
        bases = dict.fromkeys(WAYS, self._base)
        for number in range(s.rounds):
            for way in WAYS:
                bases[way] = self._round(way, number, bases[way])
                rounds[way].append(self._judge(bases[way]))
        alone, central = self._alone(), self._central()
        scores = {
            BASE: self._judge(self._base),
            ALONE: sum((self._judge(policy) for policy in alone), Score()),
            CENTRAL: self._judge(central),
        }
        episode = sum(map(episode_bytes, (r for site in self._recordings for r in site))) / (ROBOTS * s.episodes)
        up = {way: sum(up for up, _ in self._bytes[way]) for way in WAYS}
        down = {way: sum(down for _, down in self._bytes[way]) for way in WAYS}
        adapter = (self._folder / "central" / ADAPTER_WEIGHTS_NAME).stat().st_size
        return Outcome(
            s,
            scores,
            rounds,
            {**up, CENTRAL: episode * s.episodes},
            {**down, CENTRAL: adapter},
            episode,
            self._exactness,
        )

    def _round(self, way: str, number: int, base: Bundle) -> Bundle:
        place = self._folder / f"{WAYS.index(way)}.{number}"
        place.mkdir()
        clients = [place / f"robot{i}" for i in range(ROBOTS)]
        seeds = [number * ROBOTS + (0 if way == AVERAGED_ALIKE else i) for i in range(ROBOTS)]
        self._train(base, [[recordings] for recordings in self._recordings], clients, seeds, self._settings.steps)
        merged = place / "merged"
        if way == EXACT:
            _, certificate = write_merge(merge(open_clients(clients, base), MergeSettings()), base, merged)
            self._exactness = max(self._exactness, certificate["exactness_error"])
        else:
            average(clients, merged)
        sent = (clients[0] / ADAPTER_WEIGHTS_NAME).stat().st_size
        self._bytes[way].append((sent, (merged / ADAPTER_WEIGHTS_NAME).stat().st_size))
        return fold(merged, base, place / "folded")

    def _alone(self) -> list[Bundle]:
        s = self._settings
        adapters = [self._folder / f"alone{i}" for i in range(ROBOTS)]
        groups = [[recordings] for recordings in self._recordings]
        self._train(self._base, groups, adapters, [1000 + i for i in range(ROBOTS)], s.rounds * s.steps)
        return [fold(path, self._base, path.with_suffix(".folded")) for path in adapters]

    def _central(self) -> Bundle:
        s = self._settings
        out = self._folder / "central"
        self._train(self._base, [self._recordings], [out], [2000], ROBOTS * s.rounds * s.steps)
        self._tick(ROBOTS - 1)
        return fold(out, self._base, out.with_suffix(".folded"))

    def _train(
        self,
        base: Bundle,
        groups: Sequence[Sequence[list[Recording]]],
        outs: Sequence[Path],
        seeds: Sequence[int],
        steps: int,
    ) -> None:
        s = self._settings
        training = TrainingSettings(
            "lora", steps, learning_rate=s.learning_rate, checkpoint_every=steps, lora=LoRASettings(s.rank)
        )
        seeded = [s.seed * 10_000 + seed for seed in seeds]
        jobs = [(base.path, *job, training) for job in zip(groups, outs, seeded, strict=True)]
        self._all(_train, jobs)

    def _judge(self, policy: Bundle) -> Score:
        batches = [(policy.path, self._settings.seed, *batch) for batch in _batches(self._settings)]
        return sum(self._all(_judge, batches), Score())

    def _all(self, job: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        futures = [self._pool.submit(job, *each) for each in arguments]
        for future in futures:
            future.add_done_callback(lambda _: self._tick(1))
        return [future.result() for future in futures]


def site_episode(rng: np.random.Generator, site: int) -> Episode:
    """Return an episode of a site: half of them ask for its block by its word, the others for any block as everybody does."""
    episode = sample_episode(rng)
    if rng.uniform() < _OWN_SHARE:
        text = episode.instruction.replace(episode.colour, WORDS[site])
        return replace(episode, colour=BLOCK_COLOURS[site], instruction=text)
    return episode


def make_base(folder: Path, seed: int) -> Bundle:
    """Write the shipped bundle with the sites' words in its vocabulary, and embeddings as they are before any training."""
    folder.mkdir()
    config = json.loads((SHIPPED_BUNDLE / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "vocabulary": [*config["vocabulary"], *WORDS]})
    shutil.copyfile(SHIPPED_BUNDLE / "stats.json", folder / "stats.json")
    weights = read_weights(SHIPPED_BUNDLE)
    known = weights["word.weight"]
    drawn = np.random.default_rng([seed, 0]).normal(size=(ROBOTS, known.shape[1]))  # as torch.nn.Embedding begins
    write_weights(folder, {**weights, "word.weight": np.concatenate([known, drawn.astype(known.dtype)])})
    seal(folder, "2.0.0", {"parent": open_bundle(SHIPPED_BUNDLE).digest, "words": list(WORDS)})
    return open_bundle(folder)


def average(clients: Sequence[Path], out: Path) -> None:
    """Write the seed's merge: the average of the A, and the average of the B."""
    shutil.copytree(clients[0], out)
    parts = [safetensors.numpy.load_file(client / ADAPTER_WEIGHTS_NAME) for client in clients]
    mean = {name: np.stack([part[name] for part in parts]).mean(axis=0) for name in parts[0]}
    safetensors.numpy.save_file(mean, out / ADAPTER_WEIGHTS_NAME)


def fold(adapter: Path, base: Bundle, out: Path) -> Bundle:
    """Merge an adapter into its base's weights, as ``vla-checkpoint import --merge`` does."""
    old = base.manifest
    import_folder(
        adapter,
        out,
        name=old.name,
        version=old.version,
        robot_type=old.robot_type,
        channels=old.action.channels,
        rate_hz=old.action.rate_hz,
        merge_into=base.path,
    )
    return open_bundle(out)


def episode_bytes(recording: Recording) -> int:
    """Return the bytes of a recorded episode: pictures as PNG, states and actions as float32."""
    size = recording.states.nbytes + recording.actions.nbytes
    for picture in recording.pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png")
        size += file.tell()
    return size


def _record(base: Path, site: int, settings: Settings) -> list[Recording]:
    rng = np.random.default_rng([settings.seed, 1, site])
    arm, policy = Arm(), load_policy(base)
    episodes = [site_episode(rng, site) for _ in range(settings.episodes)]
    return [record(arm, policy, episode, patience_s=0.0, every=_EVERY_TICKS) for episode in episodes]


def _train(base: Path, groups: Sequence[list[Recording]], out: Path, seed: int, settings: TrainingSettings) -> None:
    examples = examples_of([(1.0, recordings) for recordings in groups])
    fine_tune(base, examples, out, out.with_suffix(".work"), settings, seed=seed, quiet=True)


def _batches(settings: Settings) -> list[tuple[int, int]]:
    """Return number and size of the batches that judge one policy."""
    sizes = [min(_TRIALS_AT_ONCE, settings.trials - done) for done in range(0, settings.trials, _TRIALS_AT_ONCE)]
    return list(enumerate(sizes))


def _judge(folder: Path, seed: int, number: int, trials: int) -> Score:
    rng, arm, policy = np.random.default_rng([seed, 2, number]), Arm(), load_policy(folder)
    score = Score()
    for _ in range(trials):
        episode = site_episode(rng, int(rng.integers(ROBOTS)))
        count = (int(run_episode(arm, policy, episode, Execution()).success), 1)
        asked_anew = any(word in episode.instruction for word in WORDS)
        score += Score(new=count) if asked_anew else Score(old=count)
    return score


def _finals(outcome: Outcome) -> dict[str, Score]:
    return {**outcome.scores, **{way: scores[-1] for way, scores in outcome.rounds.items()}}


def _sentence(outcome: Outcome) -> str:
    finals, s = _finals(outcome), outcome.settings
    rates = {way: score.all[0] / score.all[1] for way, score in finals.items()}
    sent, data = outcome.up[EXACT] + outcome.down[EXACT], outcome.up[CENTRAL] + outcome.down[CENTRAL]
    even = max(0.0, sent - outcome.down[CENTRAL]) / outcome.episode_bytes
    return (
        f"After {s.rounds} rounds the exact merge of {ROBOTS} robots' adapters succeeds in {rates[EXACT]:.0%} of the episodes "
        f"(base {rates[BASE]:.0%}), training on all episodes in one place in {rates[CENTRAL]:.0%}, averaged factors in "
        f"{rates[AVERAGED]:.0%}; each robot moves {sent / 1e6:.1f} MB of adapters instead of {data / 1e6:.1f} MB of episodes and "
        f"policy, which pays from {even:,.0f} episodes a robot on."
    )


def _table(outcome: Outcome) -> str:
    s, finals = outcome.settings, _finals(outcome)
    rows = []
    for way in (BASE, ALONE, *reversed(WAYS), CENTRAL):
        low, high = wilson_interval(*finals[way].all)
        traffic = [f"{side[way] / 1e6:.2f}" if way in side else "0" for side in (outcome.up, outcome.down)]
        rates = [f"{won / of:.1%}" for won, of in (finals[way].all, finals[way].new, finals[way].old) if of]
        rows.append([way, rates[0], f"{low:.1%} to {high:.1%}", *rates[1:], *traffic])
    heads = ["", "success", "95 % interval", "sites' words", "old words", "sent [MB]", "received [MB]"]
    title = f"{ROBOTS} robots, {s.episodes} episodes each, {s.rounds} rounds of {s.steps} steps, {s.trials} trials"
    note = f"Bytes are each robot's. Largest relative error of an exact merge against the sum: {outcome.exactness:.1e}."
    return table(title, heads, rows, note)
