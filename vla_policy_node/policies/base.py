# SPDX-License-Identifier: Apache-2.0
"""What a policy is to the runtime: a thing that turns one observation into one action chunk.

The runtime never looks inside. Normalisation, tokenisation and device placement are the policy's own business, so that shared
memory carries physical units only. The module of a policy type offers

* ``load(bundle_dir: Path, tensors: Mapping[str, TensorView], device: str) -> Policy``; an exception of its own with a ``code``
  reaches the status as it is (``policies/errors.py``);
* optionally ``preload(device: str) -> None``: slow first-time work (lazy imports, a device's context) that a waiting worker does
  ahead of any bundle.

A policy that draws random numbers offers ``seed(seed: int) -> None`` beside :class:`Policy`'s methods: what it draws from then on
depends on nothing else. Golden replay calls it before an observation whose expected chunk was made with that seed.

A policy may have the attribute ``lets_tensors_go``, true: what it still needs of ``tensors`` after ``load``, it refers to by
views, arrays or torch tensors, not by addresses. Where nothing refers to them any more, as on a GPU, their memory is used for the
next bundle.

``load``, ``preload`` and the golden replay run in a worker's low-priority thread; the warm-up runs in its main thread, the shadow
in another low-priority one, and whatever acts in the main thread again. They come one after the other, never two at once; what
belongs to a thread (``torch.inference_mode``) is entered in :meth:`Policy.predict_chunk`, not in ``load``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Observation = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class TensorView:
    """One tensor's bytes where they lie in the weights' arena (no copy).

    ``dtype`` is the safetensors name (``BF16``, ``F32``, …); ``data`` is ``prod(shape) * itemsize`` bytes, C order, and
    stays valid as long as the worker lives (with ``lets_tensors_go``: as long as anything refers to it).
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True)
class FeatureSpec:
    """One observation feature: ``observation.state`` float32 ``[S]``, ``observation.images.<name>`` uint8 ``[H, W, 3]``."""

    shape: tuple[int, ...]
    dtype: str  # numpy name: "float32" or "uint8"


@dataclass(frozen=True)
class PolicySpec:
    """The shape of a policy's input and output."""

    observation: Mapping[str, FeatureSpec]
    horizon: int  # H: actions in a chunk
    execute: int  # actions meant to be executed before the next chunk takes over, 1 <= execute <= H
    action_dim: int  # A
    uses_instruction: bool = True
    history: int = 1
    """Observations that a chunk is made from. Above 1, each feature comes as ``[history, …]``: one period apart, newest last, and
    all of one episode (at its start the oldest one is repeated)."""


class Policy(Protocol):
    """A loaded policy."""

    spec: PolicySpec

    def reset(self) -> None:
        """Forget what an episode left behind (called at every start of an episode and after a hold)."""

    def predict_chunk(self, observation: Observation, instruction: str) -> FloatArray:
        """Return actions float32 ``[H, A]`` in physical units; action ``i`` is meant for ``i`` periods after the observation.

        Raises whatever it likes: the runtime reports it as ``POLICY_FAILED`` and holds.
        """
