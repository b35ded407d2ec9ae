# SPDX-License-Identifier: Apache-2.0
"""Signing in and out."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from vla_fleet import protocol
from vla_fleet.errors import SignInError
from vla_fleet.page.access import COOKIE, Form, PageRoute
from vla_fleet.page.render import page
from vla_fleet.page.sessions import VALID_S
from vla_fleet.server.rooms import rooms_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)


def _own(path: str) -> str:
    """Return a path of this server; of what leads elsewhere, the first page."""
    inside = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if inside else "/"


@router.get("/sign-in")
async def ask(request: Request, next: protocol.Text = "/") -> Response:
    """Ask for a key."""
    return page(request, "sign_in.html", next=_own(next), message="")


@router.post("/sign-in")
async def sign_in(request: Request, form: Form) -> Response:
    """Trade a key for a session."""
    rooms, path = rooms_of(request), _own(form.get("next", "/"))
    try:
        secret = await rooms.sessions.open(form.get("key", "").strip())
    except SignInError:
        return page(request, "sign_in.html", 401, next=path, message="This key is unknown, or was revoked.")
    answer = RedirectResponse(path, 303)
    answer.set_cookie(
        COOKIE, secret, max_age=int(VALID_S), httponly=True, samesite="strict",
        secure=rooms.settings.public_url.startswith("https:"),
    )  # fmt: skip
    return answer


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """End the session."""
    await rooms_of(request).sessions.close(request.cookies.get(COOKIE, ""))
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
