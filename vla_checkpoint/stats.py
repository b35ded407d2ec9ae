# SPDX-License-Identifier: Apache-2.0
"""Normalisation statistics: there for every feature that is normalised, of the right size, and usable.

LeRobot passes a feature through unchanged when its statistics are missing, which a robot notices by moving to the wrong place.
Two sources, one or both: ``stats.json`` ``{feature: {mean, std, min, max, q01, q99, …}}``, and the processor files of
LeRobot >= 0.4 (:mod:`vla_checkpoint.processors`). Where both are there they must agree.

Policies compute in float32, so statistics are judged as float32. An input is divided by its spread (standard deviation, or upper
less lower statistic): a channel without any, a joint that never moved in the data, would blow up the least difference on the
robot. An action is multiplied by its spread: one without any is constant, which is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint.config import ACTION, REQUIRED_STATS, Feature, PolicyConfig
from vla_checkpoint.errors import StatsError
from vla_checkpoint.files import PathLike
from vla_checkpoint.processors import PROCESSOR_NAMES, FloatStats, processor_of, read_processor_stats
from vla_checkpoint.strict_json import is_number, load_object

STATS_NAME = "stats.json"
STAT_NAMES = frozenset({"mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99", "count"})

Stats = Mapping[str, Mapping[str, npt.NDArray[np.float64]]]
"""Feature → statistic → float64 ``[n]``, n as :attr:`Feature.stats_size` (flattened: pictures are one number a channel)."""

_NO_SPREAD = 1e-8
"""LeRobot adds this to what it divides by; a spread that is no larger, in whatever unit, is rounding."""
_ORDERED = (("min", "max"), ("q01", "q10"), ("q10", "q90"), ("q90", "q99"), ("q01", "q99"))


def load_stats(
    bundle_dir: PathLike,
    names: Collection[str],
    config: PolicyConfig,
    channels: Sequence[str] = (),
) -> Stats:
    """Read and check the statistics of a bundle.

    Args:
        bundle_dir: the folder.
        names: relative paths of its files.
        config: the policy they are for.
        channels: the action channels' names, for messages only.

    Returns:
        Those of ``stats.json`` where it exists, else those of the processor files.

    Raises:
        FileError, JsonError, HeaderError: a source is unreadable or malformed.
        StatsError: something is missing, of the wrong size, not finite or contradictory.
    """
    folder = Path(bundle_dir)
    sources: list[Stats] = []
    if STATS_NAME in names:
        path = folder / STATS_NAME
        stats = parse_stats(load_object(path), path)
        sources.append(check_stats(stats, config, lambda key: path, channels))
    if any(name in names for name in PROCESSOR_NAMES):
        stats = read_processor_stats(folder, names, config)
        sources.append(check_stats(stats, config, lambda key: folder / processor_of(key, config), channels))
    if len(sources) == 2:
        _check_agreement(sources[0], sources[1], config, folder / STATS_NAME)
    if not sources:
        if config.normalized_features():
            raise StatsError("STATS_MISSING", folder, f"neither {STATS_NAME} nor processor files")
        return {}
    return sources[0]


def parse_stats(document: Mapping[str, Any], path: PathLike) -> FloatStats:
    """Turn a parsed ``stats.json`` into arrays of the shapes that it has; ``path`` is for messages only.

    Raises:
        StatsError: ``STATS_FORMAT``.
    """
    result: FloatStats = {}
    for feature, entry in document.items():
        if not isinstance(entry, dict):
            raise StatsError("STATS_FORMAT", path, f"{feature}: must be an object of statistics")
        for name, value in entry.items():
            if name not in STAT_NAMES:
                raise StatsError("STATS_FORMAT", path, f"{feature}.{name} is not a known statistic")
            if not _is_numeric(value):
                raise StatsError("STATS_FORMAT", path, f"{feature}.{name} must be a list of numbers")
            try:
                result.setdefault(feature, {})[name] = np.asarray(value, dtype=np.float64)
            except ValueError as e:
                raise StatsError("STATS_FORMAT", path, f"{feature}.{name}: lists of different lengths") from e
    return result


def check_stats(
    stats: FloatStats, config: PolicyConfig, path_of: Callable[[str], PathLike], channels: Sequence[str] = ()
) -> Stats:
    """Check the statistics of every feature that ``config`` normalises; those of other features are not used and not judged.

    Args:
        stats: in the shapes that they have where they come from.
        config: the policy they are for.
        path_of: feature → file, for messages only.
        channels: the action channels' names, for messages only.

    Returns:
        The same, flattened.

    Raises:
        StatsError: the first thing that is wrong, by feature.
    """
    for key, (feature, mode) in config.normalized_features().items():
        entry, path = stats.get(key, {}), path_of(key)
        for name in REQUIRED_STATS[mode]:
            if name not in entry:
                raise StatsError("STATS_MISSING", path, f"{key!r} is normalised by {mode} but has no {name!r}")
        _Judge(entry, key, feature, path, channels).check(mode, divides=key in config.input_features)
    return {key: {name: array.reshape(-1) for name, array in entry.items()} for key, entry in stats.items()}


def constant_channels(stats: Stats, config: PolicyConfig, channels: Sequence[str]) -> list[str]:
    """Return the action channels that the policy gives one value only, because they never moved in its data."""
    normalized = config.normalized_features().get(ACTION)
    if normalized is None:
        return []
    spread = _spread(stats[ACTION], normalized[1])
    return [name for name, width in zip(channels, spread.tolist(), strict=True) if width <= _NO_SPREAD]


def _single(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return array.astype(np.float32).reshape(-1)


def _spread(stats: Mapping[str, npt.NDArray[np.float64]], mode: str) -> npt.NDArray[np.float32]:
    """What normalisation divides by, and un-normalisation multiplies by."""
    low, high = (_single(stats[name]) for name in REQUIRED_STATS[mode])
    with np.errstate(over="ignore"):
        return high if mode == "MEAN_STD" else high - low


@dataclass(frozen=True)
class _Judge:
    """Checks the statistics of one feature, and names feature and channel of what is wrong."""

    stats: Mapping[str, npt.NDArray[np.float64]]
    key: str
    feature: Feature
    path: PathLike
    channels: Sequence[str]

    def check(self, mode: str, *, divides: bool) -> None:
        """Check shapes, values and spread; ``divides``: the policy divides by the spread."""
        size, feature = self.feature.stats_size, self.feature
        shapes = {(size,), (size, 1, 1) if feature.type == "VISUAL" else feature.shape}
        for name, array in self.stats.items():
            if name == "count":
                continue
            if array.shape not in shapes:
                reason = f"{self.key}.{name} has the shape {list(array.shape)}, a list of {size} is needed"
                raise StatsError("STATS_DIMENSION", self.path, reason)
            self._refuse("STATS_NOT_FINITE", ~np.isfinite(_single(array)), f"{name} is not finite in float32")
        if "std" in self.stats:
            self._refuse("STATS_STD", _single(self.stats["std"]) < 0, "std is negative")
        for low, high in _ORDERED:
            if low in self.stats and high in self.stats:
                wrong = _single(self.stats[low]) > _single(self.stats[high])
                self._refuse("STATS_ORDER", wrong, f"{low} exceeds {high}")
        spread, what = _spread(self.stats, mode), " and ".join(REQUIRED_STATS[mode])
        self._refuse("STATS_NOT_FINITE", ~np.isfinite(spread), f"{what} lie too far apart for float32")
        if divides:
            code, what = ("STATS_STD", "std") if mode == "MEAN_STD" else ("STATS_ORDER", what)
            self._refuse(code, spread <= _NO_SPREAD, f"no spread in {what}, and {mode} divides an input by it")

    def _refuse(self, code: str, bad: npt.NDArray[np.bool_], reason: str) -> None:
        """Raise if any channel is bad."""
        if not bad.any():
            return
        i, beside = int(np.argmax(bad)), ""
        if self.key == ACTION and i < len(self.channels):
            beside = f" ({self.channels[i]})"
        elif self.feature.type == "STATE" and bad.size == len(self.channels):
            beside = f" (action channel {i} is {self.channels[i]})"
        raise StatsError(code, self.path, f"{self.key}[{i}]{beside}: {reason}")


def _check_agreement(a: Stats, b: Stats, config: PolicyConfig, path: PathLike) -> None:
    for key, (_, mode) in config.normalized_features().items():
        for name in REQUIRED_STATS[mode]:
            if not np.allclose(a[key][name], b[key][name], rtol=1e-4, atol=1e-6):  # float32 in one of them
                raise StatsError("STATS_CONFLICT", path, f"{key}.{name} differs from the processor files")


def _is_numeric(value: Any) -> bool:
    """Whether ``value`` is a number or a (nested) list of nothing but numbers; its depth is bounded by the JSON parser."""
    return is_number(value) or (isinstance(value, list) and all(map(_is_numeric, value)))
