# SPDX-License-Identifier: Apache-2.0
"""``manifest.json``: the list of a bundle's files whose SHA-256 is the bundle's name.

* Canonical JSON (RFC 8785), exactly: other bytes with the same meaning are refused, so that one bundle has one digest.
* Closed: an unknown key is refused; what a future version adds comes with a new ``schema`` number. ``lineage`` is the free place
  (any JSON object: parents, data sets, training run).
* ``requires`` may be left out: what the workers' interpreter must have, distribution → versions, such as
  ``{"lerobot": ">=0.4,<0.5"}``.
* ``files`` lists every file of the folder but ``manifest.json`` itself; ``tensors`` every tensor of every weight file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, cast

import rfc8785

from vla_checkpoint import limits
from vla_checkpoint.digest import SHA256, is_sha256, sha256_bytes
from vla_checkpoint.errors import JsonError, ManifestError, VersionError
from vla_checkpoint.files import PathLike, read_bytes, write_atomically
from vla_checkpoint.paths import MANIFEST_NAME, check_paths
from vla_checkpoint.strict_json import is_int, is_number, parse_json
from vla_checkpoint.version import parse_version

SCHEMA = 1
Mode = Literal["absolute", "relative", "velocity", "effort"]
MODES: tuple[Mode, ...] = ("absolute", "relative", "velocity", "effort")
Kind = Literal["full", "adapter"]
KINDS: tuple[Kind, ...] = ("full", "adapter")
MAX_RATE_HZ = 10_000.0

_KEYS = (
    "schema", "name", "version", "kind", "base", "policy_type", "robot_type", "action", "created", "lineage", "files", "tensors",
)  # fmt: skip
_OPTIONAL_KEYS = ("requires",)
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,62}[a-z0-9])?")  # a folder's name on every file system
_ROBOT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")
_WORDS = {
    _NAME: "1 to 64 of a-z, 0-9, '_', '.', '-', such as pick_place",
    _ROBOT: "1 to 64 letters, digits, '_', '.', '-', such as so101_follower",
}
_CREATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_CLAUSE = r"(?:>=|<=|==|!=|>|<)[0-9]{1,9}(?:\.[0-9]{1,9}){0,4}"
_VERSIONS = re.compile(rf"{_CLAUSE}(?:,{_CLAUSE}){{0,7}}")


@dataclass(frozen=True)
class Channel:
    """One number of an action."""

    name: str
    unit: str
    """As the robot contract writes it: ``rad``, ``m``, ``rad/s``, ``N``, ``1`` …"""
    mode: Mode
    """``absolute`` and ``relative`` positions (relative: to the measured position when the chunk begins), velocity, effort."""


@dataclass(frozen=True)
class ActionSpec:
    """The action space: what a robot must fit to run the bundle."""

    channels: tuple[Channel, ...]
    rate_hz: float
    """Actions per second that the policy was trained for [Hz]."""


@dataclass(frozen=True)
class BaseRef:
    """The full bundle that an adapter belongs on."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    path: str
    """Plain relative POSIX path."""
    size: int
    """[bytes]"""
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A parsed manifest. Build one with :func:`vla_checkpoint.build_manifest`, read one with :func:`load_manifest`."""

    name: str
    version: str
    policy_type: str
    robot_type: str
    action: ActionSpec
    created: str
    """UTC, ``YYYY-MM-DDTHH:MM:SSZ``."""
    files: tuple[FileEntry, ...]
    """Sorted by path."""
    tensors: Mapping[str, Mapping[str, str]]
    """Weight file → tensor → SHA-256 of its raw bytes."""
    kind: Kind = "full"
    base: BaseRef | None = None
    """The base of an adapter; ``None`` if and only if ``kind`` is ``full``."""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, str] = field(default_factory=dict)
    """Distribution → versions that fit, as ``>=0.4,<0.5``, of the interpreter that runs the policy."""
    schema: int = SCHEMA

    @staticmethod
    def parse(data: bytes, *, path: PathLike = MANIFEST_NAME) -> Manifest:
        """Parse and check canonical manifest bytes; ``path`` is for error messages only.

        Raises:
            ManifestError: anything but a valid canonical manifest of schema 1.
            VersionError: a version in it is not Semantic Versioning.
        """
        return _Parser(path).parse(data)

    def canonical(self) -> bytes:
        """Return the RFC 8785 bytes that are stored as ``manifest.json``."""
        return rfc8785.dumps(self._document())

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`canonical`: the bundle's name."""
        return sha256_bytes(self.canonical())

    @property
    def total_bytes(self) -> int:
        """Bytes of all listed files together."""
        return sum(entry.size for entry in self.files)

    def file(self, path: str) -> FileEntry | None:
        """Return the entry of a path, if it is listed."""
        return next((entry for entry in self.files if entry.path == path), None)

    def _document(self) -> Any:
        base = self.base
        return {
            "schema": self.schema,
            "name": self.name,
            "version": self.version,
            "kind": self.kind,
            "base": None if base is None else {"name": base.name, "version": base.version, "digest": base.digest},
            "policy_type": self.policy_type,
            "robot_type": self.robot_type,
            "action": {
                "channels": [{"name": c.name, "unit": c.unit, "mode": c.mode} for c in self.action.channels],
                "rate_hz": self.action.rate_hz,
            },
            "created": self.created,
            "lineage": dict(self.lineage),
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self.files],
            "tensors": {file: dict(tensors) for file, tensors in self.tensors.items()},
            **({"requires": dict(self.requires)} if self.requires else {}),
        }


def load_manifest(bundle_dir: PathLike) -> Manifest:
    """Read ``manifest.json`` of a bundle; nothing else of the bundle is looked at.

    Raises:
        FileError: it is missing, unreadable or too large.
        ManifestError, VersionError: see :meth:`Manifest.parse`.
    """
    path = Path(bundle_dir) / MANIFEST_NAME
    return Manifest.parse(read_bytes(path, limits.MANIFEST_BYTES), path=path)


def write_manifest(bundle_dir: PathLike, manifest: Manifest) -> None:
    """Write ``manifest.json`` (replaced atomically, flushed to disk).

    Raises:
        ManifestError: the manifest would not be accepted when read back.
        FileError: it cannot be written.
    """
    path = Path(bundle_dir) / MANIFEST_NAME
    data = manifest.canonical()
    Manifest.parse(data, path=path)
    write_atomically(path, data)


class _Parser:
    """One field after the other; every refusal says which."""

    def __init__(self, path: PathLike) -> None:
        self._path = path

    def parse(self, data: bytes) -> Manifest:
        if len(data) > limits.MANIFEST_BYTES:
            self._refuse("MANIFEST_LIMIT", f"{len(data)} bytes, at most {limits.MANIFEST_BYTES} allowed")
        try:
            document = parse_json(data, self._path)
        except JsonError as e:
            raise ManifestError("MANIFEST_FIELD", self._path, e.reason) from e
        if isinstance(document, dict) and (not is_int(document.get("schema")) or document["schema"] != SCHEMA):
            self._refuse("MANIFEST_SCHEMA", f"schema {document.get('schema')!r} is not known here, {SCHEMA} is")
        manifest = self._manifest(document)
        try:
            canonical = manifest.canonical()
        except rfc8785.CanonicalizationError as e:  # an integer beyond 2**53 in `lineage`
            raise ManifestError("MANIFEST_NOT_CANONICAL", self._path, str(e)) from e
        if canonical != data:
            self._refuse("MANIFEST_NOT_CANONICAL", "not in canonical form (RFC 8785, files sorted by path)")
        return manifest

    def _manifest(self, document: Any) -> Manifest:
        values = self._object(document, "the top level", _KEYS, _OPTIONAL_KEYS)
        kind = self._choice(values["kind"], "kind", KINDS)
        base = None if values["base"] is None else self._base(values["base"])
        if (kind == "adapter") != (base is not None):
            self._field("base", "must name a bundle for an adapter, and be null otherwise")
        if not isinstance(values["lineage"], dict):
            self._field("lineage", "must be an object")
        files = self._files(values["files"])
        return Manifest(
            name=self._name(values["name"], "name"),
            version=self._version(values["version"], "version"),
            kind=cast(Kind, kind),
            base=base,
            policy_type=self._name(values["policy_type"], "policy_type"),
            robot_type=self._match(values["robot_type"], "robot_type", _ROBOT),
            action=self._action(values["action"]),
            created=self._created(values["created"]),
            lineage=MappingProxyType(values["lineage"]),
            requires=self._requires(values.get("requires", {})),
            files=files,
            tensors=self._tensors(values["tensors"], {entry.path for entry in files}),
        )

    def _base(self, value: Any) -> BaseRef:
        base = self._object(value, "base", ("name", "version", "digest"))
        return BaseRef(
            self._name(base["name"], "base.name"),
            self._version(base["version"], "base.version"),
            self._match(base["digest"], "base.digest", SHA256),
        )

    def _action(self, value: Any) -> ActionSpec:
        action = self._object(value, "action", ("channels", "rate_hz"))
        rate = action["rate_hz"]
        if not is_number(rate) or not 0 < rate <= MAX_RATE_HZ:
            self._field("action.rate_hz", f"must be a number above 0 and at most {MAX_RATE_HZ:g} Hz")
        items = action["channels"]
        if not isinstance(items, list) or not 0 < len(items) <= limits.CHANNELS:
            self._field("action.channels", f"must be a list of 1 to {limits.CHANNELS} channels")
        channels = tuple(self._channel(item, f"action.channels[{i}]") for i, item in enumerate(items))
        if len({channel.name for channel in channels}) != len(channels):
            self._field("action.channels", "two channels have the same name")
        return ActionSpec(channels, float(rate))

    def _channel(self, value: Any, where: str) -> Channel:
        item = self._object(value, where, ("name", "unit", "mode"))
        for key, longest in (("name", 64), ("unit", 16)):
            text = item[key]
            if not isinstance(text, str) or not 0 < len(text) <= longest or not text.isprintable() or " " in text:
                self._field(f"{where}.{key}", f"must be 1 to {longest} printable characters without spaces")
        return Channel(item["name"], item["unit"], cast(Mode, self._choice(item["mode"], f"{where}.mode", MODES)))

    def _files(self, value: Any) -> tuple[FileEntry, ...]:
        if not isinstance(value, list) or len(value) > limits.FILES:
            self._field("files", f"must be a list of at most {limits.FILES} files")
        entries = []
        for i, item in enumerate(value):
            entry = self._object(item, f"files[{i}]", ("path", "size", "sha256"))
            size = entry["size"]
            if not is_int(size) or not 0 <= size <= limits.FILE_BYTES:
                self._field(f"files[{i}].size", f"must be an integer from 0 to {limits.FILE_BYTES}")
            if not isinstance(entry["path"], str):
                self._field(f"files[{i}].path", "must be a string")
            entries.append(FileEntry(entry["path"], size, self._match(entry["sha256"], f"files[{i}].sha256", SHA256)))
        check_paths([entry.path for entry in entries], self._path)
        return tuple(sorted(entries, key=lambda entry: entry.path))

    def _tensors(self, value: Any, files: set[str]) -> Mapping[str, Mapping[str, str]]:
        if not isinstance(value, dict):
            self._field("tensors", "must be an object")
        for file, tensors in value.items():
            if file not in files or not file.endswith(".safetensors"):
                self._refuse("MANIFEST_FIELD", f"tensors of {file!r}, which is not a listed safetensors file")
            if not isinstance(tensors, dict) or len(tensors) > limits.TENSORS:
                self._refuse("MANIFEST_FIELD", f"{file}: must map at most {limits.TENSORS} tensors to digests")
            for tensor, digest in tensors.items():
                if not is_sha256(digest):
                    self._refuse("MANIFEST_FIELD", f"{file}: the digest of {tensor!r} is not 64 hexadecimal digits")
        return MappingProxyType({file: MappingProxyType(tensors) for file, tensors in value.items()})

    def _requires(self, value: Any) -> Mapping[str, str]:
        if not isinstance(value, dict) or len(value) > limits.REQUIREMENTS:
            self._field("requires", f"must be an object of at most {limits.REQUIREMENTS} distributions")
        for name, versions in value.items():
            self._match(name, "requires", _DISTRIBUTION)
            self._match(versions, f"requires.{name}", _VERSIONS)
        return MappingProxyType(value)

    def _created(self, value: Any) -> str:
        text = self._match(value, "created", _CREATED)
        try:
            datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            self._field("created", f"{text} is not a date and time")
        return text

    def _object(self, value: Any, where: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._field(where, "must be an object")
        wrong = sorted((value.keys() - set(optional)) ^ set(keys))
        if wrong:
            verb = "is missing" if wrong[0] in keys else "is not a known key"
            self._field(where, f"{wrong[0][:80]!r} {verb}")
        return cast("dict[str, Any]", value)

    def _name(self, value: Any, where: str) -> str:
        name = self._match(value, where, _NAME)
        if ".." in name:
            self._field(where, "must not hold '..'")
        return name

    def _match(self, value: Any, where: str, pattern: re.Pattern[str]) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            words = f" ({_WORDS[pattern]})" if pattern in _WORDS else ""
            self._field(where, f"{str(value)[:80]!r} does not match {pattern.pattern}{words}")
        return value

    def _version(self, value: Any, where: str) -> str:
        try:
            return str(parse_version(value, where))
        except VersionError as e:
            raise VersionError(e.code, self._path, f"{where}: {e.reason}") from e

    def _choice(self, value: Any, where: str, choices: tuple[str, ...]) -> str:
        if not isinstance(value, str) or value not in choices:
            self._field(where, f"{str(value)[:80]!r} must be one of {', '.join(choices)}")
        return value

    def _field(self, where: str, reason: str) -> NoReturn:
        self._refuse("MANIFEST_FIELD", f"{where}: {reason}")

    def _refuse(self, code: str, reason: str) -> NoReturn:
        raise ManifestError(code, self._path, reason)
