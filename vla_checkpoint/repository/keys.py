# SPDX-License-Identifier: Apache-2.0
"""The keys folder: private keys, or where they are, and the signed roots that say which key may sign what.

::

    root.pem  root-2.pem …   sign roots; they belong on a machine that is not connected
    targets.pem              signs which versions there are
    online.pem               signs every few days that this is still the newest state (the TUF roles snapshot and timestamp)
    <name>.key.json          in place of a .pem: {"uri", "keyid", "public"}, a key that ``securesystemslib`` reaches by its URI
    1.root.json 2.root.json … the chain of roots; robots get the first as their parameter ``trust_root``
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.exceptions import Error as LibraryError
from securesystemslib.signer import CryptoSigner, Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Role, Root

from vla_checkpoint import limits
from vla_checkpoint.errors import TrustKeyError
from vla_checkpoint.files import read_bytes, write_atomically

TARGETS, ONLINE = "targets", "online"
ROOT_DAYS = 730
_NAME = "x-vla-name"
_ROLES_OF = {TARGETS: ("targets",), ONLINE: ("snapshot", "timestamp")}


def load_signers(folder: Path) -> dict[str, Signer]:
    """Return the signers of a keys folder by their names.

    Raises:
        TrustKeyError: TRUST_KEYS: a key cannot be read, or reached.
    """
    signers: dict[str, Signer] = {}
    # a rotation that was interrupted has left its key as .pem.new
    for path in sorted((*folder.glob("*.pem"), *folder.glob("*.pem.new"), *folder.glob("*.key.json"))):
        try:
            data = read_bytes(path, limits.JSON_BYTES)
            if path.suffix == ".json":
                entry = json.loads(data)
                key = Key.from_dict(entry["keyid"], entry["public"])
                signers[path.name.removesuffix(".key.json")] = Signer.from_priv_key_uri(entry["uri"], key)
            else:
                signers[path.name.removesuffix(".pem")] = CryptoSigner(load_pem_private_key(data, None))
        except (ValueError, TypeError, KeyError, OSError, UnsupportedAlgorithm, LibraryError) as e:
            raise TrustKeyError("TRUST_KEYS", path, f"is no key that can sign: {e!r}") from e
    return signers


def load_roots(folder: Path) -> dict[str, bytes]:
    """Return the chain of roots, ``1.root.json`` and on.

    Raises:
        TrustKeyError: TRUST_KEYS: there is none, or a link of the chain is missing or not signed as it must be.
    """
    found: dict[str, bytes] = {}
    before: Metadata[Root] | None = None
    while (path := folder / root_name(len(found) + 1)).exists():
        data = read_bytes(path, limits.JSON_BYTES)
        try:
            after = Metadata[Root].from_bytes(data)
            _check_follows(before, after)
        except (RepositoryError, ValueError) as e:
            raise TrustKeyError("TRUST_KEYS", path, f"is no root that follows the one before: {e}") from e
        found[path.name], before = data, after
    if not found:
        raise TrustKeyError("TRUST_KEYS", folder, "holds no 1.root.json; make one with: vla-checkpoint trust init")
    return found


def root_name(version: int) -> str:
    """Return the file name of a root."""
    return f"{version}.root.json"


def names_of(root: Root) -> dict[str, str]:
    """Return the name of each key of a root, by its id."""
    return {keyid: str(key.unrecognized_fields.get(_NAME, keyid[:12])) for keyid, key in root.keys.items()}


def init(folder: Path, now: datetime, root_keys: int = 1, threshold: int = 1) -> Metadata[Root]:
    """Make the keys that are missing, and the first root; return it.

    Args:
        folder: made if it is missing. Keys that lie in it already are used.
        now: begins the root's time.
        root_keys: how many keys there are for roots.
        threshold: how many of them must sign a root.

    Raises:
        TrustKeyError: TRUST_KEYS: there is a root already, or a threshold cannot be met.
    """
    if not 1 <= threshold <= root_keys:
        raise TrustKeyError("TRUST_KEYS", folder, f"{threshold} of {root_keys} root keys cannot sign")
    if (folder / root_name(1)).exists():
        raise TrustKeyError(
            "TRUST_KEYS", folder / root_name(1), "is there already; vla-checkpoint trust rotate changes it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    signers = load_signers(folder)
    roots = ["root" if n == 1 else f"root-{n}" for n in range(1, root_keys + 1)]
    for name in (*roots, TARGETS, ONLINE):
        if name not in signers:
            signers[name] = _generate(folder, name)
    keys = {name: _named(signers[name].public_key, name) for name in (*roots, TARGETS, ONLINE)}
    roles = {role: Role([keys[name].keyid], 1) for name, its in _ROLES_OF.items() for role in its}
    roles["root"] = Role([keys[name].keyid for name in roots], threshold)
    root = Metadata(
        Root(
            expires=now.replace(microsecond=0) + timedelta(days=ROOT_DAYS),
            keys={key.keyid: key for key in keys.values()},
            roles=roles,
            consistent_snapshot=True,
        )
    )
    _sign(root, root.signed, (signers[name] for name in roots))
    write_atomically(folder / root_name(1), root.to_bytes())
    return root


def rotate(folder: Path, now: datetime, name: str = "") -> Metadata[Root]:
    """Sign the next root: with another key in place of ``name``, or, without one, only for a longer time; return it.

    The old key's file becomes ``NAME.pem.old``: nothing reads it any more.

    Raises:
        TrustKeyError: TRUST_KEYS: no key has that name, or too few keys of the old root are here to sign.
    """
    before = Metadata[Root].from_bytes(list(load_roots(folder).values())[-1])
    signers = load_signers(folder)
    signing = list(signers.values())
    after = Metadata[Root].from_bytes(before.to_bytes())
    after.signatures.clear()
    after.signed.version += 1
    after.signed.expires = now.replace(microsecond=0) + timedelta(days=ROOT_DAYS)
    if name:
        old = next((keyid for keyid, known in names_of(before.signed).items() if known == name), None)
        if old is None:
            known = ", ".join(sorted(names_of(before.signed).values()))
            raise TrustKeyError("TRUST_KEYS", folder, f"{name!r} is no key of the root; its keys: {known}")
        signer = CryptoSigner.generate_ed25519()
        signing.append(signer)
        for role in [role for role, entry in before.signed.roles.items() if old in entry.keyids]:
            after.signed.revoke_key(old, role)
            after.signed.add_key(_named(signer.public_key, name), role)
    _sign(after, before.signed, signing)
    try:
        _check_follows(before, after)
    except RepositoryError as e:
        raise TrustKeyError("TRUST_KEYS", folder, f"too few keys are here to sign the next root: {e}") from e
    if name:
        _write_key(folder / f"{name}.pem.new", signer)
    write_atomically(folder / root_name(after.signed.version), after.to_bytes())
    if name:
        for path in (folder / f"{name}.pem", folder / f"{name}.key.json"):
            if path.exists():
                path.replace(path.with_name(f"{path.name}.old"))
        (folder / f"{name}.pem.new").replace(folder / f"{name}.pem")
    return after


def _check_follows(before: Metadata[Root] | None, after: Metadata[Root]) -> None:
    """Raise RepositoryError unless a root may follow the one before (TUF 1.0.34, 5.3)."""
    expected = before.signed.version + 1 if before is not None else 1
    if after.signed.version != expected:
        raise RepositoryError(f"it is version {after.signed.version}, {expected} is expected")
    for root in (before, after):
        if root is not None:
            root.signed.verify_delegate("root", after.signed_bytes, after.signatures)


def _sign(root: Metadata[Root], before: Root, signers: Iterable[Signer]) -> None:
    wanted = {*before.roles["root"].keyids, *root.signed.roles["root"].keyids}
    for signer in signers:
        if signer.public_key.keyid in wanted:
            root.sign(signer, append=True)


def _generate(folder: Path, name: str) -> Signer:
    signer = CryptoSigner.generate_ed25519()
    _write_key(folder / f"{name}.pem", signer)
    return signer


def _write_key(path: Path, signer: CryptoSigner) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(signer.private_bytes)
        file.flush()
        os.fsync(file.fileno())


def _named(key: Key, name: str) -> Key:
    named = Key.from_dict(key.keyid, key.to_dict())
    named.unrecognized_fields[_NAME] = name
    return named
