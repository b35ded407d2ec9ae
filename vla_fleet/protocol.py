# SPDX-License-Identifier: Apache-2.0
"""What robot and server say to each other: JSON objects, one a WebSocket text frame, at ``GET /v1/robots/connect``.

::

    robot                                   server
      hello {protocols, boot_id, …}   ───►
                                      ◄───  welcome {protocol, heartbeat_s, …}
      status {…}                      ───►                      the newest one counts; never repeated
      event, outcome, ack {seq, …}    ───►                      kept by the robot until …
                                      ◄───  received {seq}      … the server has stored them
                                      ◄───  command {id, …}     repeated at each connection until a final ack

The robot authenticates by ``Authorization: Bearer <token>``; the token says which robot it is, so it can speak for no other. Both
sides ignore fields that they do not know. What changes a field's meaning gets a new protocol number.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

PROTOCOL = 1
MAX_SEQ = 2**53
MAX_FRAME_BYTES = 256 * 1024
"""Of a message in either direction; a longer one closes the connection (1009)."""

_NO_NUL = r"^[^\x00]*$"  # which PostgreSQL cannot store
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?$")]
Version = Annotated[str, StringConstraints(max_length=64, pattern=_NO_NUL)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
Text = Annotated[str, StringConstraints(max_length=4096, pattern=_NO_NUL)]
Word = Annotated[str, StringConstraints(max_length=128, pattern=_NO_NUL)]
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


ACTIVE = "ACTIVE"
"""``to_state`` of an event that says what acts."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


# -- commands: server → robot -----------------------------------------------------------------------------------------------


class ModelUpdate(_Message):
    """Install a version; done when the robot has committed it (with ``activate`` false: installed it)."""

    type: Literal["MODEL_UPDATE"] = "MODEL_UPDATE"
    name: Name
    version: Version
    manifest_url: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    manifest_sha256: Digest
    activate: bool = True
    urgent: bool = False
    allow_older: bool = False


class Rollback(_Message):
    """Go back to ``version``; empty: to the previous one. Done when that version acts."""

    type: Literal["ROLLBACK"] = "ROLLBACK"
    version: Version = ""
    reason: Text = ""


class Pin(_Message):
    """Keep a version on the robot's disk, or no longer."""

    type: Literal["PIN"] = "PIN"
    version: Version
    unpin: bool = False


class Assign(_Message):
    """Draw the version of each episode anew from two versions that the robot holds, until the experiment ends.

    The robot draws with :func:`vla_evidence.assignment.arm` from experiment, robot and episode id, and names the arm (``A`` or
    ``B``) in the episode's outcome; of an episode that could not be drawn it names none. Only for robots whose status says
    ``episode_arms``. A is the version that the robot has committed.
    """

    type: Literal["ASSIGN"] = "ASSIGN"
    experiment: Id
    versions: Annotated[list[Version], Field(max_length=2)] = []
    """A, the control, and B, the treatment; empty: the experiment has ended."""
    probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of B."""


class GetStatus(_Message):
    """Send a status now."""

    type: Literal["GET_STATUS"] = "GET_STATUS"


Order = Annotated[ModelUpdate | Rollback | Pin | Assign | GetStatus, Field(discriminator="type")]
"""What a command asks for."""


class Command(_Message):
    """One order with its name. A robot carries each ``id`` out once."""

    type: Literal["command"] = "command"
    id: Id
    order: Order
    expires_s: Seconds = 0.0
    """Not begun after this time [s since 1970 UTC]; 0 = never expires."""


class Welcome(_Message):
    """The answer to ``hello``."""

    type: Literal["welcome"] = "welcome"
    protocol: int
    robot: Name
    heartbeat_s: Seconds
    """A robot that sends nothing for three of these is offline."""
    token: Word = ""
    """If there is one: the robot's new token. The robot keeps it and connects again with it, which ends the old one."""


class Received(_Message):
    """Every message of this robot up to ``seq`` is stored."""

    type: Literal["received"] = "received"
    seq: Annotated[int, Field(ge=0, le=MAX_SEQ)]


ServerMessage = Annotated[Welcome | Command | Received, Field(discriminator="type")]


# -- robot → server ---------------------------------------------------------------------------------------------------------


class Hello(_Message):
    """The first message of a connection."""

    type: Literal["hello"] = "hello"
    protocols: Annotated[list[int], Field(min_length=1, max_length=16)]
    outbox_id: Id
    """Names the robot's outbox: ``seq`` counts in it, and begins anew with a new one."""
    software: Word = ""
    boot_id: Word = ""


class Status(_Message):
    """How the robot stands: the fields of ModelStatus and PolicyStatus that a fleet looks at."""

    type: Literal["status"] = "status"
    time_s: Seconds
    state: Word = ""
    """Of the manager, for example ``TRIAL``; empty: no manager has been heard."""
    update_id: Word = ""
    name: Word = ""
    committed_version: Version = ""
    committed_digest: Word = ""
    adapted_version: Version = ""
    """Full version below ``committed_version``, if that is an adapter that this robot has trained itself; else empty."""
    adapted_digest: Word = ""
    previous_version: Version = ""
    trial_version: Version = ""
    trial_progress: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the exposure that a commit needs."""
    trial_message: Text = ""
    """What the trial has shown so far."""
    active_version: Version = ""
    active_digest: Word = ""
    progress: Annotated[float, Field(ge=0, le=1)] = 0.0
    versions: Annotated[list[Version], Field(max_length=256)] = []
    blocked: Annotated[list[Version], Field(max_length=256)] = []
    rollback_ready: Annotated[int, Field(ge=0, le=255)] = 0
    holding: bool = False
    hold_reason: Word = ""
    scores: Annotated[dict[Word, Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=16)] = {}
    """Newest anomaly score of what acts, by its source; larger is worse."""
    error_code: Word = ""
    message: Text = ""
    experiment: Word = ""
    """For which the robot draws the version of each episode."""
    episode_arms: bool = False
    """The robot can run another version in each episode."""
    active_cause: Word = ""
    """Why ``active_version`` acts: ``cause`` of the SwapReport that brought it; empty: no swap of this policy node did."""
    unsent: Annotated[int, Field(ge=0, le=MAX_SEQ)] = 0
    """Messages that the robot keeps and the server had not stored when this was sent: with 0, the server knows all."""


class _Kept(_Message):
    """A message that the robot keeps until the server has stored it."""

    seq: Annotated[int, Field(ge=0, le=MAX_SEQ)] = 0
    time_s: Seconds


class Event(_Kept):
    """One transition of an update, as ModelEvent carries it; or, with ``to_state`` ``ACTIVE``, that another version acts."""

    type: Literal["event"] = "event"
    update_id: Word = ""
    """Of the update or the command that it belongs to."""
    from_state: Word
    to_state: Word
    version: Version = ""
    """With ``ACTIVE``: what acts from now on; empty: nothing."""
    digest: Word = ""
    """With ``ACTIVE``: the digest of ``version``."""
    cause: Word = ""
    """With ``ACTIVE``: why: a cause of SwapReport, or ``FOUND``: it acted when the bridge began to look."""
    error_code: Word = ""
    message: Text = ""


class Outcome(_Kept):
    """How an episode ended, as EpisodeOutcome carries it."""

    type: Literal["outcome"] = "outcome"
    episode_id: Word
    version: Version = ""
    generation: Annotated[int, Field(ge=0, le=MAX_SEQ)] = 0
    arm: Word = ""
    success: bool
    known: bool = True
    mixed: bool = False
    intervention: bool = False
    duration_s: Seconds = 0.0


class AckState(str, Enum):
    """How far a command has come. The last three are final."""

    ACCEPTED = "ACCEPTED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    REFUSED = "REFUSED"
    FAILED = "FAILED"

    @property
    def final(self) -> bool:
        """Whether nothing more will be said of the command."""
        return self in (AckState.DONE, AckState.REFUSED, AckState.FAILED)


class Ack(_Kept):
    """How a command stands: ``DONE`` only when the robot committed, rolled back or did what was asked."""

    type: Literal["ack"] = "ack"
    command_id: Id
    state: AckState
    robot_state: Word = ""
    version: Version = ""
    error_code: Word = ""
    message: Text = ""


Kept = Annotated[Event | Outcome | Ack, Field(discriminator="type")]
RobotMessage = Annotated[Hello | Status | Event | Outcome | Ack, Field(discriminator="type")]

ORDER: TypeAdapter[ModelUpdate | Rollback | Pin | Assign | GetStatus] = TypeAdapter(Order)
KEPT: TypeAdapter[Event | Outcome | Ack] = TypeAdapter(Kept)
FROM_ROBOT: TypeAdapter[Hello | Status | Event | Outcome | Ack] = TypeAdapter(RobotMessage)
FROM_SERVER: TypeAdapter[Welcome | Command | Received] = TypeAdapter(ServerMessage)
