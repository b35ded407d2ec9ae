# SPDX-License-Identifier: Apache-2.0
"""Ways to get a bundle, and to check one: the measured programs of ``store.py``; one process a run.

``python -m benchmarks.store_clients '{"way", "bundle", "base_url", "target"}'`` says ``{"seconds", "peak_bytes"}``; imports are
not counted in the seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import say
from vla_checkpoint import Manifest

_COPY_BYTES = 1 << 20


def plain(settings: dict[str, Any]) -> None:
    """``requests`` into files, then ``sha256sum`` reads them again."""
    for path, sha256 in _download(settings, flush=False):
        found = subprocess.run(["sha256sum", str(path)], check=True, capture_output=True, text=True)
        _same(path, found.stdout.split()[0], sha256)


def curl(settings: dict[str, Any]) -> None:
    """``curl`` into files, ``sync`` of them, ``sha256sum`` over them: what a shell script does."""
    target = Path(settings["target"])
    settings["begin"]()
    subprocess.run(
        ["curl", "-sSf", settings["base_url"] + "manifest.json", "--create-dirs", "-o", target / "manifest.json"],
        check=True,
    )
    entries = Manifest.parse((target / "manifest.json").read_bytes()).files
    for entry in entries:
        path = target / entry.path
        subprocess.run(["curl", "-sSf", settings["base_url"] + entry.path, "--create-dirs", "-o", path], check=True)
    subprocess.run(["sync", *(target / entry.path for entry in entries)], check=True)
    found = subprocess.run(
        ["sha256sum", *(target / entry.path for entry in entries)], check=True, capture_output=True, text=True
    )
    for entry, line in zip(entries, found.stdout.splitlines(), strict=True):
        _same(target / entry.path, line.split()[0], entry.sha256)


def hub(settings: dict[str, Any]) -> None:
    """``huggingface_hub``'s downloader from an endpoint on this machine; it does not hash what it gets."""
    os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ |= {"HF_HOME": settings["target"]}
    import huggingface_hub

    data = (Path(settings["bundle"]) / "manifest.json").read_bytes()
    settings["begin"]()
    for entry in Manifest.parse(data).files:
        path = huggingface_hub.hf_hub_download(
            "bench/policy",
            entry.path,
            endpoint=settings["base_url"].rstrip("/"),
            cache_dir=settings["target"],
            token=False,
        )
        if Path(path).stat().st_size != entry.size:
            raise RuntimeError(f"{path}: another size")


def durable(settings: dict[str, Any]) -> None:
    """``requests`` into files, flushed to the disk, then hashlib reads them again."""
    for path, sha256 in _download(settings, flush=True):
        _same(path, _sha256(path), sha256)


def ours(settings: dict[str, Any]) -> None:
    """Fetched, scanned meanwhile (every tensor's digest and values too), flushed, linked, verified and installed in a store."""
    from vla_checkpoint import verify_bundle
    from vla_ota_manager.config import OtaConfig
    from vla_ota_manager.fetch.fetcher import Fetcher, Received
    from vla_ota_manager.fetch.source import parse_url
    from vla_ota_manager.store.filesystem import Filesystem
    from vla_ota_manager.store.store import Store

    config = OtaConfig(store_dir=settings["target"], allowed_sources=(settings["base_url"],))
    store = Store(Path(settings["target"]), Filesystem())
    settings["begin"]()
    store.open()
    fetcher, received = Fetcher(config, store.blobs), Received()
    data = fetcher.manifest(parse_url(settings["base_url"] + "manifest.json"), received, _never)
    manifest = Manifest.parse(data)
    for entry in manifest.files:
        url = parse_url(settings["base_url"] + entry.path)
        fetcher.blob([url], entry.sha256, entry.size, received, lambda done: None, _never)
    with store.staged(manifest) as staged:
        verify_bundle(staged, expected_digest=manifest.digest, arrived=fetcher.arrived)
        store.install(staged, manifest)
    store.blobs.release(set())
    store.close()


def hashed(settings: dict[str, Any]) -> None:
    """One plain pass of hashlib over the bundle's files."""
    manifest = Manifest.parse((Path(settings["bundle"]) / "manifest.json").read_bytes())
    settings["begin"]()
    for entry in manifest.files:
        path = Path(settings["bundle"]) / entry.path
        _same(path, _sha256(path), entry.sha256)


def verified(settings: dict[str, Any]) -> None:
    """``verify_bundle``: also every tensor's digest, and no NaN or infinity."""
    from vla_checkpoint import verify_bundle

    settings["begin"]()
    verify_bundle(settings["bundle"])


def verified_without_values(settings: dict[str, Any]) -> None:
    """``verify_bundle(scan_values=False)``."""
    from vla_checkpoint import verify_bundle

    settings["begin"]()
    verify_bundle(settings["bundle"], scan_values=False)


WAYS: dict[str, Callable[[dict[str, Any]], None]] = {
    f.__name__: f for f in (plain, curl, hub, durable, ours, hashed, verified, verified_without_values)
}


def _download(settings: dict[str, Any], *, flush: bool) -> list[tuple[Path, str]]:
    import requests

    settings["begin"]()
    found = []
    with requests.Session() as session:
        manifest = Manifest.parse(session.get(settings["base_url"] + "manifest.json", timeout=10).content)
        for entry in manifest.files:
            path = Path(settings["target"]) / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                session.get(settings["base_url"] + entry.path, stream=True, timeout=10) as reply,
                path.open("wb") as file,
            ):
                reply.raise_for_status()
                for data in reply.iter_content(_COPY_BYTES):
                    file.write(data)
                if flush:
                    file.flush()
                    os.fsync(file.fileno())
            found.append((path, entry.sha256))
    return found


def _sha256(path: Path) -> str:
    digest, view = hashlib.sha256(), memoryview(bytearray(_COPY_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            digest.update(view[:count])
    return digest.hexdigest()


def _same(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise RuntimeError(f"{path}: {found}, not {expected}")


def _never() -> bool:
    return False


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return max(int(line.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024
    raise RuntimeError("no VmHWM")


def main() -> None:
    """Do it once."""
    settings = json.loads(sys.argv[1])
    times: list[float] = []
    settings["begin"] = lambda: times.append(time.monotonic())
    WAYS[settings["way"]](settings)
    say(seconds=time.monotonic() - times[0], peak_bytes=_peak_bytes())


if __name__ == "__main__":
    main()
