# SPDX-License-Identifier: Apache-2.0
"""The manager's TUF client behind the command line that theupdateframework/tuf-conformance asks for (its CLIENT-CLI.md).

::

    pytest tuf_conformance --entrypoint "python test/support/tuf_conformance.py"

What the manager keeps in one file is laid out in the folder as the suite looks for it. The manager has no delegations' names to
ask for and fetches targets by itself: here ``SignedVersions.find`` names a target, and it is fetched and verified beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import OtaError
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.signed import FILE, SignedVersions
from vla_ota_manager.fetch.source import parse_url
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.filesystem import Filesystem


def main() -> int:
    """Run one command; return its exit status."""
    parser = argparse.ArgumentParser()
    for name in ("--metadata-dir", "--metadata-url", "--target-dir", "--target-base-url"):
        parser.add_argument(name, default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("command", choices=["init", "refresh", "download"])
    parser.add_argument("root", nargs="?", default="")
    options = parser.parse_args()
    folder = Path(options.metadata_dir)
    try:
        if options.command == "init":
            (folder / "root.json").write_bytes(Path(options.root).read_bytes())
            (folder / "trust_root").write_bytes(Path(options.root).read_bytes())
            return 0
        return _run(options, folder)
    except OtaError as e:
        print(e, file=sys.stderr)
        return 1
    finally:
        _lay_out(folder)


def _run(options: argparse.Namespace, folder: Path) -> int:
    parts = urlsplit(options.metadata_url)
    config = OtaConfig(store_dir=str(folder), allowed_sources=(f"{parts.scheme}://{parts.netloc}",), retries=0)
    filesystem = Filesystem()
    fetcher = Fetcher(config, BlobStore(folder / "blobs", folder / "partial", filesystem))
    filesystem.make_dir(folder / "robot")
    signed = SignedVersions(folder / "trust_root", folder / "robot" / FILE, filesystem, fetcher, _now)
    base, received = parse_url(options.metadata_url.rstrip("/") + "/"), Received()
    for name in options.target_name or [""]:
        target = signed.find(name, base, received, lambda: False)
        if options.command == "refresh":
            break
        if target is None:
            print(f"{name} is not signed", file=sys.stderr)
            return 1
        path = Path(options.target_dir) / quote(name, safe="")
        if path.exists():
            data = path.read_bytes()
            if len(data) == target.length and _fits(target, data):
                continue
        folder_name, slash, last = name.rpartition("/")
        place = f"{folder_name}{slash}{next(iter(target.hashes.values()))}.{last}"
        url = parse_url(f"{options.target_base_url.rstrip('/')}/{place}")
        data = fetcher.manifest(url, received, lambda: False, max(1, target.length))
        if not _fits(target, data):
            print(f"{name} is not what was signed", file=sys.stderr)
            return 1
        path.write_bytes(data)
    return 0


def _fits(target: object, data: bytes) -> bool:
    from tuf.api.exceptions import LengthOrHashMismatchError

    try:
        target.verify_length_and_hashes(data)  # type: ignore[attr-defined]
    except LengthOrHashMismatchError:
        return False
    return True


def _now() -> float:
    import time

    return time.time()


def _lay_out(folder: Path) -> None:
    """Write what the manager keeps in one file under the names that the suite reads."""
    file = folder / "robot" / FILE
    if not file.exists():
        return
    kept = json.loads(file.read_bytes())
    roots = {int(name.split("/")[1].partition(".")[0]): text for name, text in kept.items() if "/" in name}
    for path in folder.glob("*.json"):
        if path.name != "root.json" and path.name not in kept:
            path.unlink()
    (folder / "root.json").write_text(roots[max(roots)], encoding="utf-8")
    for name, text in kept.items():
        if "/" not in name:
            (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
