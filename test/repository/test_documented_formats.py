# SPDX-License-Identifier: Apache-2.0
"""What a robot builder or a policy author must write by hand is documented as the code reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vla_checkpoint.config import REQUIRED_KEYS, REQUIRED_STATS, parse_config
from vla_checkpoint.errors import ConfigError
from vla_policy_node.contract.message_types import OBSERVATION_FIELDS, OUTPUT_FIELDS, SPELLINGS, STAMPED_TYPES

TOP = Path(__file__).resolve().parents[2]


def rows(section: str) -> dict[str, list[str]]:
    """Return type -> the other cells of the table in a section of docs/contract.md."""
    text = (TOP / "docs/contract.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| `([a-z_]+/msg/\w+)` \|(.*)\|$", text, re.MULTILINE)
    return {kind: [cell.strip() for cell in cells.split("|")] for kind, cells in lines}


def test_every_command_type_is_documented_with_the_names_of_its_fields() -> None:
    documented = rows("Commands")
    assert list(documented) == list(OUTPUT_FIELDS) and set(OUTPUT_FIELDS.values()) <= SPELLINGS.keys()
    for kind, (select, _) in documented.items():
        names = [name.replace("JOINT", "elbow") for name in re.findall(r"`([^`]+)`", select)]
        names = [name for name in names if not name.endswith("-1")]
        assert names and all(OUTPUT_FIELDS[kind].fullmatch(name) for name in names), (kind, names)


def test_every_observation_type_is_documented_and_whether_it_has_a_stamp() -> None:
    documented = rows("Observations")
    assert set(documented) == set(OBSERVATION_FIELDS)
    assert {kind for kind, cells in documented.items() if cells[1] == "yes"} == STAMPED_TYPES


def test_the_commented_contract_names_the_other_command_types() -> None:
    text = (TOP / "config/sim_arm.contract.yaml").read_text()
    assert all(kind.rpartition("/")[2] in text for kind in OUTPUT_FIELDS) and "docs/contract.md" in text


@pytest.mark.parametrize("missing", REQUIRED_KEYS)
def test_each_required_key_of_config_json_is_required_documented_and_named_where_it_lacks(missing: str) -> None:
    features = {"observation.state": {"type": "STATE", "shape": [2]}}, {"action": {"type": "ACTION", "shape": [2]}}
    document = dict(zip(REQUIRED_KEYS, ("act", *features, {}, 8), strict=True))
    parse_config(document, "config.json")
    del document[missing]
    with pytest.raises(ConfigError) as refused:
        parse_config(document, "config.json")
    assert refused.value.code == "CONFIG_FIELD_MISSING" and all(key in str(refused.value) for key in REQUIRED_KEYS)
    page = (TOP / "docs/architecture.md").read_text()
    assert re.search(rf"^  \| .*`{missing}`.* \| required \|", page, re.MULTILINE)
    assert all(f"`{mode}`" in page for mode in REQUIRED_STATS)


def test_the_launch_files_have_the_package_that_starts_them() -> None:
    assert any((TOP / "launch").iterdir())
    assert "<exec_depend>ros2launch</exec_depend>" in (TOP / "package.xml").read_text()
