# SPDX-License-Identifier: Apache-2.0
"""The fleet server from Python: what the command line uses, and how a training script publishes.

::

    from vla_fleet.client import Client
    fleet = Client("https://fleet.example", key)
    fleet.publish("bundles/pick/1.1.0", alias="champion")
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast
from urllib.parse import quote

import httpx

from vla_checkpoint import MANIFEST_NAME, Manifest, least_bump, parse_version, sha256_file, verify_bundle
from vla_checkpoint.delta import changed_files, make_delta
from vla_checkpoint.version import BUMPS
from vla_fleet.errors import FleetError, InputError, MissingError, SignInError

Json = dict[str, Any]
_CHUNK_BYTES = 1 << 20
_PAGE, _MOST_IDS = 1000, 500
_HINT = "is `vla-fleet serve` running, and is --server (VLA_FLEET_SERVER) right?"
_TRIES_WHEN_BUSY, _LONGEST_RETRY_S = 3, 10.0


class Client:
    """One server, one key.

    Args:
        server: its URL.
        key: an API key; empty for what needs none.
        transport: another way to the server, for tests.

    Every method raises ``FleetError`` with the server's code, or ``SERVER_UNREACHABLE``.
    """

    def __init__(self, server: str, key: str = "", transport: httpx.BaseTransport | None = None) -> None:
        if not (key.isascii() and key.isprintable()):
            raise SignInError("KEY_INVALID", "the API key has characters that no key has; check VLA_FLEET_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(30.0, write=None)
        tls = not server.startswith("http:")  # reading the authorities takes half a second
        options: Json = {"headers": headers, "timeout": timeout, "transport": transport, "verify": tls}
        try:
            self._http = httpx.Client(base_url=server, **options)
        except httpx.InvalidURL as e:
            raise FleetError("SERVER_UNREACHABLE", f"{server}: {e}; {_HINT}") from e

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- models -------------------------------------------------------------------------------------------------------------

    def publish(
        self,
        bundle: str | Path,
        *,
        version: str = "",
        bump: Literal["", "auto"] = "",
        alias: str = "",
        parent: str = "",
        lineage: Mapping[str, Any] | None = None,
        delta_from: Sequence[str] = (),
        sign_with: str | Path = "",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Json:
        """Verify a bundle, upload what the server does not have, and publish it; return the version.

        Args:
            bundle: the folder.
            version: publish it under this version instead of the manifest's.
            bump: ``auto``: the least step over the highest published version that the change needs.
            alias: an alias that points to it from then on.
            parent: ``name@version`` or ``name@alias`` that it was trained from.
            lineage: what else to keep in the manifest, as JSON: ``method`` (``fine_tune``, ``adapter`` or ``merge`` of the
                parent is a patch), ``data_set``, ``training_run``, ``git_commit``, ``metrics``.
            delta_from: versions, ``name@version`` or ``name@alias``, against which deltas are made and offered as well:
                robots that hold one of them fetch less. What is returned says how much, as ``deltas``.
            sign_with: folder of keys that sign the version here, where the server has no key of targets (docs/trust.md).
            progress: called with bytes done and bytes in all.
        """
        folder = Path(bundle)
        manifest = verify_bundle(folder).manifest
        origin = {**manifest.lineage, **(lineage or {})}
        if parent:
            origin["parent"] = str(self._version(parent)["digest"])
        manifest = replace(manifest, lineage=origin)
        bases = [self._version(reference) for reference in delta_from]
        done = 0
        for entry in manifest.files:
            if not self._has_blob(entry.sha256):
                self._upload(folder / entry.path, entry.sha256, partial(_shifted, progress, done, manifest.total_bytes))
            done += entry.size
            progress(done, manifest.total_bytes)
        published = self._publish_next(manifest) if bump else self._publish(manifest, version or manifest.version)
        if sign_with:
            signed = replace(manifest, version=published["version"])
            self._sign(sign_with, add={f"{signed.name}/{signed.version}/{MANIFEST_NAME}": signed.canonical()})
        if bases:
            published["deltas"] = [self._offer_deltas(folder, manifest, published["version"], base) for base in bases]
        if alias:
            self.set_alias(manifest.name, alias, published["version"], "published")
        return published

    def _offer_deltas(self, folder: Path, manifest: Manifest, version: str, base: Json) -> Json:
        """Make the deltas between a published version and a bundle, upload and offer them; return what they save."""
        before = self._manifest(base["name"], base["version"])
        size = instead_of = 0
        with tempfile.TemporaryDirectory(prefix="vla_fleet_") as aside:
            bases: list[Path] = []
            for path in changed_files(before, manifest):
                bases = bases or self._fetch_weights(before, Path(aside))
                delta = Path(aside) / "delta"
                make_delta(bases, folder / path, delta)
                if delta.stat().st_size < (folder / path).stat().st_size:
                    size += delta.stat().st_size
                    instead_of += (folder / path).stat().st_size
                    sha256 = sha256_file(delta)
                    self._upload(delta, sha256, lambda done: None)
                    self._post(f"/v1/models/{_q(manifest.name)}/versions/{_q(version)}/deltas", {"sha256": sha256})
        return {"against": f"{base['name']}@{base['version']}", "bytes": size, "instead_of": instead_of}

    def _fetch_weights(self, manifest: Manifest, folder: Path) -> list[Path]:
        found = []
        for entry in manifest.files:
            if entry.path.endswith(".safetensors"):
                found.append(folder / entry.sha256)
                self._fetch(f"/files/blobs/sha256/{entry.sha256}", found[-1])
        return found

    def _manifest(self, name: str, version: str) -> Manifest:
        return Manifest.parse(self._request("GET", f"/files/{_q(name)}/{_q(version)}/manifest.json").content)

    def trust(self) -> dict[str, str]:
        """Return the signed metadata by file name; empty if nothing is signed."""
        return cast(dict[str, str], self._get("/v1/trust"))

    def _sign(self, keys: str | Path, add: Mapping[str, bytes], remove: Sequence[str] = ()) -> None:
        from vla_checkpoint.repository import metadata  # cryptography is loaded where somebody signs

        data = metadata.next_targets(self.trust(), Path(keys), add, remove, metadata.utc_now())
        if data is not None:
            self._request("PUT", "/v1/trust/targets", json={"metadata": data.decode()})

    def _publish(self, manifest: Manifest, version: str) -> Json:
        text = replace(manifest, version=version).canonical().decode()
        return cast(Json, self._post(f"/v1/models/{_q(manifest.name)}/versions", {"manifest": text}))

    def _publish_next(self, manifest: Manifest) -> Json:
        """Publish as the next version. Manifests do not say all that the server checks: a step that it refuses is raised."""
        versions = self.models(manifest.name)
        if not versions:
            return self._publish(manifest, manifest.version)
        highest = versions[0]["version"]
        before = self._manifest(manifest.name, highest)
        for step in BUMPS[BUMPS.index(least_bump(before, manifest)) :]:
            try:
                return self._publish(manifest, str(parse_version(highest).next_version(step)))
            except InputError as e:
                if e.code != "VERSION_BUMP_TOO_SMALL" or step == BUMPS[-1]:
                    raise
        raise AssertionError("a major step is never too small")

    def download(
        self,
        reference: str,
        folder: str | Path,
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Path:
        """Fetch a published bundle into ``folder/NAME/VERSION``, verify it, and return that folder.

        Args:
            reference: ``name@version`` or ``name@alias``.
            folder: made if missing.
            progress: called with bytes done and bytes in all.

        Raises ``CheckpointError`` too: what arrived is not what was published.
        """
        found = self._version(reference)
        name, version = str(found["name"]), str(found["version"])
        text = self._request("GET", f"/files/{_q(name)}/{_q(version)}/manifest.json").content
        manifest = Manifest.parse(text)
        bundle, done = Path(folder) / name / version, 0
        for entry in manifest.files:
            path = bundle / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(f"/files/blobs/sha256/{entry.sha256}", path)
            done += entry.size
            progress(done, manifest.total_bytes)
        (bundle / MANIFEST_NAME).write_bytes(text)
        verify_bundle(bundle, expected_digest=found["digest"])
        return bundle

    def _fetch(self, url: str, path: Path) -> None:
        try:
            with self._http.stream("GET", url, follow_redirects=True) as response, path.open("wb") as file:
                if not response.is_success:
                    response.read()
                    raise _error(response)
                for data in response.iter_bytes(_CHUNK_BYTES):
                    file.write(data)
        except httpx.HTTPError as e:
            raise FleetError("SERVER_UNREACHABLE", f"{self._http.base_url}: {e or type(e).__name__}; {_HINT}") from e

    def _version(self, reference: str) -> Json:
        name, _, wanted = reference.partition("@")
        for version in self.models(name):
            if wanted in (version["version"], *version["aliases"]):
                return version
        raise MissingError("MODEL_NOT_FOUND", f"{reference!r} is not in the registry; write NAME@VERSION or NAME@ALIAS")

    def lineage(self, name: str) -> list[Json]:
        """Return where each version of a model comes from, newest first."""
        return cast(list[Json], self._get(f"/v1/models/{_q(name)}/lineage"))

    def retire(self, name: str, version: str, sign_with: str | Path = "") -> Json:
        """Take a version out of use; ``sign_with`` as in :meth:`publish`."""
        retired = self._json("DELETE", f"/v1/models/{_q(name)}/versions/{_q(version)}")
        if sign_with:
            self._sign(sign_with, add={}, remove=[f"{name}/{version}/{MANIFEST_NAME}"])
        return cast(Json, retired)

    def collect_garbage(self, *, dry_run: bool = False) -> Json:
        """Remove files that nothing needs; with ``dry_run`` say what would go."""
        return cast(Json, self._post("/v1/garbage-collections", {"dry_run": dry_run}))

    def models(self, name: str = "") -> list[Json]:
        """Return what was published, newest version of a name first."""
        return cast(list[Json], self._get("/v1/models", name=name))

    def set_alias(self, name: str, alias: str, version: str, reason: str = "") -> None:
        """Let ``name@alias`` mean ``version``."""
        self._request("PUT", f"/v1/models/{_q(name)}/aliases/{_q(alias)}", json={"version": version, "reason": reason})

    def alias_moves(self, name: str, alias: str = "") -> list[Json]:
        """Return who moved a model's aliases from where to where, and why, newest first."""
        return cast(list[Json], self._get(f"/v1/models/{_q(name)}/aliases", alias=alias))

    def _has_blob(self, sha256: str) -> bool:
        try:
            self._request("HEAD", f"/v1/blobs/{sha256}")
        except MissingError:
            return False
        return True

    def _upload(self, path: Path, sha256: str, progress: Callable[[int], None]) -> None:
        def chunks() -> Iterator[bytes]:
            done = 0
            with path.open("rb") as file:
                while data := file.read(_CHUNK_BYTES):
                    yield data
                    done += len(data)
                    progress(done)

        headers = {"Content-Length": str(path.stat().st_size)}
        self._request("PUT", f"/v1/blobs/{sha256}", content=chunks(), headers=headers)

    # -- robots -------------------------------------------------------------------------------------------------------------

    def robots(self) -> list[Json]:
        """Return every robot, by name."""
        robots: list[Json] = []
        while True:
            page = self._get("/v1/robots", after=robots[-1]["name"] if robots else "", limit=_PAGE)
            robots += page
            if len(page) < _PAGE:
                return robots

    def robot(self, name: str) -> Json:
        """Return one robot."""
        return cast(Json, self._get(f"/v1/robots/{_q(name)}"))

    def make_code(self, robot: str, group: str = "default", tags: Sequence[str] = (), valid_s: float = 3600.0) -> str:
        """Return a code with which a robot enrols once."""
        body = {"robot": robot, "group": group, "tags": list(tags), "valid_s": valid_s}
        return str(self._post("/v1/enrolment-codes", body)["code"])

    def enrol(self, code: str) -> tuple[str, str]:
        """Trade a code for the robot's name and token."""
        answer = self._post("/v1/enrol", {"code": code})
        return str(answer["robot"]), str(answer["token"])

    def make_key(self, name: str, role: str) -> str:
        """Return a new API key."""
        return str(self._post("/v1/keys", {"name": name, "role": role})["key"])

    def keys(self) -> list[Json]:
        """Return the API keys, without their secrets."""
        return cast(list[Json], self._get("/v1/keys"))

    def revoke_key(self, name: str) -> None:
        """End an API key."""
        self._request("DELETE", f"/v1/keys/{_q(name)}")

    def rotate_tokens(self, robots: Sequence[str] = (), group: str = "", *, everyone: bool = False) -> list[str]:
        """Let robots trade their tokens for new ones; return their names."""
        body = {"robots": list(robots), "group": group, "everyone": everyone}
        return cast(list[str], self._post("/v1/token-rotations", body))

    def revoke_token(self, robot: str) -> None:
        """End a robot's token and its line."""
        self._request("DELETE", f"/v1/robots/{_q(robot)}/token")

    def history(self, robot: str, at_s: float | None = None, limit: int = 100) -> list[Json]:
        """Return what ran on a robot, newest first; with ``at_s`` [s since 1970 UTC] only what ran at that moment."""
        at = {} if at_s is None else {"at_s": at_s}
        return cast(list[Json], self._get(f"/v1/robots/{_q(robot)}/history", limit=limit, **at))

    def deploy(
        self, model: str, robots: Sequence[str] = (), group: str = "", *, everyone: bool = False, **options: bool
    ) -> list[Json]:
        """Order robots to install a version; return the commands. ``options``: ``urgent``, ``allow_older``."""
        body = {"model": model, "robots": list(robots), "group": group, "everyone": everyone, **options}
        return cast(list[Json], self._post("/v1/deployments", body))

    def rollback(
        self,
        robots: Sequence[str] = (),
        group: str = "",
        *,
        everyone: bool = False,
        version: str = "",
        reason: str = "",
    ) -> list[Json]:
        """Order robots to go back; return the commands."""
        body = {"robots": list(robots), "group": group, "everyone": everyone, "version": version, "reason": reason}
        return cast(list[Json], self._post("/v1/rollbacks", body))

    def commands(self, ids: Sequence[str]) -> list[Json]:
        """Return how commands stand."""
        parts = (list(ids[first : first + _MOST_IDS]) for first in range(0, len(ids), _MOST_IDS))
        return [command for part in parts for command in self._get("/v1/commands", id=part)]

    def events(self, robot: str = "", limit: int = 100) -> list[Json]:
        """Return what happened on robots, newest first."""
        return cast(list[Json], self._get("/v1/events", robot=robot, limit=limit))

    def log(self, limit: int = 100) -> list[Json]:
        """Return who did what, newest first."""
        return cast(list[Json], self._get("/v1/log", limit=limit))

    def follow(self, ids: Sequence[str], timeout_s: float, every_s: float = 0.5) -> Iterator[list[Json]]:
        """Yield how commands stand, until all are done or the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            commands = self.commands(ids)
            yield commands
            if all(command["final"] for command in commands) or time.monotonic() > deadline:
                return
            time.sleep(every_s)

    # -- episodes -----------------------------------------------------------------------------------------------------------

    def episodes(self, limit: int = 100, **wanted: Any) -> list[Json]:
        """Return episodes, newest first.

        ``wanted``: ``robot``, ``policy``, ``version``, ``outcome`` (success, failure, unknown), ``corrected``, ``before``.
        """
        found: list[Json] = []
        while len(found) < limit:
            if found:
                wanted["before"] = found[-1]["number"]
            page = self._get("/v1/episodes", limit=min(_PAGE, limit - len(found)), **wanted)
            found += page
            if len(page) < min(_PAGE, limit):
                break
        return found

    def episode(self, sha256: str) -> Json:
        """Return the episode whose SHA-256 begins so."""
        return cast(Json, self._get(f"/v1/episodes/{_q(sha256)}"))

    def download_episode(self, sha256: str, path: Path) -> None:
        """Write an episode's file; ``path`` appears when it is whole."""
        self._download_upload("episodes", sha256, path)

    def adapters(self, name: str = "", base_version: str = "", before: int = 0, limit: int = 100) -> list[Json]:
        """Return adapters that robots uploaded, newest first: those before number ``before``."""
        wanted = {"name": name, "base_version": base_version, "before": before, "limit": limit}
        return cast(list[Json], self._get("/v1/adapters", **wanted))

    def download_adapter(self, sha256: str, path: Path) -> None:
        """Write an adapter's archive; ``path`` appears when it is whole."""
        self._download_upload("adapters", sha256, path)

    def _download_upload(self, kind: str, sha256: str, path: Path) -> None:
        part = path.with_name(f"{path.name}.part")
        digest = hashlib.sha256()
        try:
            with self._http.stream("GET", f"/v1/{kind}/{_q(sha256)}/file") as response, part.open("wb") as file:
                if not response.is_success:
                    response.read()
                    raise _error(response)
                for data in response.iter_bytes(_CHUNK_BYTES):
                    digest.update(data)
                    file.write(data)
            if not digest.hexdigest().startswith(sha256):
                raise FleetError("UPLOAD_DIGEST", f"{sha256} of {kind} came damaged; try again")
            part.replace(path)
        except httpx.HTTPError as e:
            raise FleetError("SERVER_UNREACHABLE", f"{self._http.base_url}: {e or type(e).__name__}; {_HINT}") from e
        except OSError as e:
            raise FleetError("OUTPUT_NOT_WRITTEN", f"{path}: {e.strerror}; make room, or name another") from e
        finally:
            part.unlink(missing_ok=True)

    def data_sets(self, policy: str = "", limit: int = 100) -> list[Json]:
        """Return data sets that were built, newest first."""
        return cast(list[Json], self._get("/v1/datasets", policy=policy, limit=limit))

    def record_data_set(self, **fields: Any) -> Json:
        """Keep that a data set was built; ``fields`` are those of ``vla_fleet.server.episodes.NewDataSet``."""
        return cast(Json, self._post("/v1/datasets", fields))

    # -- experiments --------------------------------------------------------------------------------------------------------

    def plan_experiment(self, design: Json) -> Json:
        """Return what an experiment would take; ``design``: the fields of ``vla_fleet.experiments.design.Design``."""
        return cast(Json, self._json("POST", "/v1/experiments/plan", json=design, timeout=300.0))

    def create_experiment(self, design: Json) -> str:
        """Begin an experiment; return its id."""
        return str(self._json("POST", "/v1/experiments", json=design, timeout=300.0)["id"])

    def experiments(self) -> list[Json]:
        """Return every experiment, newest first."""
        return cast(list[Json], self._get("/v1/experiments"))

    def experiment(self, name: str) -> Json:
        """Return an experiment with its evidence."""
        return cast(Json, self._get(f"/v1/experiments/{_q(name)}"))

    def stop_experiment(self, name: str, reason: str = "") -> None:
        """End an experiment; its robots go back to A."""
        self._request("POST", f"/v1/experiments/{_q(name)}/stop", json={"reason": reason})

    def promote_experiment(self, name: str, target: str = "") -> Json:
        """Begin a rollout of a B that has won (``target`` empty: to whom the experiment was for); return the rollout."""
        return cast(Json, self._post(f"/v1/experiments/{_q(name)}/promote", {"target": target}))

    def experiment_log(self, name: str) -> str:
        """Return the log from which every verdict can be computed again."""
        return self._request("GET", f"/v1/experiments/{_q(name)}/log").text

    # -- rollouts -----------------------------------------------------------------------------------------------------------

    def forecast(self, rollout: Json, per_hour: float | None = None, drop: float = 0.10) -> Json:
        """Return what a rollout would do in this fleet; the server simulates for seconds."""
        body = {"rollout": rollout, "per_hour": per_hour, "drop": drop}
        return cast(Json, self._json("POST", "/v1/rollouts/forecast", json=body, timeout=300.0))

    def create_rollout(self, model: str, target: str = "all", **settings: Any) -> Json:
        """Begin a rollout; ``settings`` are the other fields of :class:`vla_fleet.rollouts.settings.RolloutRequest`."""
        return cast(Json, self._post("/v1/rollouts", {"model": model, "target": target, **settings}))

    def rollouts(self) -> list[Json]:
        """Return every rollout, newest first, without its robots."""
        return cast(list[Json], self._get("/v1/rollouts"))

    def rollout(self, rollout: str) -> Json:
        """Return one rollout."""
        return cast(Json, self._get(f"/v1/rollouts/{_q(rollout)}"))

    def rollout_log(self, rollout: str) -> bytes:
        """Return its evidence log, for ``vla-evidence replay``."""
        return self._request("GET", f"/v1/rollouts/{_q(rollout)}/log").content

    def steer_rollout(self, rollout: str, action: str, reason: str = "", **more: Any) -> Json:
        """``pause``, ``resume``, ``approve`` or ``abort`` (``keep``) a rollout."""
        return cast(Json, self._post(f"/v1/rollouts/{_q(rollout)}/{action}", {"reason": reason, **more}))

    # -- HTTP ---------------------------------------------------------------------------------------------------------------

    def _get(self, path: str, **params: Any) -> Any:
        return self._json("GET", path, params=params)

    def _post(self, path: str, body: Json) -> Any:
        return self._json("POST", path, json=body)

    def _json(self, method: str, path: str, **options: Any) -> Any:
        response = self._request(method, path, **options)
        try:
            return response.json()
        except ValueError as e:
            raise FleetError("SERVER_ERROR", f"{response.url} answers with something else than JSON; {_HINT}") from e

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = self._send(method, path, options)
        for _ in range(_TRIES_WHEN_BUSY):
            if response.status_code != 429 or "content" in options:  # an upload cannot be read twice
                break
            time.sleep(min(float(response.headers.get("Retry-After", "1")), _LONGEST_RETRY_S))
            response = self._send(method, path, options)
        if response.is_success:
            return response
        raise _error(response)

    def _send(self, method: str, path: str, options: Json) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.HTTPError as e:
            raise FleetError("SERVER_UNREACHABLE", f"{self._http.base_url}: {e or type(e).__name__}; {_HINT}") from e


def _q(name: str) -> str:
    """Return one part of a path, whatever somebody took for a name."""
    if not name:
        raise InputError("INPUT_INVALID", "a name or an id is empty")
    return quote(name, safe="")


def _shifted(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    """Report progress of one file as progress of the whole."""
    progress(before + done, total)


def _error(response: httpx.Response) -> FleetError:
    try:
        body = response.json()
        code, message = str(body["error_code"]), str(body["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "SERVER_ERROR", f"the server answered {response.status_code}"
    kinds = {kind.status: kind for kind in FleetError.__subclasses__()}
    kind = kinds.get(response.status_code, FleetError)
    return kind(code if response.content else "NOT_FOUND", message)  # a HEAD request has no body
