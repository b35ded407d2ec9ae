# SPDX-License-Identifier: Apache-2.0
"""deploy/ asks of the programs only what they have: flags, variables, ports, paths, packages. Nothing of it is started here."""

from __future__ import annotations

import ast
import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from typer.main import get_command

from vla_fleet.cli.main import app as cli
from vla_fleet.server.app import create_app
from vla_fleet.server.files import ACCEL
from vla_fleet.server.rooms import Rooms, Settings
from vla_fleet.storage.database import Database
from vla_fleet.storage.object_blobs import ObjectBlobs

TOP = Path(__file__).resolve().parents[2]
DEPLOY = TOP / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
REPLICAS = {name: service for name, service in SERVICES.items() if service.get("image") == "vla-fleet"}


def serve_options() -> dict[str, str]:
    """Return the variable of each flag of ``vla-fleet serve``; empty: it has none."""
    command = get_command(cli).commands["serve"]  # type: ignore[attr-defined]
    return {flag: str(option.envvar or "") for option in command.params for flag in option.opts}


def check_serve(words: list[str]) -> dict[str, str]:
    """Return the flags of a call of ``serve``; fail if one does not exist."""
    assert words[0] == "serve"
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    assert flags.keys() <= serve_options().keys(), flags
    return flags


def routes(tmp_path: Path) -> set[str]:
    return set(create_app(Rooms(Settings(data=tmp_path, public_url="http://x"))).openapi()["paths"])


def unit(name: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, strict=False)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read(DEPLOY / name)
    assert found["Install"]["WantedBy"] == "multi-user.target" and found["Service"]["Restart"] == "always"
    return found


def test_replicas_are_started_with_flags_and_variables_that_the_server_has(tmp_path: Path) -> None:
    assert len(REPLICAS) >= 2
    variables, paths = set(serve_options().values()) - {""}, routes(tmp_path)
    for service in REPLICAS.values():
        flags = check_serve(service["command"])
        own = {name for name in service["environment"] if name.startswith("VLA_")}
        assert own == variables, "each is set, and no other"
        assert flags["--public-url"] == "${PUBLIC_URL}", "every replica names the address that robots know"
        volumes = [volume.split(":") for volume in service["volumes"]]
        assert [flags["--data"]] == [inside for _, inside in volumes] and volumes[0][0] in COMPOSE["volumes"]
        address = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", " ".join(service["healthcheck"]["test"]))
        assert address is not None and address[1] == flags["--port"] and address[2] in paths
        ast.parse(service["healthcheck"]["test"][-1])
    assert len({service["volumes"][0] for service in REPLICAS.values()}) == len(REPLICAS), "a folder each"


def test_replicas_find_their_database_bus_and_object_store(tmp_path: Path) -> None:
    for service in REPLICAS.values():
        found = service["environment"]
        database, bus = urlsplit(found["VLA_FLEET_DATABASE"]), urlsplit(found["VLA_FLEET_BUS"])
        objects = urlsplit(found["AWS_ENDPOINT_URL"])
        assert {database.hostname, bus.hostname, objects.hostname} == service["depends_on"].keys() <= SERVICES.keys()
        assert Database(found["VLA_FLEET_DATABASE"], None).shared  # type: ignore[arg-type]
        made = SERVICES[str(database.hostname)]["environment"]
        assert (database.username, database.password) == (made["POSTGRES_USER"], made["POSTGRES_PASSWORD"])
        assert database.path == f"/{made['POSTGRES_DB']}"
        assert (bus.scheme, bus.port) == ("nats", 4222)
        ObjectBlobs(found["VLA_FLEET_BLOBS"], "blobs", tmp_path / "aside")
        store = SERVICES[str(objects.hostname)]
        assert f"/data/{urlsplit(found['VLA_FLEET_BLOBS']).hostname} " in store["entrypoint"][-1], "the bucket"
        own = store["environment"]
        assert found["AWS_ACCESS_KEY_ID"] == own["MINIO_ROOT_USER"]
        assert found["AWS_SECRET_ACCESS_KEY"] == own["MINIO_ROOT_PASSWORD"]
    used = set(re.findall(r"\$\{(\w+)\}", (DEPLOY / "compose.yaml").read_text()))
    assert used == set(re.findall(r"^(\w+)=", (DEPLOY / "env.example").read_text(), re.M))


def test_the_proxy_leads_to_every_replica_that_is_ready(tmp_path: Path) -> None:
    text = (DEPLOY / "Caddyfile").read_text()
    behind = re.search(r"reverse_proxy (.+) \{", text)
    health = re.search(r"health_uri (\S+)", text)
    ports = {name: check_serve(service["command"])["--port"] for name, service in REPLICAS.items()}
    assert behind is not None and set(behind[1].split()) == {f"{name}:{port}" for name, port in ports.items()}
    assert health is not None and health[1] in routes(tmp_path)
    listens = re.search(r"^:(\d+) \{", text, re.M)
    assert listens is not None and SERVICES["proxy"]["ports"][0].endswith(f":{listens[1]}")
    assert SERVICES["proxy"]["depends_on"] == list(REPLICAS)


def test_the_image_has_every_package_that_the_server_imports() -> None:
    listed = set((TOP / "requirements" / "fleet.txt").read_text().split("\n"))
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.search(r"pip install (.+)", text)
    assert installs is not None
    listed |= set(installs[1].split())
    code = (
        "import sys; import vla_fleet.cli.main, vla_fleet.server.run, vla_fleet.server.migrate, vla_learning.episodes.summary;"
        "import scipy.special, vla_checkpoint.repository.metadata, vla_fleet.mirror.run, vla_fleet.storage.nats_bus;"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    ours = {"pydantic", "numpy", "scipy", "mcap", "safetensors", "semver", "rfc8785", "zstandard"}
    assert ours <= loaded, "else the image need not have them"
    names = {
        "PIL": "pillow",
        "nats": "nats-py",
        "prometheus_client": "prometheus-client",
        "torch": "torch",
        "yaml": "pyyaml",
    }
    names |= {"pyarrow": "pyarrow", "ray": "ray", "rclpy": "rclpy", "requests": "requests", "cv2": "opencv"}
    needed = {names.get(name, name) for name in loaded & (ours | names.keys())}
    assert needed <= listed, needed - listed


def test_the_servers_unit_calls_it_as_it_can_be_called() -> None:
    service = unit("vla-fleet.service")["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[0].endswith("/scripts/run") and (TOP / "scripts" / "run").stat().st_mode & 0o111
    assert words[1] == "vla-fleet"
    flags = check_serve(words[2:])
    assert flags["--data"] == f"/var/lib/{service['StateDirectory']}"
    assert set(re.findall(r"VLA_FLEET_\w+", (DEPLOY / "vla-fleet.service").read_text())) <= set(
        serve_options().values()
    )


def test_the_robots_unit_launches_with_arguments_that_the_launch_file_has() -> None:
    service = unit("vla-robot.service")["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[1:4] == ["ros2", "launch", "vla_ota"] and (TOP / "launch" / words[4]).is_file()
    declared = set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', (TOP / "launch" / words[4]).read_text()))
    given = dict(word.split(":=") for word in words[5:])
    assert given.keys() <= declared
    named = set(re.findall(r"\b([A-Z]{4,})\b", (DEPLOY / "vla-robot.service").read_text().split("\n[Unit]")[0]))
    assert {value.strip("${}") for value in given.values()} <= named, "the unit says which variables it needs"
    assert service["KillSignal"] == "SIGINT", "what ros2 launch ends its nodes on"


def test_nginx_sends_the_files_from_where_the_server_keeps_them() -> None:
    nginx, server = (DEPLOY / "nginx.conf").read_text(), shlex.split(unit("vla-fleet.service")["Service"]["ExecStart"])
    place = re.search(r"location (\S+)/ \{\s+internal;\s+alias (\S+)/;", nginx)
    assert place is not None and place[1] == ACCEL
    data = Path(server[server.index("--data") + 1])
    assert Path(place[2]) == data / "blobs/sha256"
    assert f"proxy_pass http://127.0.0.1:{server[server.index('--port') + 1]};" in nginx
    assert "--files-by" in serve_options() and "--files-by x-accel" in nginx
