# SPDX-License-Identifier: Apache-2.0
"""All weights of a policy in one buffer on a GPU, its slot, copied there in blocks of bounded size.

A GPU reads host memory by itself only if it is pinned, which is scarce and slow to get. So two blocks of it take turns: one is
filled, and converted to the network's types meanwhile, while the other one is on its way.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import nullcontext

import torch

ALIGNMENT = 512
"""Of each tensor in the slot [bytes]: that of torch's own allocations on a GPU."""
BLOCK_BYTES = 16 << 20

_Piece = tuple[int, torch.Tensor, torch.dtype]
"""Offset in the slot [bytes], values of one dimension on the CPU, and the dtype that they get there."""


def place(
    state: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, torch.Tensor]:
    """Return ``state``'s tensors as views of one new buffer on ``device``; all bytes are there when it returns.

    Args:
        state: tensors on the CPU. Those of one type and shape at one address are tied: they share their place.
        dtypes: what a tensor is converted to, by its name; others stay what they are.
        device: a GPU. On the CPU the same blocks are copied, one after the other.
        block_bytes: of each staging buffer; a multiple of ``ALIGNMENT``.

    Raises RuntimeError ("out of memory") when the buffer does not fit.
    """
    size = 0
    offsets: dict[Hashable, int] = {}
    sources: list[_Piece] = []
    places: list[tuple[str, int, torch.Tensor, torch.dtype]] = []
    for name, tensor in state.items():
        dtype = dtypes.get(name, tensor.dtype)
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, dtype)
        if same not in offsets:
            offsets[same] = size
            sources.append((size, tensor.reshape(-1), dtype))
            size += -(-tensor.numel() * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        places.append((name, offsets[same], tensor, dtype))
    slot = torch.empty(size, dtype=torch.uint8, device=device)
    if size:
        block_bytes = min(block_bytes, size)
        _copy(slot, _pieces(sources, block_bytes), block_bytes)
    return {
        name: slot[offset : offset + tensor.numel() * dtype.itemsize].view(dtype).view(tensor.shape)
        for name, offset, tensor, dtype in places
    }


def _pieces(sources: Iterable[_Piece], block_bytes: int) -> Iterator[_Piece]:
    """Cut at the ends of blocks: no element lies across one, since blocks are multiples of any element's size."""
    for offset, values, dtype in sources:
        done = 0
        while done < len(values):
            begin = offset + done * dtype.itemsize
            count = min(len(values) - done, (block_bytes - begin % block_bytes) // dtype.itemsize)
            yield begin, values[done : done + count], dtype
            done += count


def _copy(slot: torch.Tensor, pieces: Iterable[_Piece], block_bytes: int) -> None:
    """Bring ``pieces``, in the order of their offsets, to the slot."""
    ring = _Ring(slot, block_bytes)
    try:
        for block, inside in itertools.groupby(pieces, lambda piece: piece[0] // block_bytes):
            staging, end = ring.take(), 0
            for offset, values, dtype in inside:
                begin = offset - block * block_bytes
                end = begin + len(values) * dtype.itemsize
                staging[begin:end].view(dtype).copy_(values)
            ring.send(block * block_bytes, end)
    finally:
        ring.wait()


class _Ring:
    """Two staging buffers; each is filled again only when what it held has reached the slot."""

    def __init__(self, slot: torch.Tensor, block_bytes: int) -> None:
        gpu = slot.device.type == "cuda"
        self._slot, self._turn = slot, 0
        self._staging = [torch.empty(block_bytes, dtype=torch.uint8, pin_memory=gpu) for _ in range(2)]
        # Priority 0, the default, is the lowest of a GPU; a blocking event leaves the processor to others while it waits.
        self._stream = torch.cuda.Stream(slot.device) if gpu else None  # type: ignore[no-untyped-call]
        self._sent = [torch.cuda.Event(blocking=True) for _ in range(2)] if gpu else []  # type: ignore[no-untyped-call]
        if self._stream is not None:
            # The slot's memory was taken on the current stream, which may still have work on what lay there before.
            self._stream.wait_stream(torch.cuda.current_stream(slot.device))

    def take(self) -> torch.Tensor:
        """Return the buffer to fill next."""
        self._turn = 1 - self._turn
        if self._sent:
            self._sent[self._turn].synchronize()  # returns at once before the first record
        return self._staging[self._turn]

    def send(self, offset: int, size: int) -> None:
        """Let the first ``size`` bytes of the buffer last taken go to the slot's ``offset``."""
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            self._slot[offset : offset + size].copy_(self._staging[self._turn][:size], non_blocking=True)
        if self._sent:
            self._sent[self._turn].record(self._stream)

    def wait(self) -> None:
        """Wait until nothing is on its way."""
        for sent in self._sent:
            sent.synchronize()
