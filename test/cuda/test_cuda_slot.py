"""A policy's weights lie in one buffer on the GPU, byte for byte, whatever is under way on it meanwhile."""

from __future__ import annotations

import torch

from vla_policy_node.policies.device_slot import ALIGNMENT, place
from vla_policy_node.policies.torch_tensors import load_strictly

GPU = torch.device("cuda:0")
_SMALL = 256 << 10
_UNSPLIT_BYTES = 2 << 20
"""torch may give a buffer up to so much more than it asked for."""


def numbers(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 100).to(dtype)


def state_of(megabytes: int) -> dict[str, torch.Tensor]:
    """Tensors of several types and of sizes that fit no block."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.float8_e4m3fn)
    count = (megabytes << 20) // sum(dtype.itemsize for dtype in dtypes) - 7
    state = {str(dtype): numbers(count, dtype, seed) for seed, dtype in enumerate(dtypes)}
    return {**state, "none": torch.empty(0, 3), "scalar": torch.tensor(3.5)}


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def assert_equal(placed: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        assert placed[name].device == GPU and placed[name].shape == tensor.shape and placed[name].dtype == tensor.dtype
        assert torch.equal(raw(placed[name]), raw(tensor)), name


def test_a_bundle_bigger_than_the_staging_buffers_arrives_byte_for_byte() -> None:
    state = state_of(100)
    assert_equal(place(state, {}, GPU), state)
    assert_equal(place(state, {}, GPU, _SMALL), state)


def test_a_staging_buffer_waits_for_its_copy_and_the_copies_for_what_used_the_memory() -> None:
    """The GPU sleeps for a second, so that no copy has begun when the third block is due; then it writes to what was freed."""
    state = state_of(8)
    size = place(state, {}, GPU, _SMALL)["none"].untyped_storage().nbytes()  # whatever happens once has happened
    torch.cuda.synchronize(GPU)
    torch.cuda.empty_cache()
    freed = torch.zeros(size, dtype=torch.uint8, device=GPU)
    address = freed.data_ptr()
    torch.cuda._sleep(2_000_000_000)
    freed.fill_(7)
    del freed
    placed = place(state, {}, GPU, _SMALL)
    torch.cuda.synchronize(GPU)
    assert placed["none"].untyped_storage().data_ptr() == address
    assert_equal(placed, state)


def test_conversion_gives_what_the_cpu_gives() -> None:
    state = state_of(20)
    dtypes = dict.fromkeys((str(torch.bfloat16), str(torch.float16), str(torch.float8_e4m3fn)), torch.float32)
    placed = place(state, dtypes, GPU, _SMALL)
    assert_equal(placed, {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in state.items()})


def test_the_slot_takes_the_memory_of_its_tensors_and_gives_it_back() -> None:
    state = state_of(100)
    size = sum(-(-tensor.numel() * tensor.itemsize // ALIGNMENT) * ALIGNMENT for tensor in state.values())
    before = torch.cuda.memory_allocated(GPU)
    placed = place(state, {}, GPU)
    assert len({t.untyped_storage().data_ptr() for t in placed.values() if t.numel()}) == 1
    assert size <= torch.cuda.memory_allocated(GPU) - before <= size + _UNSPLIT_BYTES
    del placed
    assert torch.cuda.memory_allocated(GPU) == before


def test_a_module_gets_its_weights_tied_ones_once_and_its_other_buffers_follow() -> None:
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50, bias=False))
    module.register_buffer("scale", torch.arange(3.0), persistent=False)
    weights = numbers(400, torch.float16, 1).view(50, 8)
    load_strictly(
        module, {"0.weight": weights, "1.weight": weights}, GPU, {"0.weight": torch.float32, "1.weight": torch.float32}
    )
    assert {tensor.device for tensor in (*module.parameters(), *module.buffers())} == {GPU}
    assert module[0].weight.data_ptr() == module[1].weight.data_ptr()
    words = torch.tensor([[3, 7]])
    expected = weights.float()[words] @ weights.float().T
    assert torch.allclose(module(words.to(GPU)).cpu(), expected, rtol=1e-3)
