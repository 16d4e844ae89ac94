"""The client of a running service, for `pgmonkey status`, `reload` and `diff`."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

from pgmonkey.errors import PgmonkeyError

_TIMEOUT: Final = 10.0  # seconds to connect, and between two pieces of an answer
_RELOAD_TIMEOUT: Final = 120.0  # seconds: a reload waits for its probes
_LARGEST: Final = 64 * 1024 * 1024  # bytes


class UnreachableError(PgmonkeyError):
    """No service answers at the address."""


class RefusedError(PgmonkeyError):
    """The service answers with an error."""


class ServiceClient:
    """Ask a running service. Proxies are not used, and redirects not followed.

    The address is such as `http://127.0.0.1:9749`, with the path that it is mounted at; others raise
    `ValueError`.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ValueError("expected an address such as http://127.0.0.1:9749")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("an address has no user, query or fragment")
        self._where = f"{parts.scheme}://{parts.netloc}"
        self._secure = parts.scheme == "https"
        self._address = parts.hostname, port
        self._path = parts.path.rstrip("/")

    def overview(self) -> dict[str, Any]:
        """Return the body of /api/v1/databases, or raise `UnreachableError` or `RefusedError`."""
        return self._ask("GET", "/api/v1/databases", {}, _TIMEOUT)

    def settings(self, name: str) -> dict[str, Any]:
        """Return the effective values of a database by dotted key, with its secrets masked.

        Empty if the service never had a valid configuration of it. It raises as `overview` does.
        """
        body = self._ask("GET", f"/api/v1/databases/{name}", {}, _TIMEOUT)
        return {one["key"]: one["value"] for one in body["settings"]}

    def reload(self, token: str | None) -> dict[str, Any]:
        """Reload and return the result, or raise `UnreachableError` or `RefusedError`."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self._ask("POST", "/-/reload", headers, _RELOAD_TIMEOUT)

    def _ask(
        self, method: str, path: str, headers: dict[str, str], timeout: float
    ) -> dict[str, Any]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(*self._address, timeout=timeout)
        try:
            connection.request(method, self._path + path, headers=headers)
            answer = connection.getresponse()
            content = answer.read(_LARGEST)
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"no service at {self._where}: {_reason(error)}") from None
        finally:
            connection.close()
        try:
            body = json.loads(content)
        except ValueError:
            body = None
        if answer.status == 200 and isinstance(body, dict):
            return body
        what = f"{self._where}{self._path}{path} answered {answer.status}"
        if isinstance(body, dict) and "error" in body:
            what += f": {body['error']}\n  hint: {body.get('hint', 'none')}"
        raise RefusedError(what)


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "it did not answer in time"
        case socket.gaierror():
            return "its name could not be resolved"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted ({error.verify_message}); SSL_CERT_FILE names another authority"
        case ssl.SSLError():
            return "TLS could not be agreed on"
        case OSError() if isinstance(error.errno, int) and error.errno > 0:
            return os.strerror(error.errno)
        case _:
            return "the answer is not HTTP"
