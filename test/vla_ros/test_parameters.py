# SPDX-License-Identifier: Apache-2.0
"""Parameters as they are given become settings, or the node refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_ros.parameters import ParameterError, declare, refuse_unknown
from vla_ros.settings import setting


@dataclass(frozen=True)
class Settings:
    folder: str = setting("", "a folder", path=True)
    folders: tuple[str, ...] = setting((), "folders", path=True)
    word: str = setting("", "a word")
    keep_versions: int = setting(3, "a number", 1, 9)


@pytest.fixture
def context(ros_domain: int) -> Iterator[Context]:
    context = Context()
    rclpy.init(context=context, domain_id=ros_domain)
    yield context
    rclpy.shutdown(context=context, uninstall_handlers=False)


def settings(context: Context, **given: Any) -> Settings:
    """What a node makes of these parameters."""
    overrides = [Parameter(name.replace("__", "."), value=value) for name, value in given.items()]
    node = Node("robot", context=context, parameter_overrides=overrides)
    try:
        refuse_unknown(node, Settings)
        return declare(node, Settings)
    finally:
        node.destroy_node()


def test_the_home_folder_is_meant_by_a_tilde_where_a_path_is_expected_and_only_there(context: Context) -> None:
    home = Path.home()
    found = settings(context, folder="~/store", folders=["~", "/abs", "rel/~"], word="~/word")
    assert found == Settings(f"{home}/store", (f"{home}", "/abs", "rel/~"), "~/word")
    with pytest.raises(ParameterError, match=r"^folder: ~nobody-of-this-name/x: there is no such home folder$"):
        settings(context, folder="~nobody-of-this-name/x")


def test_a_parameter_that_the_node_does_not_have_is_refused_with_the_name_that_was_meant(context: Context) -> None:
    with pytest.raises(
        ParameterError, match=r"^keep_version: robot has no such parameter; did you mean keep_versions\?$"
    ):
        settings(context, keep_version=5)
    with pytest.raises(ParameterError, match=r"^max_jerk: robot has no such parameter; --help lists"):
        settings(context, max_jerk=5.0)


def test_parameters_that_every_ros_node_has_are_accepted(context: Context) -> None:
    reliable = {"qos_overrides__/tf__subscription__depth": 5}
    assert settings(context, use_sim_time=True, start_type_description_service=False, **reliable) == Settings()
