# SPDX-License-Identifier: Apache-2.0
"""Joint limits of a robot description (URDF, not xacro)."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from vla_contract.errors import DraftError
from vla_contract.seen import JointLimit

_UNITS = {"revolute": "rad", "prismatic": "m"}
MAX_BYTES = 16 << 20


def read_limits(file: str) -> dict[str, JointLimit]:
    """Return joint → limit of a URDF file; a joint without both bounds is left out. Raises DraftError URDF_INVALID."""
    try:
        with Path(file).open("rb") as stream:
            return parse_limits(stream.read(MAX_BYTES + 1))
    except OSError as e:
        raise DraftError("URDF_INVALID", f"{file}: {e.strerror or e}") from e
    except DraftError as e:
        raise DraftError(e.code, f"{file}: {e}") from e


def parse_limits(text: bytes) -> dict[str, JointLimit]:
    """See :func:`read_limits`."""
    if len(text) > MAX_BYTES:
        raise DraftError("URDF_INVALID", f"is larger than {MAX_BYTES >> 20} MB")
    try:
        joints = ElementTree.fromstring(text).findall("joint")
    except ElementTree.ParseError as e:
        raise DraftError("URDF_INVALID", f"is not XML: {e}") from e
    found: dict[str, JointLimit] = {}
    for joint in joints:
        limit, unit = joint.find("limit"), _UNITS.get(joint.get("type", ""))
        if limit is None or unit is None:
            continue
        try:
            low, high, velocity = (float(limit.get(name, "nan")) for name in ("lower", "upper", "velocity"))
        except ValueError as e:
            hint = "; expand it first: xacro FILE > robot.urdf" if "$" in str(e) else ""
            raise DraftError("URDF_INVALID", f"joint {joint.get('name')}: {e}{hint}") from e
        if math.isfinite(low) and math.isfinite(high) and low < high:
            found[joint.get("name", "")] = JointLimit(unit, low, high, velocity)
    return found
