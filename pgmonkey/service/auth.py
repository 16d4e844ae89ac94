"""POST /-/reload, the one request that changes something, and the token that it needs."""

from __future__ import annotations

import hmac
import os
import time
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pgmonkey.config.secret_files import (
    SecretFileError,
    SnapshotMovedError,
    from_one_snapshot,
    secret_text,
)
from pgmonkey.errors import PgmonkeyError
from pgmonkey.registry.registry import Registry
from pgmonkey.service.api import reload_result
from pgmonkey.telemetry import events

_PAUSE: Final = 1.0  # seconds between two events about refused requests: anybody can cause them


class TokenError(PgmonkeyError):
    """The token file cannot be used."""


class TokenFile:
    """The file of the token that a reload needs. It is read at each request: it may be rotated."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)  # noqa: PTH100 - links are followed when it is read

    def read(self) -> str:
        """Return the token, or raise `TokenError` if the file cannot be read, or is empty."""
        try:
            content, _ = from_one_snapshot(lambda snapshot: snapshot.read_bytes(self._path))
            return secret_text(content)
        except SecretFileError as error:
            problem = str(error)
        except SnapshotMovedError:
            problem = "is replaced again and again"
        raise TokenError(f"the token file {self._path} {problem}")


class _Denial(NamedTuple):
    """Why a request is refused: the HTTP status, one word for the event, text and hint."""

    status: int
    why: str
    error: str
    hint: str


class ReloadEndpoint:
    """Answer POST /-/reload. Without a token file every request is refused."""

    def __init__(self, registry: Registry, token: TokenFile | None) -> None:
        self._registry = registry
        self._token = token
        self._quiet_until = 0.0

    def answer(self, request: Request) -> Response:
        """Reload, and report the result. Runs in a thread: it waits for the probes."""
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

    def _denial(self, request: Request) -> _Denial | None:
        if self._token is None:
            return _Denial(
                403,
                "disabled",
                "reload over HTTP is disabled",
                "serve --reload-token-file FILE allows it",
            )
        # A foreign page in the browser of a person who can reach the service.
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") != "none":
            return _Denial(
                403, "cross_site", "browsers may not ask for a reload", "use pgmonkey reload"
            )
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not given:
            return _Denial(
                401,
                "no_token",
                "a token is needed",
                "pgmonkey reload --token-file FILE sends it: Authorization: Bearer TOKEN",
            )
        try:
            expected = self._token.read()
        except TokenError:
            return _Denial(
                403, "no_token_file", "the token file cannot be read", "see the service's log"
            )
        if not hmac.compare_digest(given.strip().encode("latin-1"), expected.strip().encode()):
            return _Denial(
                401,
                "wrong_token",
                "the token is wrong",
                "it must be the one of the service's --reload-token-file",
            )
        return None
