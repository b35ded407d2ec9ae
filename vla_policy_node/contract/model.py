# SPDX-License-Identifier: Apache-2.0
"""The robot contract: which topics are which features, which channels a command has, and what keeps the robot safe.

One YAML file a robot. ``observations`` and ``actions`` have the shape that rosetta's users know (``channel``, ``align``,
``select``, ``apply``); the ``safety`` section is ours (call it ``x-safety`` in a file that rosetta reads too: it skips
``x-`` keys). ``config/sim_arm.contract.yaml`` is the commented example. No ROS import here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_policy_node.errors import ContractError
from vla_policy_node.policies.base import FeatureSpec, PolicySpec

if TYPE_CHECKING:
    from vla_checkpoint.manifest import Manifest

MODES = ("absolute", "relative", "velocity", "effort")
HOLDS = ("last_command", "measured", "zero_velocity")


@dataclass(frozen=True)
class Qos:
    """Quality of service of a topic."""

    reliability: str = "best_effort"  # or "reliable"
    durability: str = "volatile"  # or "transient_local"
    depth: int = 5


@dataclass(frozen=True)
class Align:
    """Which message of a topic an observation takes: the newest, and how old it may be."""

    strategy: str  # "hold": any age up to observation_max_age_ms; "asof": tolerance_ms; "drop": one control period
    timeline: str  # "header": age by the message's stamp; "receive": by its arrival
    tolerance_ms: float | None


@dataclass(frozen=True)
class Picture:
    """How a camera's picture becomes a feature uint8 ``[H, W, 3]``."""

    steps: tuple[tuple[str, tuple[int, ...]], ...]  # "crop" with top, left, height, width; "resize" with height, width
    blue_first: bool = False  # the policy wants BGR

    @property
    def size(self) -> tuple[int, int]:
        """Height and width after the last step."""
        height, width = self.steps[-1][1][-2:]
        return height, width


@dataclass(frozen=True)
class Source:
    """One topic of an observation."""

    topic: str
    type: str  # "package/msg/Name"
    qos: Qos
    align: Align
    select: tuple[str, ...]  # fields such as "position.j1"; empty for pictures and the instruction
    rad2deg: bool = False
    clamp: tuple[float, float] | None = None  # in the feature's unit: after rad2deg
    picture: Picture | None = None


@dataclass(frozen=True)
class Observation:
    """One feature: float32 ``[S]``, its sources' values one after the other, or uint8 ``[H, W, 3]``."""

    key: str
    sources: tuple[Source, ...]

    @property
    def is_image(self) -> bool:
        """Whether the feature is a picture."""
        return self.sources[0].picture is not None

    @property
    def spec(self) -> FeatureSpec:
        """Shape and type as the policy gets it."""
        if (picture := self.sources[0].picture) is not None:
            return FeatureSpec((*picture.size, 3), "uint8")
        return FeatureSpec((sum(len(s.select) for s in self.sources),), "float32")


@dataclass(frozen=True)
class Output:
    """One command topic and its part of the action vector."""

    topic: str
    type: str
    qos: Qos
    select: tuple[str, ...]  # where each value goes in the message, such as "position.j1", "linear.x", "data.0"
    start: int  # first channel
    rad2deg: bool  # the policy speaks degrees, the message radians

    @property
    def stop(self) -> int:
        """One past the last channel."""
        return self.start + len(self.select)


@dataclass(frozen=True)
class ChannelLimits:
    """Bounds of one channel, in its unit."""

    low: float
    high: float
    rate: float  # largest change of the command per second; always held
    step: float  # a policy whose actions jump by more in one tick is stopped
    tolerance: float  # a policy whose action lies outside [low, high] by more is stopped, by less is clamped

    def tightened(self, other: Mapping[str, float]) -> ChannelLimits:
        """Return the tighter of both, bound by bound. Raises ContractError LIMITS_INVALID."""
        unknown = sorted(other.keys() - self.__dataclass_fields__.keys())
        if unknown:
            raise ContractError("LIMITS_INVALID", f"{unknown[0]} is not a limit")
        if not all(isinstance(v, (int, float)) and v == v for v in other.values()):
            raise ContractError("LIMITS_INVALID", "a limit must be a number")
        low, high = max(self.low, other.get("low", self.low)), min(self.high, other.get("high", self.high))
        rate, step = min(self.rate, other.get("rate", self.rate)), min(self.step, other.get("step", self.step))
        tolerance = min(self.tolerance, other.get("tolerance", self.tolerance))
        if not (low < high and rate > 0 and step > 0 and tolerance >= 0):
            raise ContractError("LIMITS_INVALID", "no range is left within both the bundle's limits and the contract's")
        return ChannelLimits(low, high, rate, step, tolerance)


@dataclass(frozen=True)
class Channel:
    """One number of a command and what it does when the policy does not act."""

    name: str
    unit: str
    mode: str  # one of MODES
    limits: ChannelLimits
    hold: str  # one of HOLDS
    max_decel: float  # how fast a hold brings the channel to rest [unit/s^2]; velocity and effort: [unit/s]
    hold_timeout_s: float  # publishing stops when a hold lasts longer
    start_tolerance: float  # the first command after a hold lies this near to the measured value
    rest_step: float  # a command that changes by less in a tick is at rest; a velocity that is less
    measured: tuple[str, int] | None  # (observation key, index) of the measured value; positions must have it

    @property
    def is_position(self) -> bool:
        """Whether the command is a position (both ``absolute`` and ``relative`` actions end as one)."""
        return self.mode in ("absolute", "relative")


@dataclass(frozen=True)
class Motion:
    """The ``motion_enabled`` topic. An explicit false always stops the robot, until a true comes."""

    required: bool  # motion needs a true, and a fresh one
    timeout_s: float  # required: older is false
    topic: str = "motion_enabled"

    def permits(self, until_ns: int, now_ns: int) -> bool:
        """Whether the robot may move. ``until_ns``: end of the permission, 0 = nothing was said yet, negative = false was."""
        return now_ns <= until_ns if self.required else until_ns >= 0


@dataclass(frozen=True)
class Contract:
    """A parsed robot contract. Make one with :func:`load_contract` or :func:`parse_contract`."""

    name: str
    robot_type: str
    rate_hz: float  # one action of a chunk a tick
    observations: tuple[Observation, ...]
    instruction: Source | None  # a std_msgs/String; None = the instruction comes from episodes and the parameter alone
    outputs: tuple[Output, ...]
    channels: tuple[Channel, ...]
    motion: Motion
    auto_resume: bool  # holds latched by a start, a limit, NaN, a loss end by themselves; for simulators
    observation_max_age_s: float
    blend_ticks: int
    rest_ticks: int
    latency_margin_ticks: int
    text: str  # the file's text: the control process parses it again
    path: Path

    @property
    def period_s(self) -> float:
        """Seconds a tick."""
        return 1.0 / self.rate_hz

    @property
    def features(self) -> dict[str, FeatureSpec]:
        """What the robot observes, by feature name."""
        return {o.key: o.spec for o in self.observations}

    def check_bundle(self, manifest: Manifest, spec: PolicySpec, *, latency_s: float = 0.0) -> None:
        """Refuse a bundle that does not fit this robot.

        ``latency_s`` is the measured time from request to chunk. Raises ContractError ROBOT_TYPE_MISMATCH, RATE_MISMATCH,
        CHANNELS_MISMATCH, UNIT_MISMATCH, MODE_MISMATCH, ACTION_DIM_MISMATCH, OBSERVATION_MISMATCH, HORIZON_TOO_SHORT.
        """
        self.check_manifest(manifest)
        self._check_spec(spec, latency_s)

    def check_manifest(self, manifest: Manifest) -> None:
        """The part of :meth:`check_bundle` that needs no loading."""
        what = f"{manifest.name} {manifest.version}"
        if manifest.robot_type != self.robot_type:
            self._refuse("ROBOT_TYPE_MISMATCH", f"{what} is for {manifest.robot_type!r}, this is {self.robot_type!r}")
        if abs(manifest.action.rate_hz - self.rate_hz) > 1e-6 * self.rate_hz:
            rates = f"{manifest.action.rate_hz} Hz, the robot runs at {self.rate_hz} Hz"
            self._refuse("RATE_MISMATCH", f"{what} has actions at {rates}")
        theirs, ours = [c.name for c in manifest.action.channels], [c.name for c in self.channels]
        if theirs != ours:
            self._refuse("CHANNELS_MISMATCH", f"{what} commands {theirs}, the robot has {ours}, in this order")
        for got, want in zip(manifest.action.channels, self.channels, strict=True):
            if got.unit != want.unit:
                self._refuse("UNIT_MISMATCH", f"{what}: {want.name} is in {got.unit!r}, the robot's in {want.unit!r}")
            if got.mode != want.mode:
                self._refuse("MODE_MISMATCH", f"{what}: {want.name} is {got.mode}, the robot's is {want.mode}")

    def _check_spec(self, spec: PolicySpec, latency_s: float) -> None:
        if spec.action_dim != len(self.channels):
            dims = f"{spec.action_dim} numbers an action, the robot has {len(self.channels)} channels"
            self._refuse("ACTION_DIM_MISMATCH", f"the policy has {dims}")
        features = self.features
        for key, want in spec.observation.items():
            have = features.get(key)
            if have is None:
                names = f"the policy needs {key}, the robot has {sorted(features)}"
                self._refuse("OBSERVATION_MISMATCH", f"{names}: add it, or call an observation of the contract so")
            elif have.shape != tuple(want.shape) or have.dtype != want.dtype:
                needs = f"{want.dtype}{list(want.shape)}, the robot gives {have.dtype}{list(have.shape)}"
                picture = want.dtype == have.dtype == "uint8" and len(want.shape) == 3
                how = f": `apply: [resize: {list(want.shape[:2])}]`" if picture else ""
                self._refuse("OBSERVATION_MISMATCH", f"{key}: the policy needs {needs}{how}")
        needed = self.actions_needed(spec, latency_s)
        if spec.horizon < needed:
            latency = needed - max(spec.execute, 1) - self.blend_ticks
            parts = f"{spec.execute} executed, {self.blend_ticks} blended, {latency} while the next chunk is made"
            most = spec.horizon - needed + max(spec.execute, 1)
            how = (
                f"execute {most} at most (vla-checkpoint import --execute {most})"
                if most > 0
                else "make inference faster (device, worker_threads) or the chunks longer"
            )
            chunk = f"a chunk has {spec.horizon} actions; {needed} are needed: {parts}"
            self._refuse("HORIZON_TOO_SHORT", f"{chunk}; {how}")

    def actions_needed(self, spec: PolicySpec, latency_s: float) -> int:
        """Return how long a chunk must be so that the next one is there before it ends."""
        return max(spec.execute, 1) + self.blend_ticks + int(latency_s * self.rate_hz) + 1

    def in_shadow(self) -> Contract:
        """Return the contract of a robot that something else drives: the policy needs no permission, and nobody's resume."""
        return replace(self, motion=Motion(required=False, timeout_s=self.motion.timeout_s), auto_resume=True)

    def bundle_limits(self, wanted: Any) -> list[dict[str, float]]:
        """Check the limits that a bundle asks for and return them, one mapping a channel (empty: the contract's alone).

        ``wanted`` is ``action_limits`` of the bundle's ``config.json``: ``{channel: {low, high, rate, step, tolerance}}``, each
        bound optional, in the channel's unit. They can only tighten. Raises ContractError LIMITS_INVALID.
        """
        if not isinstance(wanted, dict) or not all(isinstance(bounds, dict) for bounds in wanted.values()):
            raise ContractError("LIMITS_INVALID", "action_limits is not an object of objects, one a channel")
        unknown = sorted(wanted.keys() - {c.name for c in self.channels})
        if unknown:
            raise ContractError("LIMITS_INVALID", f"action_limits: the robot has no channel {unknown[0]!r}")
        limits = [dict(wanted.get(channel.name, {})) for channel in self.channels]
        for channel, bounds in zip(self.channels, limits, strict=True):
            channel.limits.tightened(bounds)
        return limits

    def _refuse(self, code: str, text: str) -> None:
        raise ContractError(code, f"{self.path}: {text}")


def load_contract(path: str | Path) -> Contract:
    """Read and check a contract. Raises ContractError CONTRACT_… with file and key."""
    from vla_policy_node.contract.strict_yaml import MAX_BYTES

    if not str(path):
        raise ContractError(
            "CONTRACT_UNREADABLE", "no contract is named: set the parameter contract to the robot's file"
        )
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as e:
        raise ContractError("CONTRACT_UNREADABLE", f"{path}: {getattr(e, 'strerror', None) or e}") from e
    return parse_contract(text, path)


def parse_contract(text: str, path: str | Path = "contract.yaml") -> Contract:
    """Parse a contract's text; ``path`` is for messages. Raises ContractError CONTRACT_…."""
    from vla_policy_node.contract import parser

    return parser.parse(text, Path(path))
