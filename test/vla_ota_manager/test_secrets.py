# SPDX-License-Identifier: Apache-2.0
"""What an offer's URL holds as a password or a token is sent to its server, kept for a restart, and shown to nobody."""

from __future__ import annotations

import logging
import socket
import stat
from collections.abc import Iterator

import pytest
from support.ota import Robot

from vla_ota_manager.errors import ConfigError
from vla_ota_manager.fetch.source import AllowedSources
from vla_ota_manager.states import UpdateState
from vla_sim.checkpoint_server import Behaviour

S = UpdateState
TOKEN = "X-Amz-Signature=SECRET"


def shown(robot: Robot, caplog: pytest.LogCaptureFixture) -> str:
    """Everything that anybody gets to see, and ``state.json``."""
    history = robot.engine.list_models().history
    outcomes = [robot.engine.outcome(event.update_id) for event in robot.events]
    state = (robot.store_dir / "state.json").read_text()
    said = [*robot.statuses, robot.engine.status(), *robot.events, *history, *outcomes, state, caplog.text]
    return "\n".join(map(str, said))


@pytest.fixture
def ready(robot: Robot, caplog: pytest.LogCaptureFixture) -> Iterator[Robot]:
    caplog.set_level(logging.DEBUG, "vla_ota_manager")
    with socket.socket() as deaf:  # it holds its port and does not listen
        deaf.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        robot.settings = {"allowed_sources": (robot.server.base, dead), "retries": 0}
        robot.dead = f"{dead}/manifest.json"  # type: ignore[attr-defined]
        robot.publish("1.0.0")
        robot.start()
        yield robot


def urls(robot: Robot) -> dict[str, str]:
    base, good = robot.server.base, robot.update("1.0.0").manifest_url
    return {
        "NOT_FOUND": f"{base}/nothing?{TOKEN}",
        "HTTP_STATUS": f"{base}/broken?{TOKEN}",
        "REDIRECT_REFUSED": f"{base}/elsewhere?{TOKEN}",
        "MANIFEST_DIGEST_MISMATCH": f"{good}?{TOKEN}",
        "CONNECTION_FAILED": f"{robot.dead}?{TOKEN}",  # type: ignore[attr-defined]
        "SOURCE_NOT_ALLOWED": f"http://example.org/x?{TOKEN}",
        "URL_INVALID": f"{base.replace('//', '//user:SECRET@')}/manifest.json",
    }


CODES = (
    "NOT_FOUND HTTP_STATUS REDIRECT_REFUSED MANIFEST_DIGEST_MISMATCH CONNECTION_FAILED SOURCE_NOT_ALLOWED URL_INVALID"
)


@pytest.mark.parametrize("code", CODES.split())
def test_a_token_or_password_in_an_offers_url_is_shown_nowhere_whatever_goes_wrong(
    ready: Robot, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    ready.server.behave("/broken", Behaviour(status=500))
    ready.server.behave("/elsewhere", Behaviour(redirect=f"http://user:SECRET@example.org/x?{TOKEN}"))
    outcome = ready.ended(ready.offer("1.0.0", manifest_url=urls(ready)[code], manifest_sha256="0" * 64))
    assert outcome.error_code == code, outcome
    told = shown(ready, caplog)
    assert "SECRET" not in told and code in told


def test_the_server_gets_the_token_and_state_json_keeps_it_for_its_owner_while_the_update_needs_it(
    ready: Robot, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{ready.update('1.0.0').manifest_url}?{TOKEN}"
    ready.server.behave("/manifest.json", Behaviour(silent_s=600.0), times=1)  # until the manager is stopped
    update_id = ready.offer("1.0.0", manifest_url=url)
    ready.reach(S.CHECKING)
    state = ready.store_dir / "state.json"
    assert "SECRET" in state.read_text() and stat.S_IMODE(state.stat().st_mode) == 0o600
    ready.stop()
    ready.start()  # a restart goes on with the same URL
    ready.ended(update_id, S.COMMITTED)
    assert any(TOKEN in path for path, _ in ready.server.requests)
    ready.until(lambda: "SECRET" not in shown(ready, caplog))


def test_a_file_that_may_not_be_read_is_not_said_to_be_fetched(ready: Robot, caplog: pytest.LogCaptureFixture) -> None:
    outcome = ready.ended(ready.offer("1.0.0", manifest_url="file:///etc/passwd"))
    assert outcome.error_code == "SOURCE_NOT_ALLOWED"
    assert "fetching" not in shown(ready, caplog)


def test_a_source_that_is_no_parameter_is_refused_without_its_password() -> None:
    for prefix in ("http://user:SECRET@host/", "http://user:SECRET/", "user:SECRET@host", f"http://host/?{TOKEN}"):
        with pytest.raises(ConfigError) as refused:
            AllowedSources([prefix])
        assert "SECRET" not in str(refused.value)


def test_what_others_write_reaches_nobodys_terminal_as_a_control_sequence(
    ready: Robot, caplog: pytest.LogCaptureFixture
) -> None:
    assert not ready.engine.offer(ready.update("1.0.0", update_id="\x1b[31m", version="\x1b]0;x\x07")).success
    ready.ended(ready.offer("1.0.0", manifest_url="file:///\x1b[31m/x"))
    ready.say(refuse_prepare="GOLDEN_MISMATCH")
    ready.ended(ready.offer("1.0.0", update_id="refused"))
    ready.engine.rollback("\x1b[31m", "\x1b[31m")
    assert not any(c in shown(ready, caplog) for c in ("\x1b", "\x07", "\\x1b", "\\u001b"))
