# SPDX-License-Identifier: Apache-2.0
"""Reads along what the acting generation answers: scores of its chunks, and how long it takes for one."""

from __future__ import annotations

import os
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy.typing as npt

from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.generation import GenerationHandle
from vla_policy_node.ipc.layouts import chunk_layout
from vla_policy_node.scores import Chunk, ChunkScorer

ChunkListener = Callable[[GenerationHandle, Mapping[str, npt.NDArray[Any]]], None]
"""Called with a generation and the record (``ipc.layouts.chunk_layout``) of a chunk of it."""


class ChunkWatch:
    """Follows one generation at a time. Called from one thread."""

    def __init__(self, scorer: ChunkScorer, on_chunk: ChunkListener) -> None:
        self._scorer, self._on_chunk = scorer, on_chunk
        self._handle: GenerationHandle | None = None
        self._chunks: Arena | None = None
        self._seen = 0
        self._recent_ms: deque[float] = deque(maxlen=50)
        self.inference_ms = 0.0
        """Median of the last inferences [ms]; 0 = none yet. May be read from any thread."""

    def follow(self, handle: GenerationHandle | None) -> None:
        """Follow another generation from its next chunk on; ``None`` = nothing."""
        if handle is not None and self._handle is not None and handle.id == self._handle.id:
            return
        self.close()
        self._handle = handle
        self._recent_ms.clear()
        self.inference_ms = 0.0
        self._scorer.reset()
        if handle is not None:
            layout = chunk_layout(handle.horizon, handle.action_dim)
            self._chunks = Arena.attach(layout, handle.chunk_slots, os.dup(handle.chunk_fd))
            self._seen = self._chunks.newest

    def reset(self) -> None:
        """A new episode or the end of a hold: the next chunk has no predecessor."""
        self._scorer.reset()

    def new_scores(self, *, acting: bool) -> Iterator[dict[str, float]]:
        """Yield the scores of every chunk since the last call. Chunks made while nothing acts are passed over."""
        while self._chunks is not None and self._handle is not None and self._seen < self._chunks.newest:
            newest = self._chunks.newest
            self._seen = max(self._seen + 1, newest - self._chunks.slots + 2)  # fell behind: the ring came round
            record = self._chunks.read(seq=self._seen)
            if record is None or int(record[1]["error"][()]):
                continue
            fields = record[1]
            self._recent_ms.append(float(fields["inference_ns"]) / 1e6)
            self.inference_ms = statistics.median(self._recent_ms)
            if not acting:
                self._scorer.reset()
                continue
            self._on_chunk(self._handle, fields)
            yield self._scorer.score(
                Chunk(int(fields["generation"]), int(fields["tick"]), self._handle.execute, fields["actions"])
            )

    def close(self) -> None:
        """Forget the generation and its memory."""
        if self._chunks is not None:
            self._chunks.close()
        self._chunks = self._handle = None
