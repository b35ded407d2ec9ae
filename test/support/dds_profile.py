# SPDX-License-Identifier: Apache-2.0
"""The shipped Fast DDS profile with one change, for tests: participants announce themselves every half second, not every three.

A new participant announces itself at once, but is often not ready for the answers yet; it then finds the others only at their
next announcement. Tests start nodes all the time, and would wait for that longer than for anything else.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "fastdds.xml"
VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"
_ANNOUNCED_EVERY_NS = 500_000_000


def write_test_profile(file: Path) -> None:
    """Write the profile of the tests' nodes."""
    document = ElementTree.parse(SHIPPED)
    root = document.getroot()
    namespace = root.tag.partition("}")[0].lstrip("{")
    ElementTree.register_namespace("", namespace)
    element = root.find(".//{*}participant/{*}rtps")
    assert element is not None, f"{SHIPPED} has no participant"
    for name in ("builtin", "discovery_config", "leaseAnnouncement"):
        element = ElementTree.SubElement(element, f"{{{namespace}}}{name}")
    for name, value in (("sec", 0), ("nanosec", _ANNOUNCED_EVERY_NS)):
        ElementTree.SubElement(element, f"{{{namespace}}}{name}").text = str(value)
    document.write(file, encoding="UTF-8", xml_declaration=True)
