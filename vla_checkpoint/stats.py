# SPDX-License-Identifier: Apache-2.0
"""Normalisation statistics: there for every feature that is normalised, of the right size, and usable.

LeRobot passes a feature through unchanged when its statistics are missing, which a robot notices by moving to the wrong place.
Two sources, one or both: ``stats.json`` ``{feature: {mean, std, min, max, q01, q99, …}}``, and the processor files of
LeRobot >= 0.4 (:mod:`vla_checkpoint.processors`). Where both are there they must agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint.config import REQUIRED_STATS, Feature, PolicyConfig
from vla_checkpoint.errors import StatsError
from vla_checkpoint.files import PathLike
from vla_checkpoint.limits import DEFAULT_LIMITS, Limits
from vla_checkpoint.processors import PROCESSOR_NAMES, read_processor_stats
from vla_checkpoint.strict_json import is_number, load_object

STATS_NAME = "stats.json"
STAT_NAMES = frozenset({"mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99", "count"})

Stats = Mapping[str, Mapping[str, npt.NDArray[np.float64]]]
"""Feature → statistic → float64 ``[n]``, n as :attr:`Feature.stats_size` (flattened: pictures are one number a channel)."""

_ORDERED = (("min", "max"), ("q01", "q10"), ("q10", "q90"), ("q90", "q99"), ("q01", "q99"))


def load_stats(
    bundle_dir: PathLike, names: Collection[str], config: PolicyConfig, limits: Limits = DEFAULT_LIMITS
) -> Stats:
    """Read and check the statistics of a bundle.

    Args:
        bundle_dir: the folder.
        names: relative paths of its files.
        config: the policy they are for.
        limits: bounds on what is read.

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
        stats = parse_stats(load_object(path, limits=limits), path)
        check_stats(stats, config, path)
        sources.append(stats)
    if any(name in names for name in PROCESSOR_NAMES):
        stats = read_processor_stats(folder, names, config, limits)
        check_stats(stats, config, folder / PROCESSOR_NAMES[0])
        sources.append(stats)
    if len(sources) == 2:
        _check_agreement(sources[0], sources[1], config, folder / STATS_NAME)
    if not sources:
        if config.normalized_features():
            raise StatsError("STATS_MISSING", folder, f"neither {STATS_NAME} nor processor files")
        return {}
    return sources[0]


def parse_stats(document: Mapping[str, Any], path: PathLike) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Turn a parsed ``stats.json`` into arrays; ``path`` is for messages only.

    Raises:
        StatsError: ``STATS_FORMAT``.
    """
    result: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    for feature, entry in document.items():
        if not isinstance(entry, dict):
            raise StatsError("STATS_FORMAT", path, f"{feature}: must be an object of statistics")
        for name, value in entry.items():
            if name not in STAT_NAMES:
                raise StatsError("STATS_FORMAT", path, f"{feature}.{name} is no known statistic")
            numbers = _flatten(value)
            if numbers is None:
                raise StatsError("STATS_FORMAT", path, f"{feature}.{name} must be a (nested) list of numbers")
            result.setdefault(feature, {})[name] = np.asarray(numbers, dtype=np.float64)
    return result


def check_stats(stats: Stats, config: PolicyConfig, path: PathLike) -> None:
    """Check the statistics of every feature that ``config`` normalises; those of other features are not used and not judged.

    Raises:
        StatsError: the first thing that is wrong, by feature.
    """
    for key, (feature, mode) in config.normalized_features().items():
        entry = stats.get(key)
        if entry is None:
            raise StatsError("STATS_MISSING", path, f"{key!r} is normalised by {mode} but has no statistics")
        for name in REQUIRED_STATS[mode]:
            if name not in entry:
                raise StatsError("STATS_MISSING", path, f"{key!r} is normalised by {mode} but has no {name!r}")
        _check_entry(entry, key, feature, mode, path)


def _check_entry(
    entry: Mapping[str, npt.NDArray[np.float64]], key: str, feature: Feature, mode: str, path: PathLike
) -> None:
    for name, array in entry.items():
        if name == "count":
            continue
        if array.size != feature.stats_size:
            reason = f"{key}.{name} has {array.size} numbers, {feature.type} {feature.shape} needs {feature.stats_size}"
            raise StatsError("STATS_DIMENSION", path, reason)
        if not np.all(np.isfinite(array)):
            raise StatsError("STATS_NOT_FINITE", path, f"NaN or infinity in {key}.{name}")
    std = entry.get("std")
    if std is not None and not np.all(std > 0 if mode == "MEAN_STD" else std >= 0):
        raise StatsError("STATS_STD", path, f"{key}.std must be above 0 where it is divided by, and never negative")
    for low, high in _ORDERED:
        if low in entry and high in entry and not np.all(entry[low] <= entry[high]):
            raise StatsError("STATS_ORDER", path, f"{key}: {low} exceeds {high}")


def _check_agreement(a: Stats, b: Stats, config: PolicyConfig, path: PathLike) -> None:
    for key, (_, mode) in config.normalized_features().items():
        for name in REQUIRED_STATS[mode]:
            if not np.allclose(a[key][name], b[key][name], rtol=1e-4, atol=1e-6):  # float32 in one of them
                raise StatsError("STATS_CONFLICT", path, f"{key}.{name} differs from the processor files")


def _flatten(value: Any) -> list[float] | None:
    """Return the numbers of a nested list in order; ``None`` if anything else is in it."""
    if is_number(value):
        return [float(value)]
    if not isinstance(value, list):
        return None
    numbers: list[float] = []
    for item in value:  # depth is bounded by the JSON parser
        inner = _flatten(item)
        if inner is None:
            return None
        numbers.extend(inner)
    return numbers
