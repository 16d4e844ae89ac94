"""A stand-in for a running service, which answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def stand_in(answer: Callable[[str], Any]) -> Iterator[str]:
    """Answer with the JSON that a function returns for a path, or with 501; yield the address."""

    class Service(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Write nothing to standard error."""

        def do_GET(self) -> None:
            body = answer(self.path)
            self.send_response(501 if body is None else 200)
            self.end_headers()
            self.wfile.write(b"" if body is None else json.dumps(body).encode())

        def do_POST(self) -> None:
            self.do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
