# SPDX-License-Identifier: Apache-2.0
"""What a robot's adapter changes of its base: an adapter bundle, or a plain PEFT folder.

Formula and refusals are those with which a robot installs one (``vla_checkpoint.adapter``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from vla_checkpoint import MANIFEST_NAME, Bundle, open_bundle, read_header, sha256_file, verify_bundle
from vla_checkpoint.adapter import ADAPTER_CONFIG_NAME, Change, changes_of
from vla_checkpoint.errors import AdapterError
from vla_checkpoint.scan import check_values, scan_file
from vla_checkpoint.shards import ADAPTER_WEIGHTS_NAME
from vla_checkpoint.stats import Stats
from vla_checkpoint.strict_json import is_int, load_object
from vla_checkpoint.tensors import read_array
from vla_learning.adapters.lowrank import FloatArray, LowRank

_WEIGHT = ".weight"


@dataclass(frozen=True)
class Client:
    """One robot's adapter; its matrices are read when they are asked for."""

    name: str
    """The end of its folder's path that tells it from the others."""
    path: Path
    bundle: Bundle | None
    """``None``: a plain PEFT folder. What it was trained on is then known by its tensors' shapes only."""
    sha256: str
    """Of ``adapter_model.safetensors``."""
    config_sha256: str
    """Of ``adapter_config.json``."""
    task_type: str | None
    changes: Mapping[str, Change]
    """Module of the base → what is done to its weight."""

    @property
    def examples(self) -> int | None:
        """How many examples it was trained on, as its manifest says (``lineage.training.examples``); ``None``: it does not."""
        training = {} if self.bundle is None else self.bundle.manifest.lineage.get("training")
        count = training.get("examples") if isinstance(training, dict) else None
        return count if is_int(count) and count > 0 else None

    def product(self, module: str) -> LowRank | None:
        """Read what it changes of a module, in float64 with its scale; ``None``: nothing.

        Raises:
            FileError: the file cannot be read any more.
        """
        change = self.changes.get(module)
        if change is None or change.a is None or change.b is None:
            return None
        path = self.path / ADAPTER_WEIGHTS_NAME
        a, b = (read_array(path, info).astype(np.float64) for info in (change.a, change.b))
        scaled: FloatArray = change.scale * b
        return LowRank(scaled, a)


def open_base(folder: str | os.PathLike[str]) -> Bundle:
    """Open the bundle that adapters act on; its weights' bytes are not read.

    Raises:
        CheckpointError: it is no bundle; ``ADAPTER_MISMATCH``: it is an adapter itself.
    """
    base = open_bundle(folder)
    if base.manifest.kind != "full":
        _refuse(base.path, "an adapter itself; name the full bundle that the adapters were trained on")
    return base


def open_clients(folders: Sequence[str | os.PathLike[str]], base: Bundle) -> list[Client]:
    """Check adapters whole (hashes, NaN, shapes against the base, normalisation against each other); same order.

    Raises:
        CheckpointError: a file is damaged; ``VALUES_NOT_FINITE``.
        AdapterError: ``ADAPTER_UNSUPPORTED``: more than a plain LoRA; ``ADAPTER_MISMATCH``: of another base, or not alike.
    """
    paths = [Path(folder).resolve() for folder in folders]
    clients = [open_client(path, base, name) for path, name in zip(paths, _names(paths), strict=True)]
    first = clients[0]
    for client in clients[1:]:
        _check_alike(first, client)
    return clients


def open_client(path: Path, base: Bundle, name: str) -> Client:
    """Check one adapter whole; see :func:`open_clients`."""
    bundle = _open_bundle(path, base) if (path / MANIFEST_NAME).exists() else None
    weights = path / ADAPTER_WEIGHTS_NAME
    if bundle is None:
        header = read_header(weights)
        scan = scan_file(weights, header)
        check_values(weights, scan)
        sha256 = scan.sha256
    else:
        header = bundle.headers[ADAPTER_WEIGHTS_NAME]
        sha256 = next(entry.sha256 for entry in bundle.manifest.files if entry.path == ADAPTER_WEIGHTS_NAME)
    tensors = {info.name: info for file in base.weight_files for info in base.headers[file].tensors.values()}
    changes: dict[str, Change] = {}
    for tensor, change in changes_of(path, header, tensors).items():
        if change.whole is not None:
            text = f"it trains {tensor!r} whole (modules_to_save); train it with LoRA layers only to merge it"
            raise AdapterError("ADAPTER_UNSUPPORTED", path / ADAPTER_CONFIG_NAME, text)
        changes[tensor.removesuffix(_WEIGHT)] = change
    config = path / ADAPTER_CONFIG_NAME
    task_type = load_object(config).get("task_type")
    return Client(
        name, path, bundle, sha256, sha256_file(config), task_type if isinstance(task_type, str) else None, changes
    )


def _open_bundle(path: Path, base: Bundle) -> Bundle:
    bundle = verify_bundle(path)
    wanted = bundle.manifest.base
    if wanted is None:
        _refuse(path, "a full bundle; only adapters are merged")
    if wanted.digest != base.digest:
        text = f"trained on {wanted.name} {wanted.version} ({wanted.digest[:12]}…), not on {base.manifest.name} "
        _refuse(path, f"{text}{base.manifest.version} ({base.digest[:12]}…); merge it with adapters of its own base")
    return bundle


def _check_alike(first: Client, other: Client) -> None:
    """Changes add up only if both networks take and give the same numbers for the same world."""
    for module in sorted(first.changes.keys() & other.changes.keys()):
        if first.changes[module].transposed != other.changes[module].transposed:
            _refuse(other.path, f"{module}: fan_in_fan_out is another one than in {first.name}")
    if first.bundle is None or other.bundle is None:
        return
    one, two = first.bundle.config, other.bundle.config
    for key in ("type", "input_features", "output_features", "normalization_mapping", "chunk_size", "n_obs_steps"):
        if getattr(one, key) != getattr(two, key):
            _refuse(other.path, f"config.json has another {key} than that of {first.name}")
    if not _same_stats(first.bundle.stats, other.bundle.stats):
        text = f"it normalises by other statistics than {first.name}; train adapters with the statistics of their base"
        _refuse(other.path, text)


def _same_stats(one: Stats, other: Stats) -> bool:
    return one.keys() == other.keys() and all(
        one[feature].keys() == other[feature].keys()
        and all(np.array_equal(one[feature][name], other[feature][name]) for name in one[feature])
        for feature in one
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Return as much of the end of each path as tells them apart."""
    most = max(len(path.parts) for path in paths)
    for count in range(1, most + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _refuse(path: Path, reason: str) -> NoReturn:
    raise AdapterError("ADAPTER_MISMATCH", path, reason)
