# SPDX-License-Identifier: Apache-2.0
"""From a tensor's bytes to a ``torch.Tensor`` without copying, and to a module's weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch

from vla_policy_node.policies.base import TensorView
from vla_policy_node.policies.device_slot import place
from vla_policy_node.policies.errors import PolicyDeviceError, PolicyWeightsError

TORCH_DTYPE: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Names of the safetensors format to torch's."""


def open_device(device: str) -> torch.device:
    """Make the device ready: on a GPU this takes the context's time and memory.

    Raises :class:`PolicyDeviceError` when this interpreter's torch has no such device.
    """
    try:
        return torch.zeros(1, device=device).device
    except (AssertionError, RuntimeError) as error:  # AssertionError: a torch that was built without CUDA
        if "out of memory" in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise PolicyDeviceError(f"device {device!r}: torch {torch.__version__} cannot use it: {reason}") from error


def as_torch(view: TensorView) -> torch.Tensor:
    """The tensor that lies in ``view.data``, sharing its memory; treat it as read-only.

    Raises :class:`PolicyWeightsError` for a dtype that torch does not have or bytes that do not fit the shape.
    """
    dtype = TORCH_DTYPE.get(view.dtype)
    if dtype is None:
        raise PolicyWeightsError(f"dtype {view.dtype!r} has no torch equivalent")
    expected = math.prod(view.shape) * dtype.itemsize
    if view.data.nbytes != expected:
        raise PolicyWeightsError(f"{view.dtype} {list(view.shape)} needs {expected} bytes, got {view.data.nbytes}")
    if expected == 0:  # frombuffer refuses empty buffers
        return torch.empty(view.shape, dtype=dtype)
    with warnings.catch_warnings():
        # Inference does not write to weights, so a read-only mapping is as good as a writable one.
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        return torch.frombuffer(view.data.cast("B"), dtype=dtype).reshape(view.shape)


def as_state_dict(tensors: Mapping[str, TensorView]) -> dict[str, torch.Tensor]:
    """All of a bundle's tensors by name; a :class:`PolicyWeightsError` names the tensor."""
    state: dict[str, torch.Tensor] = {}
    for name, view in tensors.items():
        try:
            state[name] = as_torch(view)
        except PolicyWeightsError as error:
            raise PolicyWeightsError(f"tensor {name!r}: {error}") from error
    return state


def load_strictly(
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    device: torch.device,
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Make ``state``'s tensors the module's own and bring it to ``device``; every name and shape must match exactly.

    On the CPU a tensor is used where it lies, on a GPU all of them lie in one buffer.

    Args:
        module: built on the meta device or the CPU.
        state: tensors on the CPU.
        device: where the module infers.
        dtypes: what a tensor is converted to, by its name; others stay what they are.

    Raises :class:`PolicyWeightsError` with the names that differ, or those of buffers that are in no checkpoint and were left on
    the meta device: the first inference would fail.
    """
    if device.type == "cuda":
        placed = place(state, dtypes, device)
    else:
        placed = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in state.items()}
    try:
        module.load_state_dict(placed, strict=True, assign=True)
    except RuntimeError as error:
        raise PolicyWeightsError(str(error)) from error
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if left:
        raise PolicyWeightsError(f"no weights for {left}")
    module.to(device)  # buffers that are in no checkpoint; on a device of another kind everything
