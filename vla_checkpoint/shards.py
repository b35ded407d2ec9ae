# SPDX-License-Identifier: Apache-2.0
"""Which files hold the weights, and whether the shards of ``model.safetensors.index.json`` agree with it, both ways."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from vla_checkpoint.errors import BundleError, ShardError
from vla_checkpoint.files import PathLike
from vla_checkpoint.header import Header
from vla_checkpoint.strict_json import is_int, load_object

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True)
class ShardIndex:
    """``model.safetensors.index.json``."""

    weight_map: Mapping[str, str]
    """Tensor → file that holds it (a plain name beside the index)."""
    total_size: int | None
    """Bytes of all tensors together, if the index says so."""

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the shards, sorted."""
        return tuple(sorted(set(self.weight_map.values())))


def find_weight_files(folder: PathLike, names: Collection[str], kind: str) -> tuple[str, ...]:
    """Return the names of the weight files among ``names``, the files of a bundle folder.

    Args:
        folder: the bundle.
        names: relative paths of its files.
        kind: ``full`` or ``adapter``.

    Raises:
        BundleError: ``BUNDLE_WEIGHTS``: there are none, or both a single file and shards.
        ShardError: the index is malformed, or names a shard that is not there.
    """
    if kind == "adapter":
        if WEIGHTS_NAME in names or INDEX_NAME in names:
            raise BundleError("BUNDLE_WEIGHTS", folder, "an adapter holds no weights of its base")
        if ADAPTER_WEIGHTS_NAME not in names:
            raise BundleError("BUNDLE_WEIGHTS", folder, f"no {ADAPTER_WEIGHTS_NAME}")
        return (ADAPTER_WEIGHTS_NAME,)
    if ADAPTER_WEIGHTS_NAME in names:
        raise BundleError("BUNDLE_WEIGHTS", folder, f"{ADAPTER_WEIGHTS_NAME} in a full bundle")
    if INDEX_NAME in names:
        if WEIGHTS_NAME in names:
            raise BundleError("BUNDLE_WEIGHTS", folder, f"both {WEIGHTS_NAME} and {INDEX_NAME}: which is meant?")
        index = read_index(Path(folder) / INDEX_NAME)
        for shard in index.shards:
            if shard not in names:
                raise ShardError("SHARD_MISSING", Path(folder) / INDEX_NAME, f"shard {shard} is not there")
        return index.shards
    if WEIGHTS_NAME in names:
        return (WEIGHTS_NAME,)
    raise BundleError("BUNDLE_WEIGHTS", folder, f"neither {WEIGHTS_NAME} nor {INDEX_NAME}")


def read_index(path: PathLike) -> ShardIndex:
    """Read a shard index.

    Raises:
        FileError, JsonError: it is unreadable or no JSON object.
        ShardError: ``SHARD_INDEX``.
    """
    document = load_object(path)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ShardError("SHARD_INDEX", path, "weight_map must be an object with at least one tensor")
    for tensor, shard in weight_map.items():
        plain = isinstance(shard, str) and shard.endswith(".safetensors") and "/" not in shard and "\\" not in shard
        if not plain:
            raise ShardError("SHARD_INDEX", path, f"{tensor!r}: shards are safetensors files beside the index")
    metadata = document.get("metadata", {})
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, float) and total.is_integer():  # older transformers wrote it as a float
        total = int(total)
    if not isinstance(metadata, dict) or not (total is None or (is_int(total) and total >= 0)):
        raise ShardError("SHARD_INDEX", path, "metadata must be an object, total_size an integer >= 0")
    return ShardIndex(weight_map, total)


def check_shards(path: PathLike, index: ShardIndex, headers: Mapping[str, Header]) -> None:
    """Check that the index and its shards hold the same tensors in the same places.

    Args:
        path: the index, for messages.
        index: its content.
        headers: file name → header, for every ``model*.safetensors`` beside the index.

    Raises:
        ShardError: they differ.
    """
    for shard in headers.keys() - set(index.shards):
        raise ShardError("SHARD_UNLISTED", path, f"{shard} is there but no tensor is mapped to it")
    for shard in index.shards:
        if shard not in headers:
            raise ShardError("SHARD_MISSING", path, f"shard {shard} is not there")
        for tensor in headers[shard].tensors:
            home = index.weight_map.get(tensor)
            if home is None:
                raise ShardError("SHARD_INDEX", path, f"{shard} holds {tensor!r}, which is not in weight_map")
            if home != shard:
                raise ShardError("SHARD_INDEX", path, f"{tensor!r} is in {shard} but mapped to {home}")
    for tensor, shard in index.weight_map.items():
        if tensor not in headers[shard].tensors:
            raise ShardError("SHARD_INDEX", path, f"{shard} does not hold {tensor!r}")
    total = sum(headers[shard].total_size for shard in index.shards)
    if index.total_size not in (None, total):
        raise ShardError("SHARD_INDEX", path, f"total_size is {index.total_size}, the shards hold {total} bytes")
