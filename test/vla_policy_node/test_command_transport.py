"""Commands never wait for another process's shared memory, and everything else that a Fast DDS profile says still holds."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vla_policy_node.ros.command_transport import by_udp

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "fastdds.xml"
VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"
SERVER = """<profiles xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles">
  <transport_descriptors>
    <transport_descriptor><transport_id>robot_lan</transport_id><type>UDPv4</type></transport_descriptor>
    <transport_descriptor><transport_id>big</transport_id><type>SHM</type></transport_descriptor>
  </transport_descriptors>
  <participant profile_name="other"><rtps><useBuiltinTransports>true</useBuiltinTransports></rtps></participant>
  <participant profile_name="mine" is_default_profile="true"><rtps>
    <builtin><discovery_config><discoveryProtocol>SUPER_CLIENT</discoveryProtocol></discovery_config></builtin>
    <userTransports><transport_id>big</transport_id><transport_id>robot_lan</transport_id></userTransports>
  </rtps></participant>
</profiles>"""


def transports(environment: dict[str, str]) -> tuple[ET.Element, list[tuple[str, list[str]]]]:
    """The default participant of the profile in force, and type and interfaces of each of its transports."""
    root = ET.parse(environment[VARIABLE]).getroot()
    participant = root.find(".//{*}participant[@is_default_profile='true']")
    assert participant is not None and participant.findtext(".//{*}useBuiltinTransports") == "false"
    described = {d.findtext("{*}transport_id"): d for d in root.iter() if d.tag.endswith("}transport_descriptor")}
    used = [described[name.text] for name in participant.findall(".//{*}userTransports/{*}transport_id")]
    return participant, [
        (d.findtext("{*}type") or "", [a.text or "" for a in d.iter() if a.tag.endswith("}address")]) for d in used
    ]


@pytest.mark.parametrize(
    "profile",
    [None, SHIPPED, Path(__file__)],
    ids=["no profile", "the shipped profile", "one that Fast DDS cannot read"],
)
def test_commands_go_by_udp_alone(profile: Path | None) -> None:
    environment = {} if profile is None else {VARIABLE: str(profile)}
    with by_udp(environment):
        assert transports(environment)[1] == [("UDPv4", [])]
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" not in environment


@pytest.mark.parametrize("local", [{"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}, {"ROS_LOCALHOST_ONLY": "1"}])
def test_a_robot_that_keeps_to_its_machine_sends_no_command_beyond_it(local: dict[str, str]) -> None:
    environment = {VARIABLE: str(SHIPPED), **local}
    with by_udp(environment):
        assert transports(environment)[1] == [("UDPv4", ["127.0.0.1"])]
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SYSTEM_DEFAULT" and "ROS_LOCALHOST_ONLY" not in environment


def test_a_teams_own_discovery_and_network_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.xml").write_text(SERVER)
    environment = {"FASTDDS_DEFAULT_PROFILES_FILE": str(tmp_path / "mine.xml")}
    with by_udp(environment):
        participant, used = transports(environment)
    assert participant.get("profile_name") == "mine" and used == [("UDPv4", [])]
    assert participant.findtext(".//{*}userTransports/{*}transport_id") == "robot_lan"
    assert participant.findtext(".//{*}discoveryProtocol") == "SUPER_CLIENT"


@pytest.mark.parametrize(
    "environment",
    [
        {"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"},
        {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_STATIC_PEERS": "10.0.0.7"},
    ],
)
def test_a_discovery_that_a_profile_cannot_describe_is_left_alone(environment: dict[str, str]) -> None:
    before = dict(environment)
    with by_udp(environment):
        assert environment == before
