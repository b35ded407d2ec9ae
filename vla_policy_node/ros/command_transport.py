# SPDX-License-Identifier: Apache-2.0
"""Commands go by UDP: Fast DDS's shared memory can keep ``publish()`` waiting for 333 ms when another process joins.

The first message to a new participant opens its shared-memory port, and opening checks that the port's listener is alive. That
takes up to a third of ``healthy_check_timeout_ms``, 1,000 by default, when the listener is idle (eProsima/Fast-DDS#6535). A
command is small, and the control process sends nothing else. ADR 19 has the figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from xml.etree import ElementTree as ET

from rclpy.utilities import get_rmw_implementation_identifier

_PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
_RANGE, _LOCALHOST_ONLY = "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY"
_EMPTY = '<dds xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"><profiles/></dds>'
_UDP = "vla_ota_commands"


@contextmanager
def by_udp(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Change the variables that Fast DDS reads so that this process's participants have their profile, without shared memory.

    The process's first participant must be made inside: the profile is read then, once. Where another middleware is used, or a
    discovery that a profile does not describe (static peers, range ``OFF``), nothing is changed.
    """
    local = environment.get(_LOCALHOST_ONLY) == "1" or environment.get(_RANGE) == "LOCALHOST"
    if local:
        described = "ROS_STATIC_PEERS" not in environment
    else:
        described = environment.get(_RANGE, "") in ("", "SUBNET", "SYSTEM_DEFAULT")
    if not described or "fastrtps" not in get_rmw_implementation_identifier():
        yield
        return
    root = _profile(next((environment[name] for name in _PROFILES if environment.get(name)), ""))
    ET.register_namespace("", root.tag.partition("}")[0].lstrip("{"))
    if local:  # the middleware would add a shared-memory transport of its own
        environment[_RANGE] = "SYSTEM_DEFAULT"
        environment.pop(_LOCALHOST_ONLY, None)
    with tempfile.NamedTemporaryFile(prefix="vla_ota_commands_", suffix=".xml") as file:
        file.write(ET.tostring(without_shared_memory(root, local), encoding="utf-8", xml_declaration=True))
        file.flush()
        environment.update(dict.fromkeys(_PROFILES, file.name))
        yield


def _profile(path: str) -> ET.Element:
    try:
        return ET.parse(path).getroot()
    except (OSError, ET.ParseError):  # none, or one that Fast DDS ignores as well; the doctor reports it
        return ET.fromstring(_EMPTY)


def without_shared_memory(root: ET.Element, local: bool) -> ET.Element:
    """Take shared memory from the profile's default participant; ``local``: and every interface but this machine's own."""
    space = root.tag.partition("}")[0] + "}" if "}" in root.tag else ""

    def below(parent: ET.Element, name: str) -> ET.Element:
        found = parent.find(space + name)
        return ET.SubElement(parent, space + name) if found is None else found

    profiles = root if root.tag == f"{space}profiles" else below(root, "profiles")
    participant = next((p for p in profiles.iter(f"{space}participant") if p.get("is_default_profile") == "true"), None)
    if participant is None:
        participant = ET.SubElement(profiles, f"{space}participant", profile_name=_UDP, is_default_profile="true")
    rtps, descriptors = below(participant, "rtps"), profiles.find(f"{space}transport_descriptors")
    if descriptors is None:
        descriptors = ET.Element(f"{space}transport_descriptors")
        profiles.insert(0, descriptors)  # Fast DDS knows only what it has read when it reads the participant
    kinds = {d.findtext(f"{space}transport_id"): d.findtext(f"{space}type", "UDPv4") for d in descriptors}
    users = below(rtps, "userTransports")
    for transport in list(users):
        if local or kinds.get(transport.text) in (None, "SHM"):
            users.remove(transport)
    for name in ("builtinTransports", "useBuiltinTransports"):
        for element in rtps.findall(space + name):
            rtps.remove(element)
    ET.SubElement(rtps, f"{space}useBuiltinTransports").text = "false"
    if not len(users):
        descriptor = ET.SubElement(descriptors, f"{space}transport_descriptor")
        for name, text in (("transport_id", _UDP), ("type", "UDPv4")):
            ET.SubElement(descriptor, space + name).text = text
        if local:
            addresses = ET.SubElement(descriptor, f"{space}interfaceWhiteList")
            ET.SubElement(addresses, f"{space}address").text = "127.0.0.1"
        ET.SubElement(users, f"{space}transport_id").text = _UDP
    return root
