# SPDX-License-Identifier: Apache-2.0
"""A bundle's policy in this process, for the gate and for golden observations; robots load theirs in a worker."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from vla_checkpoint import Bundle
from vla_checkpoint.adapter import Change, changes_of
from vla_checkpoint.errors import AdapterError
from vla_checkpoint.header import TensorInfo
from vla_checkpoint.tensors import from_bytes, to_bytes
from vla_learning.errors import LearningError
from vla_policy_node.errors import WorkerError
from vla_policy_node.policies.base import Policy, TensorView
from vla_policy_node.policies.errors import PolicyError
from vla_policy_node.worker.loading import find_policy_module


def load_policy(bundle: Bundle, base: Bundle | None = None, device: str = "cpu") -> Policy:
    """Load a bundle's policy; of an adapter bundle with its base, merged as a robot merges it.

    Raises:
        CheckpointError: the adapter does not fit ``base``, or there is none.
        LearningError: this interpreter has no such policy type, or the policy refuses the bundle; with that error's code.
    """
    try:
        return _load(bundle, base, device)
    except (WorkerError, PolicyError) as e:
        raise LearningError(e.code, bundle.path, str(e)) from e


def _load(bundle: Bundle, base: Bundle | None, device: str) -> Policy:
    module = importlib.import_module(find_policy_module(bundle.manifest.policy_type, {}))
    whole = bundle
    changes: dict[str, Change] = {}
    if bundle.manifest.base is not None:
        if base is None or base.digest != bundle.manifest.base.digest:
            text = f"it is an adapter on {bundle.manifest.base.name} {bundle.manifest.base.version}, which is not given"
            raise AdapterError("ADAPTER_MISMATCH", bundle.path, text)
        whole = base
        weights = {info.name: info for name in base.weight_files for info in base.headers[name].tensors.values()}
        changes = changes_of(bundle.path, bundle.headers[bundle.weight_files[0]], weights)
    tensors: dict[str, TensorView] = {}
    for name in whole.weight_files:
        data = memoryview(bytearray((whole.path / name).read_bytes()))
        for info in whole.headers[name].tensors.values():
            view = data[info.start : info.start + info.nbytes]
            if info.name in changes:
                view = _changed(bundle, changes[info.name], view)
            tensors[info.name] = TensorView(info.dtype, info.shape, view)
    return cast(Policy, module.load(bundle.path, tensors, device))


def _changed(adapter: Bundle, change: Change, weight: memoryview) -> memoryview:
    path: Path = adapter.path / adapter.weight_files[0]
    with path.open("rb") as file:

        def read(info: TensorInfo) -> object:
            file.seek(info.start)
            return from_bytes(file.read(info.nbytes), info)

        result = change.apply(lambda info: from_bytes(bytes(weight), info), read)  # type: ignore[arg-type]
    return memoryview(bytearray(to_bytes(result, change.base.dtype)))
