# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent to the server over HTTP, the answer is one that the OpenAPI document promises, and never a 500."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.bundles import make_bundle
from support.fleet_app import FleetApp

from vla_fleet.server.app import create_app
from vla_fleet.server.rooms import Rooms, Settings

with tempfile.TemporaryDirectory() as folder:
    DOCUMENT = create_app(Rooms(Settings(data=Path(folder), public_url="http://fleet"))).openapi()
# A schema cannot say all: that a manifest is one, that a request names somebody. So valid by the schema need not be accepted.
OPERATIONS = [found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetApp]:
    with FleetApp(tmp_path_factory.mktemp("fleet"), key_requests_s=1e6, enrolment_failures_s=1e6) as app:
        folder = tmp_path_factory.mktemp("bundles") / "pick"
        make_bundle(folder, name="pick", version="1.0.0")
        with app.client() as client:
            client.publish(folder, alias="champion")
            client.enrol(client.make_code("arm"))
        yield app


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_answer_is_one_that_the_document_promises(
    app: FleetApp, session: requests.Session, operation: Any
) -> None:
    @settings(max_examples=4, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        key = {"Authorization": f"Bearer {app.key}"}
        case.call_and_validate(
            base_url=app.url, session=session, headers=key, excluded_checks=[positive_data_acceptance]
        )

    check()
