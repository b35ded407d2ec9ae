# SPDX-License-Identifier: Apache-2.0
"""Who may see and do what on the page, and what an answer to a browser says about itself.

The session's cookie goes with requests that this site itself makes (``SameSite=Strict``). Another port or sub-domain counts as
the same site for that, so whatever changes something must also come from this origin: browsers say where a request comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlsplit

import structlog
from fastapi import Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute

from vla_fleet.errors import FleetError, InputError, RoleError, SignInError
from vla_fleet.page.render import LIVE, page
from vla_fleet.server.keys import Person, Role
from vla_fleet.server.limits import refuse
from vla_fleet.server.rooms import rooms_of

COOKIE = "vla_fleet_session"
_MAX_FORM_BYTES = 64 * 1024
log = structlog.get_logger("vla_fleet")


class PageRoute(APIRoute):
    """A route whose errors are pages; whoever has not signed in is sent to do so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                if request.method == "POST":
                    _check_origin(request)
                return await handle(request)
            except SignInError as e:
                return _sign_in(request, e)
            except FleetError as e:
                return _error(request, e.status, e.code, e.message)
            except RequestValidationError as e:
                first = e.errors()[0]
                return _error(request, 422, "INPUT_INVALID", f"{first['loc'][-1]}: {first['msg']}")
            except HTTPException:
                raise
            except Exception as e:
                log.exception("a page failed")
                text = f"{type(e).__name__}; the server's log has the traceback"
                return _error(request, 500, "INTERNAL_ERROR", text)

        return answer


def _error(request: Request, status: int, code: str, message: str) -> Response:
    return page(request, "error.html", status, code=code, message=message)


def _sign_in(request: Request, error: SignInError) -> Response:
    if request.headers.get(LIVE):
        return Response(status_code=401)
    path = request.url.path
    if request.method == "GET" and request.url.query:
        path = f"{path}?{request.url.query}"
    return RedirectResponse(f"/sign-in?next={quote(path)}" if request.method == "GET" else "/sign-in", 303)


def _check_origin(request: Request) -> None:
    """Refuse what another site's page made the browser send.

    Raises:
        RoleError: ORIGIN_REFUSED.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        own = site == "same-origin"
    else:
        ours = {request.headers.get("host"), urlsplit(rooms_of(request).settings.public_url).netloc}
        own = origin is not None and urlsplit(origin).netloc in ours
    if not own:
        text = f"the form was sent from {origin or 'an unknown place'}; open the page at this server's address"
        raise RoleError("ORIGIN_REFUSED", text)


async def _person(request: Request) -> Person:
    rooms = rooms_of(request)
    person = await rooms.sessions.person(request.cookies.get(COOKIE, ""))
    request.state.person, request.state.who = person, person.name  # for templates, and for the request log
    refuse(f"requests of {person.name}", rooms.key_requests.take(person.name))
    return person


def may_order(person: Person) -> bool:
    """Whether a person may order robots about."""
    return person.role in (Role.OPERATOR, Role.ADMIN)


def _operator(person: Annotated[Person, Depends(_person)]) -> Person:
    if not may_order(person):
        raise RoleError("ROLE_REQUIRED", f"{person.name} is {person.role.value}; this needs operator or admin")
    return person


async def _form(request: Request) -> dict[str, str]:
    body = await request.body()
    if len(body) > _MAX_FORM_BYTES:
        raise InputError("INPUT_INVALID", f"a form has at most {_MAX_FORM_BYTES} bytes")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100))
    except ValueError as e:
        raise InputError("INPUT_INVALID", "the form cannot be read") from e


Viewer = Annotated[Person, Depends(_person)]
Operator = Annotated[Person, Depends(_operator)]
Form = Annotated[dict[str, str], Depends(_form)]
