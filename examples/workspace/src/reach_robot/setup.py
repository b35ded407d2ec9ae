# SPDX-License-Identifier: Apache-2.0
"""Installs the package; colcon calls it."""

from pathlib import Path

from setuptools import setup

setup(
    name="reach_robot",
    version="0.1.0",
    packages=["reach_robot"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/reach_robot"]),
        ("share/reach_robot", ["package.xml"]),
        ("share/reach_robot/config", [str(file) for file in Path("config").iterdir()]),
        ("share/reach_robot/launch", [str(file) for file in Path("launch").iterdir()]),
    ],
    entry_points={
        "console_scripts": ["make_bundle = reach_robot.make_bundle:main"],
    },
)
