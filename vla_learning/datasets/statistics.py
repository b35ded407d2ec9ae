# SPDX-License-Identifier: Apache-2.0
"""Statistics of a data set's columns, by the names that LeRobot normalises with. Exact; of pictures, those of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Histogram = npt.NDArray[np.int64]
"""How often each value of each colour occurs, ``[3, 256]``."""
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def of_vectors(values: npt.NDArray[Any]) -> dict[str, list[float]] | None:
    """Return the statistics of ``[N]`` or ``[N, D]``; rows with NaN do not count. None: there is no other."""
    rows = np.atleast_2d(values.astype(np.float64).T).T
    rows = rows[~np.isnan(rows).any(axis=1)]
    if not len(rows):
        return None
    found = {"min": rows.min(axis=0), "max": rows.max(axis=0), "mean": rows.mean(axis=0), "std": rows.std(axis=0)}
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    found |= dict(zip(QUANTILES, quantiles, strict=True))
    return {**{name: value.tolist() for name, value in found.items()}, "count": [len(rows)]}


def histogram(picture: npt.NDArray[np.uint8]) -> Histogram:
    """Count the values of a picture ``[H, W, 3]``."""
    return np.stack([np.bincount(picture[..., colour].ravel(), minlength=256) for colour in range(3)])


def of_pictures(counts: Histogram, pictures: int) -> dict[str, list[Any]]:
    """Return the statistics of so many pictures, between 0 and 1 and shaped ``[3, 1, 1]``, from all their values."""
    values = np.arange(256) / 255.0
    total = counts.sum(axis=1, keepdims=True)
    mean = (counts * values).sum(axis=1, keepdims=True) / total
    std = np.sqrt((counts * (values - mean) ** 2).sum(axis=1, keepdims=True) / total)
    cumulated = np.cumsum(counts, axis=1) / total
    found: Mapping[str, Any] = {
        "min": _first(counts > 0),
        "max": 1.0 - _first(counts[:, ::-1] > 0),
        "mean": mean,
        "std": std,
        **{name: _first(cumulated >= share) for name, share in QUANTILES.items()},
    }
    return {**{name: value.reshape(3, 1, 1).tolist() for name, value in found.items()}, "count": [pictures]}


def _first(true: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the first value, 0 to 1, at which each row is true."""
    index: npt.NDArray[np.int64] = np.argmax(true, axis=1)
    return index / 255.0
