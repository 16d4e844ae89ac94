"""POST /-/reload: the one request that changes something, and who may make it."""

from __future__ import annotations

import hmac
import time
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pgmonkey.registry.registry import Registry
from pgmonkey.service.api import reload_result
from pgmonkey.service.auth import TokenError, TokenFile
from pgmonkey.telemetry import events

_PAUSE: Final = 1.0  # seconds between two events about refusals: anybody can cause them


class Denial(NamedTuple):
    """Say why a request is refused.

    Args:
        status: Of HTTP.
        why: In one word, for the event.
        error: In words.
        hint: What to do about it.
    """

    status: int
    why: str
    error: str
    hint: str


class ReloadEndpoint:
    """Answer POST /-/reload.

    Args:
        registry: What to reload.
        token: What a request has to know; `None` refuses everybody.
    """

    def __init__(self, registry: Registry, token: TokenFile | None) -> None:
        self._registry = registry
        self._token = token
        self._quiet_until = 0.0

    def answer(self, request: Request) -> Response:
        """Reload, and say what came of it. Runs in a thread: it waits for the probes.

        Args:
            request: The request; its body is not read.
        """
        denial = self._denial(request)
        if denial is None:
            return JSONResponse(reload_result(self._registry.reload()))
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _PAUSE
            events.emit("http.denied", path="/-/reload", why=denial.why)
        return JSONResponse(
            {"error": denial.error, "hint": denial.hint},
            denial.status,
            {"WWW-Authenticate": "Bearer"} if denial.status == 401 else None,
        )

    def _denial(self, request: Request) -> Denial | None:
        if self._token is None:
            return Denial(403, "disabled", "reload over HTTP is disabled", "--reload-token-file")
        # A page of somebody else's in the browser of somebody who may reach us.
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") != "none":
            return Denial(
                403, "cross_site", "browsers may not ask for a reload", "pgmonkey reload does"
            )
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not given:
            return Denial(401, "no_token", "a token is needed", "Authorization: Bearer TOKEN")
        try:
            expected = self._token.read()
        except TokenError:
            return Denial(
                403, "no_token_file", "the token file cannot be read", "see the service's log"
            )
        if not hmac.compare_digest(given.strip().encode("latin-1"), expected.strip().encode()):
            return Denial(401, "wrong_token", "the token is wrong", "see --reload-token-file")
        return None
