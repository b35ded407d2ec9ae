# SPDX-License-Identifier: Apache-2.0
"""An adapter acts on its base's weights where they lie: only what it changes is computed, here in the node, and kept beside them.

The base is looked for in the store that the adapter lies in, by the digest that the adapter's manifest names. What an adapter's
preparation reads and hashes is the adapter; the base's weights are read if no generation has brought them into memory before.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint.adapter import Change, changes_of
from vla_checkpoint.bundle import Bundle, open_bundle
from vla_checkpoint.errors import CheckpointError
from vla_checkpoint.header import TensorInfo
from vla_checkpoint.tensors import from_bytes, to_bytes
from vla_policy_node.worker.api import PrepareError


@dataclass(frozen=True)
class Adapted:
    """What an adapter changes, by the base's tensor."""

    base: Bundle
    changes: Mapping[str, Change]


def find_base(bundle: Bundle) -> Adapted | None:
    """Return what an adapter bundle changes of which base; ``None``: it is a full bundle.

    Raises PrepareError BASE_MISSING, and CheckpointError for an adapter that cannot act on its base.
    """
    wanted = bundle.manifest.base
    if wanted is None:
        return None
    models = bundle.path.parent.parent
    place, beside = models / wanted.name / wanted.version, bundle.path.parent / wanted.version
    reasons = []
    for folder in dict.fromkeys((place, beside)):
        try:
            base = open_bundle(folder, expected_digest=wanted.digest)
            break
        except CheckpointError as e:
            reasons += [] if e.code == "BUNDLE_NOT_A_FOLDER" else [str(e)]
    else:
        text = f"{bundle.path} is an adapter on {wanted.name} {wanted.version} ({wanted.digest}), which has to lie at {place}"
        raise PrepareError("BASE_MISSING", "; ".join([text, *reasons]))
    weights = {info.name: info for name in base.weight_files for info in base.headers[name].tensors.values()}
    header = bundle.headers[bundle.weight_files[0]]
    return Adapted(base, changes_of(bundle.path, header, weights))


def write_changes(
    bundle: Bundle, adapted: Adapted, plan: Mapping[str, Any], base_fd: int | None, fd: int, nice: int
) -> None:
    """Compute the tensors that an adapter changes into the arena ``fd``; one at a time is in memory. Blocks.

    Args:
        bundle: the adapter; each tensor that is read, of it or its base, is compared with its manifest's digest.
        adapted: what it changes.
        plan: says where tensors lie (``plan.py``).
        base_fd: arena that holds the base's weights; ``None``: they are read from its files.
        nice: level at which this is computed, so that what acts is not disturbed.

    Raises:
        PrepareError: DIGEST_TENSOR, LOAD_FAILED.
    """

    def begin() -> None:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + nice))

    with ThreadPoolExecutor(1, "adapter", initializer=begin) as executor:
        executor.submit(_write, bundle, adapted, plan, base_fd, fd).result()


def _write(bundle: Bundle, adapted: Adapted, plan: Mapping[str, Any], base_fd: int | None, fd: int) -> None:
    name = bundle.weight_files[0]
    digests, path = bundle.manifest.tensors[name], bundle.path / name
    homes = {t["name"]: (adapted.base.path / file["path"], t) for file in plan["weights"] for t in file["tensors"]}
    places = {entry["name"]: entry["offset"] for entry in plan["changed"]}
    shared = None if base_fd is None else mmap.mmap(base_fd, plan["weights_bytes"], prot=mmap.PROT_READ)

    def read(info: TensorInfo) -> npt.NDArray[Any]:
        return from_bytes(_read(path, info, digests[info.name]), info)

    def read_base(info: TensorInfo) -> npt.NDArray[Any]:
        file, entry = homes[info.name]
        if shared is None:
            return from_bytes(_read(file, info, entry["sha256"]), info)
        return from_bytes(shared[entry["offset"] : entry["offset"] + entry["nbytes"]], info)

    for tensor, change in adapted.changes.items():
        result = change.apply(read_base, read)
        if not np.isfinite(result).all():
            raise PrepareError("LOAD_FAILED", f"{path}: {tensor!r} is not finite with the adapter")
        os.pwrite(fd, to_bytes(result, change.base.dtype), places[tensor])


def _read(path: Path, info: TensorInfo, digest: str) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(info.start)
            data = file.read(info.nbytes)
    except OSError as e:
        raise PrepareError("LOAD_FAILED", f"{path}: {e.strerror}") from e
    if len(data) != info.nbytes:
        raise PrepareError("LOAD_FAILED", f"{path}: it is shorter than its header says")
    if hashlib.sha256(data).hexdigest() != digest:
        raise PrepareError("DIGEST_TENSOR", f"{path}: tensor {info.name!r} is not the one the manifest lists")
    return data
