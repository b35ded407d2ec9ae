# SPDX-License-Identifier: Apache-2.0
"""Exercise 4: robots that keep their episodes and merge LoRA adapters, against one training with everybody's episodes.

People have taken to new words for the blocks ("reach the crimson block"), each site mostly to one of its own. The fleet's policy
has the words in its vocabulary and has never learned them. Each robot records episodes and fine-tunes an adapter on them. Each
round the adapters are merged, the merge is folded into the base of the next round (as FLoRA does, arXiv 2409.05976), and every
robot goes on from there. Only the robot itself sees its episodes; in the end each is asked for all words alike.

Compared are the exact merge, the average of the factors A and B (the lesson's merge; with a start of its own for each robot, or a
common one), every robot for itself, and LoRA training on all episodes in one place for as many batches. Policies are judged in
the same simulated episodes. Trainings and judgements run in processes beside each other; results depend on the seed only.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.numpy

from vla_checkpoint import Bundle, import_folder, open_bundle
from vla_checkpoint.shards import ADAPTER_WEIGHTS_NAME
from vla_evidence.analysis import Bar, no_bar
from vla_evidence.sequential.intervals import wilson_interval
from vla_evidence.simulate.report import Report
from vla_evidence.tables import table
from vla_learning.adapters.merging import Settings as MergeSettings
from vla_learning.adapters.merging import merge
from vla_learning.adapters.reading import open_clients
from vla_learning.adapters.writing import write_merge
from vla_learning.simulate.federated_jobs import ROBOTS, WORDS
from vla_learning.simulate.federated_plot import ALONE, AVERAGED, AVERAGED_ALIKE, BASE, CENTRAL, EXACT, success, traffic
from vla_learning.workers import Job, Workers, cores
from vla_sim.bundle import SHIPPED_BUNDLE, read_weights, seal, write_json, write_weights

JOBS = "vla_learning.simulate.federated_jobs"
WAYS = (EXACT, AVERAGED, AVERAGED_ALIKE)

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

    rounds: int = 6
    steps: int = 100
    episodes: int = 40
    trials: int = 200
    rank: int = 8
    batch: int = 32
    learning_rate: float = 2e-3
    seed: int = 0
    jobs: int = 0

    def quick(self) -> Settings:
        """Return a smaller exercise."""
        return replace(self, rounds=2, steps=80, episodes=20, trials=30)


@dataclass(frozen=True)
class Score:
    """Successes and episodes, of those that ask by a new word and of the others."""

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
    return Report(
        "federated", sentence, text, figures, {"success": partial(success, outcome), "bytes": partial(traffic, outcome)}
    )


def simulate(settings: Settings, bar: Bar = no_bar) -> Outcome:
    """Train, merge and judge.

    Raises:
        LearningError: ``SIMULATION_FAILED``.
    """
    s = settings
    trainings = (s.rounds * len(WAYS) + 1) * ROBOTS + 1
    judged = s.rounds * len(WAYS) + ROBOTS + 2
    jobs = ROBOTS + trainings + judged * len(_batches(s))
    with (
        tempfile.TemporaryDirectory(prefix="federated.") as folder,
        bar("federated", jobs) as tick,
        Workers(JOBS, s.jobs or cores(), tick) as workers,
    ):
        return _Exercise(s, Path(folder), workers).run()


class _Exercise:
    """One run of it, its files in one folder."""

    def __init__(self, settings: Settings, folder: Path, workers: Workers) -> None:
        self._settings, self._folder, self._workers = settings, folder, workers
        self._base = make_base(folder / "base", settings.seed)
        self._data = {"base": str(self._base.path), "episodes": settings.episodes, "seed": settings.seed}
        self._exactness = 0.0
        self._up, self._down = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0.0)

    def run(self) -> Outcome:
        s = self._settings
        sizes = self._workers.do([{"job": "record", "site": site, **self._data} for site in range(ROBOTS)])
        episode = float(np.mean(sizes))
        rounds: dict[str, list[Score]] = {way: [] for way in WAYS}
        bases = dict.fromkeys(WAYS, self._base)
        for number in range(s.rounds):
            bases = self._round(number, bases)
            for way, score in zip(WAYS, self._judge([bases[way] for way in WAYS]), strict=True):
                rounds[way].append(score)
        sites = [[site] for site in range(ROBOTS)]
        alone = [self._job(self._base, of, f"alone{of[0]}", 1000 + of[0], s.rounds * s.steps) for of in sites]
        central = self._job(self._base, list(range(ROBOTS)), "central", 2000, ROBOTS * s.rounds * s.steps)
        self._workers.do([central, *alone])
        outs = [Path(job["out"]) for job in (central, *alone)]
        policies = [self._base, *(fold(out, self._base, out.with_suffix(".folded")) for out in outs)]
        judged = self._judge(policies)
        return Outcome(
            s,
            {BASE: judged[0], ALONE: sum(judged[2:], Score()), CENTRAL: judged[1]},
            rounds,
            {**self._up, CENTRAL: episode * s.episodes},
            {**self._down, CENTRAL: _size(outs[0])},
            episode,
            self._exactness,
        )

    def _round(self, number: int, bases: dict[str, Bundle]) -> dict[str, Bundle]:
        """Train every robot of every way, merge, and return the policies that the next round begins with."""
        jobs = []
        for i, way in enumerate(WAYS):
            for site in range(ROBOTS):
                drawn = number * ROBOTS + (0 if way == AVERAGED_ALIKE else site)
                jobs.append(self._job(bases[way], [site], f"{number}.{i}.{site}", drawn, self._settings.steps))
        self._workers.do(jobs)
        return {
            way: self._merge(way, bases[way], [Path(job["out"]) for job in jobs[i * ROBOTS : (i + 1) * ROBOTS]])
            for i, way in enumerate(WAYS)
        }

    def _merge(self, way: str, base: Bundle, clients: Sequence[Path]) -> Bundle:
        merged = clients[0].with_suffix(".merged")
        if way == EXACT:
            _, certificate = write_merge(merge(open_clients(clients, base), MergeSettings()), base, merged)
            self._exactness = max(self._exactness, certificate["exactness_error"])
        else:
            average(clients, merged)
        self._up[way] += _size(clients[0])
        self._down[way] += _size(merged)
        return fold(merged, base, clients[0].with_suffix(".folded"))

    def _job(self, start: Bundle, sites: list[int], name: str, drawn: int, steps: int) -> Job:
        s = self._settings
        return {
            "job": "train",
            "start": str(start.path),
            "sites": sites,
            "out": str(self._folder / name),
            "draw": s.seed * 10_000 + drawn,
            "training": {"steps": steps, "batch": s.batch, "learning_rate": s.learning_rate, "rank": s.rank},
            **self._data,
        }

    def _judge(self, policies: Sequence[Bundle]) -> list[Score]:
        batches = _batches(self._settings)
        found = self._workers.do(
            [
                {"job": "judge", "policy": str(policy.path), "seed": self._settings.seed, "number": i, "trials": trials}
                for policy in policies
                for i, trials in enumerate(batches)
            ]
        )
        scores = [Score(tuple(each["new"]), tuple(each["old"])) for each in found]
        return [sum(scores[i : i + len(batches)], Score()) for i in range(0, len(scores), len(batches))]


def make_base(folder: Path, seed: int) -> Bundle:
    """Write the shipped bundle with the new words in its vocabulary, and embeddings as they are before any training."""
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
    """Write the lesson's merge: the average of the A, and the average of the B."""
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


def _batches(settings: Settings) -> list[int]:
    """Return the sizes of the batches in which one policy is judged."""
    return [min(_TRIALS_AT_ONCE, settings.trials - done) for done in range(0, settings.trials, _TRIALS_AT_ONCE)]


def _size(adapter: Path) -> int:
    return (adapter / ADAPTER_WEIGHTS_NAME).stat().st_size


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
    heads = ["", "success", "95 % interval", "new words", "old words", "sent [MB]", "received [MB]"]
    title = f"{ROBOTS} robots, {s.episodes} episodes each, {s.rounds} rounds of {s.steps} steps, {s.trials} trials"
    note = f"Bytes are each robot's. Largest relative error of an exact merge against the sum: {outcome.exactness:.1e}."
    return table(title, heads, rows, note)
