# SPDX-License-Identifier: Apache-2.0
"""What is written in two places says the same in both."""

from __future__ import annotations

import configparser
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import tomllib

TOP = Path(__file__).resolve().parents[2]


def test_setup_py_and_package_xml_have_one_version() -> None:
    version = ET.parse(TOP / "package.xml").getroot().findtext("version")
    assert f'version="{version}"' in (TOP / "setup.py").read_text()
    assert f"## {version}" in (TOP / "CHANGELOG.md").read_text()


def test_every_interface_file_is_built() -> None:
    cmake = (TOP / "CMakeLists.txt").read_text()
    files = sorted(p.relative_to(TOP).as_posix() for kind in ("msg", "srv", "action") for p in (TOP / kind).iterdir())
    assert files
    assert sorted(re.findall(r'"((?:msg|srv|action)/\w+\.\w+)"', cmake)) == files


def test_every_field_of_every_interface_is_explained() -> None:
    for kind in ("msg", "srv", "action"):
        for path in sorted((TOP / kind).iterdir()):
            lines = path.read_text().splitlines()
            assert lines[0].startswith("# "), f"{path.name} does not open with what it means"
            for line in lines:
                if line and not line.startswith(("#", "---")):
                    assert "#" in line, f"{path.name}: {line!r} has no comment"


def test_every_python_package_and_executable_is_installed_and_importable() -> None:
    cmake = (TOP / "CMakeLists.txt").read_text()
    packages = {p.parent.name for p in TOP.glob("vla_*/__init__.py")}
    assert packages == set(re.findall(r"ament_python_install_package\((\w+)", cmake))
    config = configparser.ConfigParser()
    config.read(TOP / "setup.cfg")
    scripts = config["options.entry_points"]["console_scripts"].split("\n")
    modules = [line.split("=")[1].strip().split(":")[0] for line in scripts if line.strip()]
    assert modules
    for module in modules:
        assert (TOP / (module.replace(".", "/") + ".py")).is_file(), f"{module} is not there"


def test_every_source_file_carries_its_licence() -> None:
    for path in TOP.glob("vla_*/**/*.py"):
        assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0"), path


def test_make_test_and_colcon_run_every_folder_of_tests() -> None:
    listed = re.search(
        r"foreach\(folder IN ITEMS ([\w ]+)\)\s+ament_add_pytest_test", (TOP / "CMakeLists.txt").read_text()
    )
    assert listed
    own_targets = {"big", "browser", "cuda", "lerobot", "vla_fleet_servers"}
    folders = {path.parent.name for path in TOP.glob("test/*/test_*.py")} - own_targets
    assert sorted(listed[1].split()) == sorted(folders)
    settings = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert settings["testpaths"] == [f"test/{folder}" for folder in sorted(folders)]


def test_what_the_readme_shows_of_the_ros2_command_line_is_in_the_transcript() -> None:
    """Left out is only what stands as … there; lines may be folded elsewhere."""
    transcript = " ".join((TOP / "docs" / "ros2_cli.md").read_text().split())
    readme = (TOP / "README.md").read_text()
    shown = re.findall(r"```console\n(\$ ros2 .*?)```", readme, flags=re.DOTALL)
    parts = [" ".join(part.split()) for block in shown for part in block.split("…")]
    assert len(parts) > 5
    assert not [part for part in parts if part not in transcript]
