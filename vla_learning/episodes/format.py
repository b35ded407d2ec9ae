# SPDX-License-Identifier: Apache-2.0
"""What an episode file holds. The standard library alone: the recorder on a robot imports this.

An episode is one MCAP file, profile ``ros2``, chunks compressed with zstd::

    channel "step"                      JSON, one message a step of the action rate; log time = the step's time
    channel "<feature>"                 sensor_msgs/msg/CompressedImage in CDR, PNG or JPEG, when the picture changed
    metadata "vla_ota.episode"          EpisodeMeta as texts; the last record counts

A step's picture is the newest one whose log time is not after the step's. Other channels are for people, and ignored here.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vla_learning.errors import EpisodeError

PROFILE = "ros2"
SUFFIX, PART = ".mcap", ".part"
SCHEMA_VERSION = "1"
METADATA = "vla_ota.episode"

STEP_TOPIC, STEP_SCHEMA = "step", "vla_ota.Step"
OBSERVATION = "observation."
"""What the names of all features begin with."""
STEP_JSON_SCHEMA = json.dumps(
    {
        "type": "object",
        "required": ["time_ns", "instruction", "state", "action", "policy_action", "intervention"],
        "properties": {
            "time_ns": {"type": "integer", "description": "wall clock [ns since 1970 UTC]"},
            "instruction": {"type": "string"},
            "state": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": "number"}},
                "description": "every observation that is no picture, by the name of its feature, in physical units",
            },
            "action": {
                "type": "array",
                "items": {"type": "number"},
                "description": "what was commanded, in physical units and the order of the channels",
            },
            "policy_action": {
                "type": ["array", "null"],
                "items": {"type": "number"},
                "description": "what the policy wanted; null: nothing",
            },
            "intervention": {"type": "boolean", "description": "an operator commanded, not the policy"},
            "generation": {"type": "integer"},
            "version": {"type": "string"},
        },
    }
)

IMAGE_TYPE = "sensor_msgs/msg/CompressedImage"
IMAGE_SCHEMA = f"""std_msgs/Header header
string format
uint8[] data
{"=" * 80}
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
{"=" * 80}
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""


@dataclass(frozen=True)
class Channel:
    """One number of an action."""

    name: str
    unit: str


@dataclass(frozen=True)
class Feature:
    """One observation of a policy."""

    dtype: str
    """``float32`` or, of a picture, ``image``."""
    shape: tuple[int, ...]
    """``(D,)``, of a picture ``(H, W, 3)``."""
    names: tuple[str, ...] = ()
    """Of the D values, if they have names."""

    @property
    def is_picture(self) -> bool:
        """Whether it is a picture."""
        return self.dtype == "image"


@dataclass(frozen=True)
class EpisodeMeta:
    """What is known of an episode as a whole."""

    episode_id: str
    policy: str
    """Name of the bundle."""
    version: str
    rate_hz: float
    """Steps a second."""
    channels: tuple[Channel, ...]
    """Of an action, in their order."""
    features: Mapping[str, Feature]
    robot: str = ""
    robot_type: str = ""
    """As the contract names it; robots of two types do not share a data set."""
    digest: str = ""
    generation: int = 0
    arm: str = ""
    experiment: str = ""
    instruction: str = ""
    success: bool | None = None
    """``None``: nobody said."""
    intervention: bool = False
    """An operator took over in at least one step."""
    started_ns: int = 0
    """Wall clock [ns since 1970 UTC]."""
    duration_s: float = 0.0
    contract_sha256: str = ""

    @property
    def interface(self) -> str:
        """Sixteen hexadecimal digits of robot type, rate, actions and features, which are equal within a data set."""
        actions = [[channel.name, channel.unit] for channel in self.channels]
        features = {name: [f.dtype, f.shape, f.names] for name, f in self.features.items()}
        parts = json.dumps([self.robot_type, self.rate_hz, actions, features], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def as_record(self) -> dict[str, str]:
        """Return the texts of the metadata record."""
        texts = {field.name: _text(getattr(self, field.name)) for field in fields(self)}
        features = {name: {"dtype": f.dtype, "shape": f.shape, "names": f.names} for name, f in self.features.items()}
        return {
            "schema": SCHEMA_VERSION,
            **texts,
            "channels": json.dumps([{"name": c.name, "unit": c.unit} for c in self.channels]),
            "features": json.dumps(features),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, str], where: str) -> EpisodeMeta:
        """Return what a metadata record says; ``where`` is the file's name, for the error.

        Raises:
            EpisodeError: EPISODE_FORMAT.
        """
        if record.get("schema") != SCHEMA_VERSION:
            have = record.get("schema", "none")
            raise EpisodeError(
                "EPISODE_FORMAT", where, f"schema {have!r} of {METADATA} is not known; update this program"
            )
        try:
            return cls(
                **{name: _short(record.get(name, ""), _LONGEST_WORD) for name in _WORDS},
                instruction=_short(record.get("instruction", "")),
                rate_hz=_positive(record["rate_hz"]),
                channels=tuple(Channel(_name(c["name"]), _short(c["unit"])) for c in _list(record["channels"])),
                features={_name(name): _feature(name, spec) for name, spec in _object(record["features"]).items()},
                generation=int(record.get("generation") or 0),
                success={"true": True, "false": False, "": None}[record.get("success", "")],
                intervention={"true": True, "false": False, "": False}[record.get("intervention", "")],
                started_ns=int(record.get("started_ns") or 0),
                duration_s=float(record.get("duration_s") or 0.0),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            reason = f"metadata {METADATA}: {type(e).__name__}: {e}"
            raise EpisodeError("EPISODE_FORMAT", where, " ".join(reason.split())) from e


def encode_image(stamp_ns: int, encoding: str, data: bytes) -> bytes:
    """Return a ``CompressedImage`` in CDR, little-endian; ``encoding`` is ``png`` or ``jpeg``."""
    seconds, nanoseconds = divmod(stamp_ns, 10**9)
    name = encoding.encode() + b"\0"
    head = struct.pack("<4siII4s", b"\0\1\0\0", seconds, nanoseconds, 1, b"\0\0\0\0")  # an empty frame_id, padded
    head += struct.pack("<I", len(name)) + name
    head += b"\0" * (-(len(head) - 4) % 4)  # CDR aligns from behind its four bytes of header
    return head + struct.pack("<I", len(data)) + data


def decode_image(message: bytes) -> bytes:
    """Return the picture file within a ``CompressedImage`` in CDR; ValueError if the message is none."""
    order = {b"\0\0": ">", b"\0\1": "<"}.get(message[:2])
    if order is None:
        raise ValueError("not in CDR")
    at = 12
    try:
        for _ in range(2):  # frame_id and format
            (length,) = struct.unpack_from(f"{order}I", message, at)
            at += 4 + length
            at += -at % 4
        (length,) = struct.unpack_from(f"{order}I", message, at)
    except struct.error as e:
        raise ValueError("ends too early") from e
    if len(message) - at - 4 < length:
        raise ValueError("ends too early")
    return message[at + 4 : at + 4 + length]


_WORDS = ("episode_id", "policy", "version", "robot", "robot_type", "digest", "arm", "experiment", "contract_sha256")
LONGEST_TEXT = 4096
_LONGEST_WORD, _MOST_CHANNELS, _MOST_FEATURES = 128, 256, 64
_MOST_VALUES, _LARGEST_SIDE = 4096, 4096


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_text(value: object, longest: int = LONGEST_TEXT) -> bool:
    """Whether a value is a text that databases and Parquet can hold."""
    if not isinstance(value, str) or len(value) > longest or "\0" in value:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)  # half a character


def _short(value: object, longest: int = LONGEST_TEXT) -> str:
    if not isinstance(value, str) or not is_text(value, longest):
        raise ValueError("a text is missing, too long, or holds a zero or half a character")
    return value


def _name(value: object) -> str:
    name = _short(value, _LONGEST_WORD)
    if not name or "/" in name:
        raise ValueError(f"{name[:40]!r} is no name")
    return name


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0.0 < value <= 10_000.0):
        raise ValueError(f"rate_hz is {value}")
    return value


def _list(text: str) -> Sequence[Mapping[str, Any]]:
    value = json.loads(text)
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_CHANNELS:
        raise ValueError("channels are no list, none or too many")
    return value


def _object(text: str) -> Mapping[str, Mapping[str, Any]]:
    value = json.loads(text)
    if not isinstance(value, dict) or not 0 < len(value) <= _MOST_FEATURES:
        raise ValueError("features are no object, none or too many")
    return value


def _feature(name: str, spec: Mapping[str, Any]) -> Feature:
    if not name.startswith(OBSERVATION):
        raise ValueError(f"feature {name!r}: LeRobot, and so a data set, has observations under {OBSERVATION}… only")
    shape, names = tuple(spec["shape"]), tuple(_short(name) for name in spec.get("names") or ())
    if any(type(size) is not int or size < 1 for size in shape):
        raise ValueError(f"shape {shape}")
    if len(shape) == 3:
        if shape[2] != 3 or max(shape) > _LARGEST_SIDE or spec["dtype"] not in ("image", "uint8"):
            raise ValueError(f"a picture is uint8 [H, W, 3], not {spec['dtype']} {shape}")
        return Feature("image", shape)
    if len(shape) != 1 or shape[0] > _MOST_VALUES or spec["dtype"] != "float32":
        raise ValueError(f"an observation is float32 [D], not {spec['dtype']} {shape}")
    return Feature("float32", shape, names if len(names) == shape[0] else ())
