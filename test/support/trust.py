# SPDX-License-Identifier: Apache-2.0
"""A registry that is signed, and the attacks on it: real files behind a real HTTP server, real keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile

from vla_checkpoint.repository import keys
from vla_checkpoint.repository.metadata import sign_tree, utc_now
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.signed import SignedVersions
from vla_ota_manager.fetch.source import parse_url
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.filesystem import Filesystem


class SignedRegistry:
    """A folder of versions with its keys. What ``tamper`` changes, the right keys sign again if ``signers`` says nothing else."""

    def __init__(self, tree: Path, folder: Path, root_keys: int = 1, threshold: int = 1) -> None:
        self.tree, self.keys = tree, folder
        keys.init(folder, utc_now(), root_keys, threshold)
        self.trust_root = folder / "1.root.json"

    @property
    def trust(self) -> Path:
        """The folder of signed metadata."""
        return self.tree / "trust"

    def sign(self, age: timedelta = timedelta()) -> None:
        """Sign everything, as if it were done ``age`` ago."""
        sign_tree(self.tree, keys.load_roots(self.keys), self.signers, utc_now() - age)

    @property
    def signers(self) -> list[Signer]:
        """Every key."""
        return list(keys.load_signers(self.keys).values())

    def files(self) -> dict[str, bytes]:
        """Return the metadata as they are."""
        return {path.name: path.read_bytes() for path in self.trust.iterdir()}

    def put_back(self, files: dict[str, bytes]) -> None:
        """Serve these metadata and no others."""
        for path in self.trust.iterdir():
            path.unlink()
        for name, data in files.items():
            (self.trust / name).write_bytes(data)

    def name_of(self, role: str) -> str:
        """Return the newest file of a role."""
        found = [path.name for path in self.trust.glob(f"*{role}.json")]
        return max(found, key=lambda name: int(name.partition(".")[0]) if name[0].isdigit() else 0)

    def tamper(
        self, name: str, change: Callable[[Any], None], signers: Iterable[Signer] | None = None, to: str = ""
    ) -> None:
        """Change the signed part of a file, sign it, and serve it, under its name or as ``to``."""
        metadata: Metadata[Any] = Metadata.from_bytes((self.trust / name).read_bytes())
        role = metadata.signed.type
        wanted = set(metadata.signatures)
        change(metadata.signed)
        metadata.signatures.clear()
        for signer in self.signers if signers is None else signers:
            if signers is not None or signer.public_key.keyid in wanted:
                metadata.sign(signer, append=True)
        (self.trust / (to or name)).write_bytes(metadata.to_bytes())
        assert role in name

    def follow(self, role: str) -> None:
        """Let snapshot and timestamp name the newest file of a role, as the online key would after it was stolen."""
        above = {"targets": "snapshot", "snapshot": "timestamp"}
        while role in above:
            name, data = self.name_of(role), (self.trust / self.name_of(role)).read_bytes()
            version = int(name.partition(".")[0])
            entry = MetaFile.from_data(version, data, ["sha256"])
            role = above[role]

            def change(signed: Any, role: str = role, entry: MetaFile = entry) -> None:
                signed.version += 1
                if role == "snapshot":
                    signed.meta["targets.json"] = entry
                else:
                    signed.snapshot_meta = entry

            newest = self.name_of(role)
            after = int(newest.partition(".")[0]) + 1 if role == "snapshot" else 0
            self.tamper(newest, change, to=f"{after}.snapshot.json" if role == "snapshot" else newest)

    def targets_of(self, version: int) -> set[str]:
        """Return what one targets file lists."""
        return set(json.loads((self.trust / f"{version}.targets.json").read_bytes())["signed"]["targets"])


def stranger() -> Signer:
    """Return a key that no root names."""
    return CryptoSigner.generate_ed25519()


def expired(signed: Any) -> None:
    """Let signed metadata have ended a moment ago."""
    signed.expires = utc_now().replace(microsecond=0) - timedelta(seconds=2)


class Client:
    """What a robot knows, beside a server; ``clock`` is the robot's [s since 1970 UTC]."""

    def __init__(self, store: Path, base: str, trust_root: Path, **settings: Any) -> None:
        self.store, self.base = store, base
        self.clock = lambda: datetime.now().timestamp()
        defaults: dict[str, Any] = {"retries": 0, "backoff_s": 0.01, "backoff_max_s": 0.02, "read_timeout_s": 30.0}
        config = OtaConfig(store_dir=str(store), allowed_sources=(base,), **{**defaults, **settings})
        filesystem = Filesystem()
        filesystem.make_dir(store)
        fetcher = Fetcher(config, BlobStore(store / "blobs", store / "partial", filesystem))
        self.signed = SignedVersions(trust_root, store / "trust.json", filesystem, fetcher, lambda: self.clock())
        self.received = Received()

    def find(self, path: str = "pick/1.0.0/manifest.json") -> Any:
        """Refresh, and return a target."""
        return self.signed.find(path, parse_url(f"{self.base}/trust/"), self.received, lambda: False)

    def version(self, role: str) -> int:
        """Return the version of a role that the robot has verified; 0 = none."""
        kept = self.signed.kept()
        if role == "root":
            return max(int(name.split("/")[1].partition(".")[0]) for name in kept if name.startswith("root_history/"))
        return int(json.loads(kept[f"{role}.json"])["signed"]["version"]) if f"{role}.json" in kept else 0
