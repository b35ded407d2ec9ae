# SPDX-License-Identifier: Apache-2.0
"""What strangers' bytes reach: each target takes any bytes and ends, or raises one of the project's coded errors."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from securesystemslib.formats import encode_canonical
from support.bundles import make_bundle, plain_golden
from support.episodes import make_episode
from tuf.api.metadata import Metadata, MetaFile

from vla_checkpoint import CheckpointError, Manifest, load_manifest, read_header
from vla_checkpoint.bundle import inspect_folder
from vla_checkpoint.delta import apply_delta, make_delta, parse_offers, read_delta
from vla_checkpoint.folder import list_folder
from vla_checkpoint.manifest import BaseRef
from vla_checkpoint.repository import keys
from vla_checkpoint.repository.metadata import sign_tree, utc_now
from vla_learning.episodes.reading import read_episode
from vla_learning.errors import LearningError
from vla_ota_manager.acquire import Acquirer, Callbacks
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import OtaError
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.signed import SignedVersions
from vla_ota_manager.fetch.source import join_url, parse_url
from vla_ota_manager.records import Update
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.state import State, UpdateRecord
from vla_ota_manager.store.store import Store
from vla_sim.checkpoint_server import publish_bundle

CODED = (CheckpointError, OtaError, LearningError)
"""What a target may raise. Everything else is a finding."""
VERSION = "1.0.0"


@dataclass(frozen=True)
class Target:
    """A way into the project."""

    seeds: list[bytes]
    """Valid inputs: what mutations begin with."""
    run: Callable[[bytes], object]


class _Unflushed(Filesystem):
    """Power is not lost here: thousands of stores an hour need not wait for a disk."""

    def _flush(self, fd: int, path: Path) -> None:
        pass

    def _flush_dir(self, path: Path) -> None:
        pass


# -- files of a bundle --------------------------------------------------------------------------------------------------------


def header(scratch: Path) -> Target:
    """A safetensors file."""
    tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.int8), "s": np.array(True)}
    return _file(scratch, read_header, [safetensors.numpy.save(tensors, {"k": "v"}), safetensors.numpy.save({})])


def manifest(scratch: Path) -> Target:
    """A manifest."""
    base = BaseRef("pick", VERSION, "0" * 64)
    full = make_bundle(scratch / "full", shards=2, golden=plain_golden(), requires={"lerobot": ">=0.4,<0.5"})
    return Target([full.canonical(), make_bundle(scratch / "adapter", base=base).canonical()], Manifest.parse)


def config(scratch: Path) -> Target:
    """``config.json`` in its folder."""
    return _bundle_file(scratch, "config.json")


def stats(scratch: Path) -> Target:
    """``stats.json`` in its folder."""
    return _bundle_file(scratch, "stats.json")


def index(scratch: Path) -> Target:
    """The index of shards in its folder."""
    return _bundle_file(scratch, "model.safetensors.index.json", shards=2)


def golden(scratch: Path) -> Target:
    """``golden.safetensors`` in its folder, read."""
    return _bundle_file(scratch, "golden.safetensors", golden=plain_golden())


def adapter(scratch: Path) -> Target:
    """``adapter_config.json`` in its folder."""
    return _bundle_file(scratch, "adapter_config.json", base=BaseRef("pick", VERSION, "0" * 64))


def _bundle_file(scratch: Path, name: str, **bundle: Any) -> Target:
    folder = scratch / "bundle"
    known = make_bundle(folder, **bundle)

    def run(data: bytes) -> None:
        (folder / name).write_bytes(data)
        inspect_folder(folder, known, list_folder(folder)).golden()

    return Target([(folder / name).read_bytes()], run)


def _file(scratch: Path, read: Callable[[Path], object], seeds: list[bytes]) -> Target:
    def run(data: bytes) -> None:
        path = scratch / "tried"
        path.write_bytes(data)
        read(path)

    return Target(seeds, run)


# -- deltas -------------------------------------------------------------------------------------------------------------------


def delta(scratch: Path) -> Target:
    """A tensor delta, applied: it makes exactly the target, or nothing that counts."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(16, 24)).astype(np.float32)
    low_rank = (rng.normal(size=(16, 2)) @ rng.normal(size=(2, 24)) * 1e-3).astype(np.float32)
    safetensors.numpy.save_file({"w": w, "still": w[0]}, scratch / "base")
    new = {"w": w + low_rank, "still": w[0], "new": rng.normal(size=200).astype(np.float32), "n": np.arange(500)}
    safetensors.numpy.save_file(new, scratch / "target")
    make_delta([scratch / "base"], scratch / "target", scratch / "delta")
    wanted = (scratch / "target").read_bytes()

    def read(path: Path) -> None:
        made = bytearray()
        promised = read_delta(path).target.size

        def write(data: bytes) -> None:
            assert len(made) + len(data) <= promised, "more is made than was promised"
            made.extend(data)

        apply_delta(path, [scratch / "base"], write, workers=1)
        assert made == wanted

    return _file(scratch, read, [(scratch / "delta").read_bytes()])


def offers(scratch: Path) -> Target:
    """A registry's page of deltas."""
    entry = {"target": "a" * 64, "bases": ["b" * 64], "sha256": "c" * 64, "size": 123}
    return Target(
        [json.dumps({"schema": 1, "deltas": [entry]}).encode()], lambda data: parse_offers(data, "deltas.json")
    )


# -- the manager --------------------------------------------------------------------------------------------------------------


def url(scratch: Path) -> Target:
    """A reference against a URL, which may be a URL itself."""
    base = parse_url("http://host/models/pick/1.0.0/manifest.json")

    def run(data: bytes) -> None:
        text = data.decode("latin-1")
        found = join_url(base, text)
        assert (found.host, found.port) == ("host", 80) or "//" in text or ":" in text
        assert not {".", ".."} & set(found.segments)

    return Target(
        [b"http://a.example:8080/x/y?z=1", b"../../blobs/sha256/00", b"file:///srv/x", b"https://[::1]/"], run
    )


def state(scratch: Path) -> Target:
    """``state.json``: what is read can be written again."""
    ref = {"name": "pick", "version": VERSION, "digest": "a" * 64}
    document = json.loads(State().to_bytes()) | {"committed": ref, "pinned": [ref]}

    def run(data: bytes) -> None:
        found = State.from_bytes(data)
        assert State.from_bytes(found.to_bytes()) == found

    return Target([json.dumps(document).encode()], run)


def store(scratch: Path) -> Target:
    """The manifest of an offer, carried as far as it goes: downloads, links, an installed version."""
    registry, folder = scratch / "registry", scratch / "store"
    make_bundle(scratch / "old", shards=2)
    make_bundle(scratch / "new", version="1.1.0", shards=2, files={"tokenizer/words.txt": b"words"})
    publish_bundle(registry, scratch / "new")
    seed = load_manifest(scratch / "new").canonical()
    opened = Store(folder, _Unflushed())
    opened.open()
    committed = opened.import_bundle(scratch / "old", load_manifest, commit=True)
    settings = OtaConfig(
        store_dir=str(folder),
        allowed_sources=(registry.as_uri(),),
        retries=0,
        min_free_bytes=0,
        max_bundle_bytes=1 << 20,
    )
    before = {path: path.read_bytes() for path in opened.path_of(committed).rglob("*") if path.is_file()}
    callbacks = Callbacks(lambda: False, lambda text: None, lambda done, total: None, lambda share: None)
    place = registry / "pick_place/1.1.0/manifest.json"

    def run(data: bytes) -> None:
        place.write_bytes(data)
        acquirer = Acquirer(settings, opened, Fetcher(settings, opened.blobs), time.time)
        record = UpdateRecord(Update("u", place.as_uri(), hashlib.sha256(data).hexdigest()))
        try:
            for _ in range(8):
                if record.state is UpdateState.INSTALLED:
                    break
                record, _ = acquirer.step(record, callbacks)
        finally:
            opened.blobs.release(set())
            opened.retain(1)
            assert {path: path.read_bytes() for path in before} == before, "the committed version was touched"
            assert opened.has(committed) and opened.state.committed == committed
            if record.state is UpdateState.INSTALLED and record.ref not in (None, committed):
                opened.uninstall(record.ref)

    return Target([seed], run)


# -- signed metadata ----------------------------------------------------------------------------------------------------------


def tuf_timestamp(scratch: Path) -> Target:
    """The signed part of a timestamp, signed by the right key."""
    return _signed(scratch, "timestamp")


def tuf_snapshot(scratch: Path) -> Target:
    """The signed part of a snapshot, likewise."""
    return _signed(scratch, "snapshot")


def tuf_targets(scratch: Path) -> Target:
    """The signed part of a targets file, likewise: paths, delegations."""
    return _signed(scratch, "targets")


def tuf_root(scratch: Path) -> Target:
    """The signed part of the next root, likewise."""
    return _signed(scratch, "root")


def _signed(scratch: Path, role: str) -> Target:
    tree, folder, trust = scratch / "registry", scratch / "keys", scratch / "registry/trust"
    make_bundle(tree / "pick" / VERSION, name="pick")
    keys.init(folder, utc_now(), 1, 1)
    signers = keys.load_signers(folder)
    sign_tree(tree, keys.load_roots(folder), list(signers.values()), utc_now() - timedelta(hours=2))
    for name, entry in (
        ("timestamp.json", "snapshot_meta"),
        ("1.snapshot.json", "meta"),
    ):  # length and hash are optional
        document: Any = Metadata.from_bytes((trust / name).read_bytes())
        loose = MetaFile(1)
        setattr(document.signed, entry, loose if entry == "snapshot_meta" else {"targets.json": loose, "a.json": loose})
        document.sign(signers["online"])
        (trust / name).write_bytes(document.to_bytes())
    name = {"timestamp": "timestamp.json", "root": "1.root.json"}.get(role, f"1.{role}.json")
    signed = json.loads((trust / name).read_bytes())["signed"]
    if role == "root":
        name, signed["version"] = "2.root.json", 2
    if role == "targets":
        key = next(iter(json.loads((trust / "1.root.json").read_bytes())["signed"]["keys"].items()))
        below = {"name": "a", "keyids": [key[0]], "threshold": 1, "terminating": False, "paths": ["pick/*"]}
        signed["delegations"] = {"keys": dict([key]), "roles": [below]}
    signer = signers[role if role in ("root", "targets") else "online"]
    settings = OtaConfig(store_dir=str(scratch), allowed_sources=(tree.as_uri(),), retries=0)
    fetcher = Fetcher(settings, BlobStore(scratch / "blobs", scratch / "partial", _Unflushed()))
    known = scratch / "trust.json"

    def run(data: bytes) -> None:
        try:
            content = json.loads(data)
            signature = signer.sign(encode_canonical(content).encode()).to_dict()
        except Exception:  # no JSON, or a kind that canonical JSON does not have: signed or not, these are the bytes
            (trust / name).write_bytes(data)
        else:
            signature |= {"keyid": signer.public_key.keyid}
            (trust / name).write_text(json.dumps({"signed": content, "signatures": [signature]}))
        known.unlink(missing_ok=True)
        client = SignedVersions(folder / "1.root.json", known, _Unflushed(), fetcher, time.time)
        client.find(f"pick/{VERSION}/manifest.json", parse_url(f"{trust.as_uri()}/"), Received(), lambda: False)

    return Target([json.dumps(signed).encode()], run)


def tuf_kept(scratch: Path) -> Target:
    """``trust.json``, what a robot keeps of all that; a damaged one never keeps it from going on."""
    tree, folder = scratch / "registry", scratch / "keys"
    make_bundle(tree / "pick" / VERSION, name="pick")
    keys.init(folder, utc_now(), 1, 1)
    sign_tree(tree, keys.load_roots(folder), list(keys.load_signers(folder).values()), utc_now() - timedelta(hours=2))
    settings = OtaConfig(store_dir=str(scratch), allowed_sources=(tree.as_uri(),), retries=0)
    fetcher = Fetcher(settings, BlobStore(scratch / "blobs", scratch / "partial", _Unflushed()))
    known = scratch / "trust.json"
    client = SignedVersions(folder / "1.root.json", known, _Unflushed(), fetcher, time.time)

    def find() -> None:
        client.find(f"pick/{VERSION}/manifest.json", parse_url(f"{tree.as_uri()}/trust/"), Received(), lambda: False)

    def run(data: bytes) -> None:
        known.write_bytes(data)
        find()

    find()
    return Target([known.read_bytes()], run)


# -- episodes -----------------------------------------------------------------------------------------------------------------


def episode(scratch: Path) -> Target:
    """An episode of a robot, an MCAP file."""
    make_episode(scratch / "one.mcap", steps=3)

    def read(path: Path) -> None:
        _ = read_episode(path).features

    return _file(scratch, read, [(scratch / "one.mcap").read_bytes()])


TARGETS: dict[str, Callable[[Path], Target]] = {
    make.__name__: make
    for make in (
        header, manifest, config, stats, index, golden, adapter, delta, offers, url, state, store,
        tuf_timestamp, tuf_snapshot, tuf_targets, tuf_root, tuf_kept, episode,
    )
}  # fmt: skip


def make_target(name: str, scratch: Path) -> Target:
    """Set a target up in an empty folder; what it runs stays in there."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    logging.disable(logging.CRITICAL)
    random.seed(0)
    return TARGETS[name](scratch)
