# SPDX-License-Identifier: Apache-2.0
"""Examples from a data set folder: what a success showed, and what an operator showed.

Of an episode in which an operator took over only the operator's steps are examples: what the policy did before is what had to be
corrected. Their weight is that of the whole episode, so that the data set's mix of replay and new stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vla_checkpoint.config import Feature
from vla_learning.datasets import layout
from vla_learning.datasets.reading import DataSet
from vla_learning.training.errors import TrainingError
from vla_learning.training.examples import Examples, Index


def observations_of(
    dataset: DataSet, frames: Index, features: Mapping[str, Feature]
) -> dict[str, npt.NDArray[np.generic]]:
    """Return what a policy with these input features saw at some frames: feature → ``[n, …]``.

    Raises:
        TrainingError: ``TRAINING_DATA_SET``: a feature is not there.
        DataSetError: the data set cannot be read.
    """
    _check_features(dataset, features)
    return {
        name: dataset.pictures(name, frames)
        if feature.type == "VISUAL"
        else dataset.columns(name)[name][frames].astype(np.float32)
        for name, feature in features.items()
    }


def _check_features(dataset: DataSet, names: Iterable[str]) -> None:
    for name in names:
        if name not in dataset.features:
            have = ", ".join(n for n in dataset.features if n.startswith("observation")) or "no observation"
            raise TrainingError("TRAINING_DATA_SET", dataset.folder, f"has no {name}; it has {have}")


def examples_of(dataset: DataSet, episodes: Sequence[int], state: str, camera: str, *, rest: bool = False) -> Examples:
    """Return the examples of some episodes.

    Args:
        dataset: with the columns of ``vla-fleet dataset build``, or any LeRobotDataset v3.0 (then all steps weigh the same).
        episodes: numbers of episodes.
        state, camera: features that the policy sees.
        rest: hold the last action of what was shown up to an episode's end; right where actions are absolute positions.

    Raises:
        TrainingError: ``TRAINING_DATA_SET``: a feature is not there.
        DataSetError: the data set cannot be read.
    """
    _check_features(dataset, (state, camera, layout.ACTION))
    found = dataset.columns(state, layout.ACTION, "task_index")
    weights, corrected = _weights(dataset)
    at, until, own, rests = [], [], [], []
    for number in episodes:
        steps = np.arange(dataset.episodes[number].start, dataset.episodes[number].stop)
        learned, ends = _demonstrated(steps, corrected[steps])
        at.append(learned)
        until.append(ends)
        rests.append(ends == steps[-1] + 1)
        shown = weights[learned].sum()
        own.append(weights[learned] * (weights[steps].sum() / shown if shown > 0.0 else 0.0))
    frames: Index = np.concatenate(at) if at else np.zeros(0, np.intp)
    return Examples(
        states=found[state].astype(np.float32),
        actions=found[layout.ACTION].astype(np.float32),
        at=frames,
        until=np.concatenate(until) if until else frames,
        weights=np.concatenate(own) if own else np.zeros(0),
        instructions=[dataset.tasks[task] for task in found["task_index"][frames]],
        pictures=lambda index: dataset.pictures(camera, frames[index]),
        rests=np.concatenate(rests) if rest and rests else None,
    )


def _weights(dataset: DataSet) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return each frame's sampling weight, and whether an operator commanded it."""
    if layout.WEIGHT not in dataset.features or layout.INTERVENTION not in dataset.features:
        return np.ones(dataset.frames), np.zeros(dataset.frames, np.bool_)
    found = dataset.columns(layout.WEIGHT, layout.INTERVENTION)
    return found[layout.WEIGHT].astype(np.float64), found[layout.INTERVENTION].astype(np.bool_)


def _demonstrated(steps: Index, corrected: npt.NDArray[np.bool_]) -> tuple[Index, Index]:
    """Return the steps to learn from, and where each one's demonstration ends."""
    if not corrected.any():
        return steps, np.full(len(steps), steps[-1] + 1)
    ends = np.append(np.nonzero(~corrected)[0], len(steps))
    learned = np.nonzero(corrected)[0]
    return steps[learned], steps[0] + ends[np.searchsorted(ends, learned)]
