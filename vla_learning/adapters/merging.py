# SPDX-License-Identifier: Apache-2.0
"""Robots' adapters become one: how much each counts, the exact sum, and its recompression.

Clients are worked through in the order of their contents' hashes, so that the result's bytes do not depend on the order in which
they are named. A module that a client does not train is one that it changes by nothing. One module is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt

from vla_checkpoint.errors import AdapterError, ValueCheckError
from vla_learning.adapters.lowrank import FloatArray, LowRank, gram, recompress, weighted_sum
from vla_learning.adapters.reading import Client
from vla_learning.adapters.robust import clip_factors, geometric_median, most_attackers, multi_krum

Method = Literal["mean", "geometric-median", "krum", "ffa"]
METHODS: tuple[Method, ...] = ("mean", "geometric-median", "krum", "ffa")


@dataclass(frozen=True)
class Settings:
    """How adapters are merged."""

    method: Method = "mean"
    """``mean``: weighted; ``geometric-median`` and ``krum`` stand some clients that send anything; ``ffa``: the mean of adapters
    that share a frozen A (FFA-LoRA, arXiv 2403.12313), of which only B was trained and is averaged."""
    weights: Sequence[float] = ()
    """Of each client, for example its episodes; empty: equal."""
    rank: int | None = None
    """Largest rank of the result; ``None``: as large as exactness needs."""
    clip: float | None = None
    """Shorten clients to so many times the median client's norm."""
    attackers: int | None = None
    """``krum``: clients that may be bad; ``None``: as many as it can stand."""


@dataclass(frozen=True)
class Standing:
    """What became of one client."""

    client: Client
    given: float
    """Its weight before the method, of a sum of 1."""
    norm: float
    """‖ΔW‖ over all modules, Frobenius."""
    clip: float
    """What it was shortened by; 1: not."""
    weight: float
    """What it counts in the sum: ``ΔW = Σ weight · ΔWᵢ``."""


@dataclass(frozen=True)
class MergedModule:
    """One module of the result, ``b @ a`` in float32 as it is written (scale 1)."""

    name: str
    b: npt.NDArray[np.float32]
    a: npt.NDArray[np.float32]
    norm: float
    """‖ΔW‖ of the exact weighted sum."""
    tail: float
    """Norm of what recompression left out."""


@dataclass(frozen=True)
class Merge:
    """A merged adapter."""

    settings: Settings
    clients: Sequence[Standing]
    """In the order of their hashes."""
    modules: Sequence[MergedModule]
    """By name."""
    transposed: bool
    """``fan_in_fan_out``"""

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max(len(module.a) for module in self.modules)

    def weighted_sum(self, module: str) -> LowRank:
        """Return the exact weighted sum of a module, from the clients' files as they are now.

        Raises:
            FileError: a file cannot be read any more.
        """
        parts, weights = _parts(module, self.clients)
        return weighted_sum(parts, weights)


def merge(clients: Sequence[Client], settings: Settings) -> Merge:
    """Merge adapters of one base.

    Raises:
        AdapterError: ``MERGE_SETTINGS``; ``ADAPTER_MISMATCH``: ``ffa`` of adapters that share no A.
        ValueCheckError: ``VALUES_NOT_FINITE``: the sum exceeds float32.
        FileError: a file cannot be read any more.
    """
    _check(settings, len(clients))
    given = list(settings.weights) or [1.0] * len(clients)
    ordered = sorted(
        zip(clients, given, strict=True),
        key=lambda pair: (pair[0].sha256, pair[0].config_sha256, pair[1], pair[0].name),
    )
    clients = [client for client, _ in ordered]
    names = sorted({module for client in clients for module in client.changes})
    products = np.zeros((len(clients), len(clients)))
    for name in names:
        products += gram([client.product(name) for client in clients])
    standings = _standings(clients, np.array([weight for _, weight in ordered]), products, settings)
    return Merge(
        settings,
        standings,
        [_merge_module(name, standings, settings) for name in names],
        any(change.transposed for client in clients for change in client.changes.values()),
    )


def example_counts(clients: Sequence[Client]) -> tuple[float, ...]:
    """Return how many examples each client says that it was trained on, for weights.

    Raises:
        AdapterError: ``MERGE_SETTINGS``: one does not say.
    """
    for client in clients:
        if client.examples is None:
            _refuse(f"{client.name} does not say how many examples it was trained on; give the weights as numbers")
    return tuple(float(client.examples or 0) for client in clients)


def _check(settings: Settings, clients: int) -> None:
    weights = settings.weights
    if weights and len(weights) != clients:
        _refuse(f"{len(weights)} weights for {clients} adapters; give one for each, in their order")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        _refuse("weights must be finite and above 0; leave out an adapter that is not to count")
    if settings.rank is not None and settings.rank < 1:
        _refuse("the rank must be at least 1")
    if settings.rank is not None and settings.method == "ffa":
        _refuse("an ffa merge keeps the rank of its adapters; leave the rank away")
    if settings.clip is not None and not (math.isfinite(settings.clip) and settings.clip > 0):
        _refuse("the norm bound must be above 0")
    if settings.method == "krum":
        most = most_attackers(clients)
        if not 1 <= (settings.attackers or most) <= most:
            text = f"krum stands f bad clients of at least 2f + 3; of {clients} adapters at most {most}"
            _refuse(text if most else f"{text}; use geometric-median, or merge at least 5")
    elif settings.attackers is not None:
        _refuse("a number of bad clients is for krum only")


def _standings(
    clients: Sequence[Client], weights: FloatArray, products: FloatArray, settings: Settings
) -> list[Standing]:
    given = weights / weights.sum()
    clips = np.ones(len(clients)) if settings.clip is None else clip_factors(products, settings.clip)
    clipped = clips[:, None] * products * clips
    found = given
    if settings.method == "geometric-median":
        found = geometric_median(clipped, given)
    elif settings.method == "krum":
        found = multi_krum(clipped, given, settings.attackers or most_attackers(len(clients)))
    norms = np.sqrt(np.diagonal(products))
    return [
        Standing(client, *(float(array[i]) for array in (given, norms, clips, found * clips)))
        for i, client in enumerate(clients)
    ]


def _merge_module(name: str, standings: Sequence[Standing], settings: Settings) -> MergedModule:
    exact = weighted_sum(*_parts(name, standings))
    most = min(settings.rank or exact.rank, *exact.shape)
    tail = 0.0
    if settings.method == "ffa":
        result, norm = _average_b(name, standings), exact.norm()
    elif exact.rank > most:
        result, sigma = recompress(exact, most)
        norm, tail = float(np.linalg.norm(sigma)), float(np.linalg.norm(sigma[most:]))
    else:
        result, norm = exact, exact.norm()
    with np.errstate(over="ignore"):
        b, a = (factor.astype(np.float32, order="C") for factor in (result.b, result.a))
    if not (np.isfinite(b).all() and np.isfinite(a).all()):
        raise ValueCheckError("VALUES_NOT_FINITE", name, "the weighted sum exceeds float32; look at the clients' norms")
    return MergedModule(name, b, a, norm, tail)


def _parts(name: str, standings: Sequence[Standing]) -> tuple[list[LowRank], list[float]]:
    found = _found(name, standings)
    return [product for product, _ in found], [standing.weight for _, standing in found]


def _found(name: str, standings: Sequence[Standing]) -> list[tuple[LowRank, Standing]]:
    return [(product, standing) for standing in standings if (product := standing.client.product(name)) is not None]


def _average_b(name: str, standings: Sequence[Standing]) -> LowRank:
    found = _found(name, standings)
    shared = found[0][0].a
    for product, standing in found:
        if not np.array_equal(product.a, shared):
            text = (
                f"{name}: lora_A is another one than in {found[0][1].client.name}; ffa needs a frozen A that all share"
            )
            raise AdapterError("ADAPTER_MISMATCH", standing.client.path, f"{text}: use the method mean")
    b: FloatArray = np.sum([standing.weight * product.b for product, standing in found], axis=0)
    return LowRank(b, shared)


def _refuse(reason: str) -> NoReturn:
    raise AdapterError("MERGE_SETTINGS", "merge", reason)
