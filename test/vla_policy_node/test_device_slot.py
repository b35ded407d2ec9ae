"""All weights of a policy lie in one buffer, every byte where it belongs, whatever the blocks in which it was copied."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.policies.device_slot import ALIGNMENT, BLOCK_BYTES, place

CPU = torch.device("cpu")
DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int64,
    torch.float8_e4m3fn,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
)
SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)


def numbers(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 100
    return (drawn > 50) if dtype == torch.bool else drawn.to(dtype)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


@given(
    tensors=st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=8),
    block_bytes=st.sampled_from((ALIGNMENT, 3 * ALIGNMENT, BLOCK_BYTES)),
)
def test_every_byte_is_in_one_aligned_buffer(
    tensors: list[tuple[torch.dtype, tuple[int, ...]]], block_bytes: int
) -> None:
    state = {str(i): numbers(dtype, *shape, seed=i) for i, (dtype, shape) in enumerate(tensors)}
    placed = place(state, {}, CPU, block_bytes)
    assert list(placed) == list(state)
    for name, tensor in state.items():
        found = placed[name]
        assert (found.dtype, found.shape, found.is_contiguous()) == (tensor.dtype, tensor.shape, True)
        assert raw(found) == raw(tensor)
        assert found.storage_offset() * found.itemsize % ALIGNMENT == 0
    slots = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in placed.values()}
    assert len(slots) <= 1
    assert sum(slots.values()) == sum(-(-t.numel() * t.itemsize // ALIGNMENT) * ALIGNMENT for t in state.values())


@pytest.mark.parametrize(("stored", "wanted"), list(itertools.permutations(DTYPES[3:], 2)))
def test_what_is_converted_on_the_way_is_what_torch_converts(stored: torch.dtype, wanted: torch.dtype) -> None:
    state = {"a": numbers(stored, 33, 50, seed=1), "kept": numbers(torch.float32, 700), "b": numbers(stored, 1)}
    placed = place(state, {"a": wanted, "b": wanted}, CPU, ALIGNMENT)
    assert placed["kept"].dtype == torch.float32 and raw(placed["kept"]) == raw(state["kept"])
    for name in "ab":
        assert placed[name].dtype == wanted
        assert raw(placed[name]) == raw(state[name].to(wanted))


def test_tied_tensors_share_their_place_and_those_of_another_type_do_not() -> None:
    embedding = numbers(torch.float32, 50, 8)
    state = {"embedding": embedding, "head": embedding.view(50, 8), "half": embedding, "flat": embedding.view(-1)}
    placed = place(state, {"half": torch.float16}, CPU)
    assert placed["head"].data_ptr() == placed["embedding"].data_ptr()
    assert raw(placed["half"]) == raw(embedding.half())
    assert raw(placed["flat"]) == raw(embedding)
    assert len({tensor.data_ptr() for tensor in placed.values()}) == 3


def test_a_tensor_that_does_not_lie_in_order_does_so_in_the_slot() -> None:
    tensor = numbers(torch.float32, 30, 20)
    placed = place({"a": tensor, "b": tensor.t()}, {}, CPU, ALIGNMENT)
    assert torch.equal(placed["a"], tensor) and torch.equal(placed["b"], tensor.t())
    assert placed["b"].is_contiguous()
