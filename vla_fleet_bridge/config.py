# SPDX-License-Identifier: Apache-2.0
"""Settings of the bridge's node, and how it gets its token."""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

import requests

from vla_fleet.secret_file import write_secret
from vla_ros.settings import setting

_ANSWER_S = 30.0


class BridgeError(Exception):
    """The bridge cannot start. ``code`` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@dataclass(frozen=True)
class BridgeSettings:
    """Settings. Each field is a ROS parameter."""

    server: str = setting("", "The fleet server, wss://host[:port] (ws:// on a trusted network). Required")
    enrolment_code: str = setting("", "Code from `vla-fleet enroll`; needed once, until the token is in state_dir")
    state_dir: str = setting(
        "", "Folder for the token and for messages that could not be sent yet; one a robot. Required"
    )
    ca_file: str = setting("", "Certificate authority of the server (PEM), if this machine does not know it")
    ota_manager: str = setting("ota_manager", "Name of the manager's node, relative to this namespace, or absolute")
    policy_node: str = setting("policy_node", "Name of the policy node, relative to this namespace, or absolute")

    def __post_init__(self) -> None:
        if not self.server.startswith(("ws://", "wss://")):
            raise BridgeError("PARAMETER_INVALID", f"server: {self.server!r} must begin with wss:// or ws://")
        if not self.state_dir:
            raise BridgeError("PARAMETER_INVALID", "state_dir: must name a folder")

    @property
    def folder(self) -> Path:
        """``state_dir`` as a path."""
        return Path(self.state_dir).expanduser()

    @property
    def token_file(self) -> Path:
        """Where the robot's token is kept."""
        return self.folder / "token"


def token(settings: BridgeSettings) -> str:
    """Return this robot's token; the first time, trade the enrolment code for it.

    Raises:
        BridgeError: NOT_ENROLLED, ENROLMENT_REFUSED, SERVER_UNREACHABLE or STATE_DIR.
    """
    path = settings.token_file
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.folder):
            pass  # a code is used up by the first answer: what it brings must find a place
        if path.exists() and (known := path.read_text(encoding="utf-8").strip()):
            return known
    except (OSError, UnicodeDecodeError) as e:
        raise BridgeError("STATE_DIR", f"{path}: {e}") from e
    if not settings.enrolment_code:
        raise BridgeError(
            "NOT_ENROLLED", "this robot has no token; start it once with a code from `vla-fleet enroll ROBOT`"
        )
    received = _enrol(settings)
    try:
        write_secret(path, received)
    except OSError as e:
        raise BridgeError("STATE_DIR", f"{path}: {e.strerror}; the code is used up, make a new one") from e
    return received


def _enrol(settings: BridgeSettings) -> str:
    url = settings.server.rstrip("/").replace("ws", "http", 1) + "/v1/enrol"
    body, verify = {"code": settings.enrolment_code}, settings.ca_file or ssl.get_default_verify_paths().cafile or True
    try:
        response = requests.post(url, json=body, timeout=_ANSWER_S, verify=verify)
        answer = response.json()
    except (requests.RequestException, ValueError) as e:
        raise BridgeError("SERVER_UNREACHABLE", f"{url}: {e}") from e
    if response.status_code != 201 or not isinstance(answer, dict) or not answer.get("token"):
        message = answer.get("message") if isinstance(answer, dict) else None
        raise BridgeError("ENROLMENT_REFUSED", str(message or f"{url} answered {response.status_code}"))
    return str(answer["token"])
