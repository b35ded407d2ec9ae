# SPDX-License-Identifier: Apache-2.0
"""The plan of a load, written by the node from a bundle it has parsed and checked.

The plan is JSON in a memfd (a large model has thousands of tensors, a message has a size limit). A worker needs neither
``vla_checkpoint`` nor ``safetensors``, and never parses a header itself: names, types, places and digests are those that
were checked here.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vla_checkpoint.adapter import Change
from vla_checkpoint.bundle import Bundle
from vla_checkpoint.golden import Golden
from vla_checkpoint.header import Header
from vla_policy_node.ipc.arena import Arena, Field, Layout
from vla_policy_node.ipc.layouts import HISTORY, OBSERVATION_HZ
from vla_policy_node.policies.base import FloatArray
from vla_policy_node.worker.adapter import Adapted
from vla_policy_node.worker.api import PrepareError, WorkerConfig

ALIGNMENT = 64
"""Of each tensor in the weights' arena [bytes]: any element type, and a cache line."""


class Recording:
    """Golden observations whose chunks are the policy's own: a worker writes them where it would compare them."""

    def __init__(self, golden: Golden) -> None:
        """Lay them out; ``golden.action`` gives the shape of the answers."""
        self.golden = golden
        self.fd = golden_memory(golden)

    def action(self) -> FloatArray:
        """Return what a worker that became READY wrote: ``[N, H, A]``."""
        layout = _layout(self.golden)
        recorded: FloatArray = layout.views(memoryview(mmap.mmap(self.fd, layout.size)))["action"].copy()
        return recorded

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.fd)


@dataclass(frozen=True)
class Plan:
    """A plan and how much room its weights take."""

    document: dict[str, Any]
    weights_bytes: int
    """Of the bundle's own weights; of an adapter: of its base's."""
    changed_bytes: int
    """Of the base's weights that an adapter changes; 0: it is no adapter."""
    golden: Golden | None
    observation: Arena
    recording: Recording | None = None


def check_history(bundle: Bundle) -> None:
    """Refuse a policy that looks back on more than the node keeps: it would be shown something else, and be wrong.

    Raises PrepareError HISTORY_UNSUPPORTED.
    """
    count, rate_hz = bundle.config.n_obs_steps, bundle.manifest.action.rate_hz
    if count > (HISTORY if rate_hz <= OBSERVATION_HZ else 1):
        limit = f"up to {HISTORY} observations are kept, at {OBSERVATION_HZ:g} Hz at most"
        text = f"the policy needs {count} observations at {rate_hz:g} Hz: {limit}; train it with a smaller n_obs_steps"
        raise PrepareError("HISTORY_UNSUPPORTED", text)


def lay_out(bundle: Bundle) -> tuple[list[dict[str, Any]], int]:
    """Return where each tensor of a full bundle lies in an arena, by file, and the bytes that takes."""
    weights, offset = [], 0
    for name in bundle.weight_files:
        tensors = []
        for info in bundle.headers[name].tensors.values():
            tensors.append(
                {
                    "name": info.name,
                    "dtype": info.dtype,
                    "shape": list(info.shape),
                    "start": info.start,
                    "nbytes": info.nbytes,
                    "offset": offset,
                    "sha256": bundle.manifest.tensors[name][info.name],
                }
            )
            offset += -(-info.nbytes // ALIGNMENT) * ALIGNMENT
        weights.append({"path": name, "tensors": tensors, "aliases": _aliases(bundle.headers[name])})
    return weights, offset


def lay_out_changes(changes: Mapping[str, Change]) -> tuple[list[dict[str, Any]], int]:
    """Return where each tensor that an adapter changes lies in an arena of its own, and the bytes that takes."""
    tensors, offset = [], 0
    for name, change in changes.items():
        info = change.base
        entry = {"name": name, "dtype": info.dtype, "shape": list(info.shape), "nbytes": info.nbytes, "offset": offset}
        tensors.append(entry)
        offset += -(-info.nbytes // ALIGNMENT) * ALIGNMENT
    return tensors, offset


def make_plan(
    bundle: Bundle,
    config: WorkerConfig,
    observation: Arena,
    *,
    adapted: Adapted | None = None,
    recording: Recording | None = None,
) -> Plan:
    """Lay a bundle's tensors out in an arena and write down everything a worker needs to know.

    Args:
        bundle: what is loaded.
        config: of the worker.
        observation: the arena that it reads.
        adapted: what an adapter changes, and of which base.
        recording: observations to answer, in place of the bundle's golden ones to replay; not on a worker host.

    Raises:
        CheckpointError: the golden file is unusable.
    """
    weights, offset = lay_out(bundle if adapted is None else adapted.base)
    changed, changed_bytes = lay_out_changes({} if adapted is None else adapted.changes)
    golden = bundle.golden() if recording is None else recording.golden
    others = [{"path": f.path, "sha256": f.sha256} for f in bundle.manifest.files if f.path not in bundle.weight_files]
    remote = None
    if config.remote is not None:  # the host reads them
        weights, offset, changed, changed_bytes, golden, others = [], 0, [], 0, None, []
        base_dir = "" if adapted is None else str(adapted.base.path)
        remote = {**asdict(config.remote), "digest": bundle.digest, "base_dir": base_dir}
    document = {
        "bundle_dir": str(bundle.path),
        "policy_type": bundle.manifest.policy_type,
        "policy_modules": dict(config.policy_modules),
        "device": config.device,
        "spec": {
            "horizon": bundle.config.chunk_size,
            "execute": bundle.config.n_action_steps,
            "action_dim": len(bundle.manifest.action.channels),
            "history": bundle.config.n_obs_steps,
        },
        "requires": dict(bundle.manifest.requires),
        "weights": weights,
        "weights_bytes": offset,
        "weights_dir": str(bundle.path if adapted is None else adapted.base.path),
        "weights_are_there": False,
        "changed": changed,
        "changed_bytes": changed_bytes,
        "files": others,
        "observation": {
            "layout": observation.layout.to_json(),
            "slots": observation.slots,
            "max_age_s": config.observation_max_age_s,
            "period_s": 1.0 / bundle.manifest.action.rate_hz,
        },
        "golden": None if golden is None else {**_describe(golden), "record": recording is not None},
        "remote": remote,
    }
    return Plan(document, offset, changed_bytes, golden, observation, recording)


def _aliases(header: Header) -> dict[str, str]:
    """Return the other names of tied tensors, name → tensor, as safetensors' ``save_model`` leaves them in the metadata."""
    return {k: v for k, v in header.metadata.items() if v in header.tensors and k not in header.tensors}


def plan_memory(plan: Plan) -> int:
    """Return a new memfd that holds the plan; the caller closes it."""
    fd = os.memfd_create("vla_ota_plan", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(json.dumps(plan.document, separators=(",", ":"), allow_nan=False).encode())
    return fd


def golden_memory(golden: Golden | None) -> int:
    """Return a new memfd with the golden arrays in the plan's golden layout (empty without golden); the caller closes it."""
    fd = os.memfd_create("vla_ota_golden", os.MFD_CLOEXEC)
    if golden is not None:
        layout = _layout(golden)
        os.ftruncate(fd, layout.size)
        memory = mmap.mmap(fd, layout.size)  # unmapped with its last view, when this function returns
        views = layout.views(memoryview(memory))
        views["action"][...] = golden.action
        for name, array in golden.observations.items():
            views[name][...] = array
    return fd


def _layout(golden: Golden) -> Layout:
    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = {**golden.observations, "action": golden.action}
    return Layout([Field(name, str(array.dtype), array.shape) for name, array in sorted(arrays.items())])


def _describe(golden: Golden) -> dict[str, Any]:
    return {
        "layout": _layout(golden).to_json(),
        "instructions": list(golden.instructions),
        "tolerance": [float(t) for t in golden.tolerance],
        "seed": golden.seed,
    }
