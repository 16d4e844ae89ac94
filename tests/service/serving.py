"""A service in a process of its own, as an operator meets it."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.kit.command import Running


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.text)


class Serving(Running):
    """A service that answers."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.wait_for(r"listening on (https?://[^\s\"]+)").group(1)

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Ask once, on a connection of its own."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            self._canary.check(text, f"the answer of {path}")
            return Answer(answer.status, answer.headers, text)
        finally:
            connection.close()

    def sample(self, name: str) -> float | None:
        """Return the first value of a metric that starts like this."""
        match = re.search(rf"^{re.escape(name)}\S* (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return float(match.group(1)) if match else None


Serve = Callable[..., Serving]
