# SPDX-License-Identifier: Apache-2.0
"""Files beyond what 31 and 32 bits can count: fetched, resumed behind 4 GiB, verified and installed, in little memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from support.bundles import make_bundle
from support.waits import wait_for

from vla_checkpoint import FileEntry, Manifest, sha256_file
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.parts import PART_BYTES

GIB = 1 << 30
SIZES = (2 * GIB, 4 * GIB, 10 * GIB)
"""Of the shards' tensors [bytes]; the files are a header longer."""
STOP = 9 * GIB // 2 + 12345
AHEAD = 7 * PART_BYTES
"""What four connections fetch behind a part that stalls [bytes]."""
MOST_ABOVE_IDLE = 200 * 10**6
_ZEROS = bytes(8 << 20)
_HERE = Path(__file__).parent


def sparse_bundle(folder: Path) -> Manifest:
    """Write a bundle with three large shards of zeros that take no space, and return its manifest."""
    known = make_bundle(folder, tensors={str(size): np.zeros(1, np.float32) for size in SIZES}, shards=len(SIZES))
    names = sorted(path.name for path in folder.glob("model-*.safetensors"))
    weight_map, tensors, entries = {}, {}, {}
    for name, size in zip(names, SIZES, strict=True):
        parts = size // GIB
        header = {
            f"{name}.{i}": {"dtype": "F32", "shape": [GIB // 4], "data_offsets": [i * GIB, (i + 1) * GIB]}
            for i in range(parts)
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        with (folder / name).open("wb") as file:
            file.write(head)
            file.truncate(len(head) + size)
        entries[name] = FileEntry(name, len(head) + size, digest_of(head, size))
        tensors[name] = dict.fromkeys(header, digest_of(b"", GIB))
        weight_map |= dict.fromkeys(header, name)
    index = {"metadata": {"total_size": sum(SIZES)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    files = [
        entries.get(e.path) or FileEntry(e.path, (folder / e.path).stat().st_size, sha256_file(folder / e.path))
        for e in known.files
    ]
    return replace(known, files=tuple(files), tensors=tensors)


_digests: dict[tuple[bytes, int], str] = {}


def digest_of(head: bytes, zeros: int) -> str:
    """Return the SHA-256 of a beginning and so many zeros."""
    if (head, zeros) not in _digests:
        digest = hashlib.sha256(head)
        for _ in range(zeros // len(_ZEROS)):
            digest.update(_ZEROS)
        _digests[head, zeros] = digest.hexdigest()
    return _digests[head, zeros]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "registry"
    yield folder
    for path in tmp_path.rglob("*"):  # pytest keeps the folders of the last runs
        if path.is_file() and path.stat().st_size > GIB:
            path.unlink()


def said(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


@pytest.mark.timeout(1800)
def test_shards_of_2_4_and_10_gib_arrive_in_little_memory_and_no_byte_is_sent_twice(
    tmp_path: Path, registry: Path
) -> None:
    manifest = sparse_bundle(registry / "pick_place/1.0.0")
    place = registry / "pick_place/1.0.0/manifest.json"
    place.write_bytes(manifest.canonical())
    largest = max(manifest.files, key=lambda entry: entry.size)
    path = f"/pick_place/1.0.0/{largest.path}"
    command = [sys.executable, str(_HERE / "sparse_server.py"), str(registry)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            base = f"http://127.0.0.1:{int(said(server.stdout))}"
            assert server.stdin is not None
            server.stdin.write(f"{path} {STOP}\n")
            server.stdin.flush()
            assert said(server.stdout) == "noted\n"
            second = fetch_in_two(tmp_path / "store", base, manifest.digest, largest)
            server.stdin.close()
            sent = json.loads(said(server.stdout))
        finally:
            server.kill()
    found = json.loads(second.stdout)
    print(f"idle {found['idle'] / 1e6:.0f} MB, at its peak {found['peak'] / 1e6:.0f} MB")
    assert found["states"] == ["CHECKING", "FETCHING", "VERIFYING", "INSTALLED"]
    for entry in manifest.files:
        assert sent[f"/pick_place/1.0.0/{entry.path}"] == entry.size, entry.path
        installed = tmp_path / "store/models/pick_place/1.0.0" / entry.path
        assert installed.stat().st_size == entry.size and installed.stat().st_nlink == 2
    assert found["peak"] - found["idle"] < MOST_ABOVE_IDLE


def fetch_in_two(store: Path, base: str, digest: str, largest: FileEntry) -> subprocess.CompletedProcess[str]:
    """Kill a client when one part of the largest file has stalled and all in the window have come; let another one go on."""
    url = f"{base}/pick_place/1.0.0/manifest.json"
    settings = {"store": str(store), "source": base, "manifest_url": url, "manifest_sha256": digest}
    command = [sys.executable, str(_HERE / "update_client.py"), json.dumps(settings)]
    blobs = BlobStore(store / "blobs/sha256", store / "partial", Filesystem())

    def stands() -> bool:
        known = blobs.info(largest.sha256, largest.size).parts
        return known.front() == STOP and known.total == STOP + AHEAD

    with subprocess.Popen(command) as first:
        try:
            wait_for(stands, "4.5 GiB of 10, and what lies ahead", timeout_s=900.0)
        finally:
            first.kill()
    second = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert second.returncode == 0, second.stderr
    return second
