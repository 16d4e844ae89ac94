"""What the service does with requests that are wrong, hostile, slow or many."""

from __future__ import annotations

import http.client
import itertools
import json
import resource
import signal
import socket
import ssl
import statistics
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.kit import Canary, ChaosProxy, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.certificates import Authority
from tests.service.raw import connect, read, request, send
from tests.service.serving import Serve, Serving

TOKEN = "a token of the operators"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """The file of the token."""
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def files(service: Serving) -> int:
    """Return how many files and sockets a service has open."""
    return sum(1 for _ in Path(f"/proc/{service.process.pid}/fd").iterdir())


NOWHERE = (
    "/nope", "/../../etc/passwd", "/%2e%2e/", "/%2e%2e%2fetc%2fpasswd", "//metrics", "/metrics/",
    "/assets/", "/assets/layout.html", "/assets/../page.css", "/assets/..%2fpage.css",
    "/databases/", "/databases/nope", "/databases/../orders", "/api/v1/databases/nope",
    "/api/v2/databases", "/-/reload/", "/databases/<script>alert(1)</script>",
    "/databases/%3Cscript%3Ealert(1)%3C/script%3E",
)  # fmt: skip


def test_a_path_that_is_not_there(service: Serving) -> None:
    """404, always with the same body: no file is read by its path, and no name is repeated."""
    for path in NOWHERE:
        answer = send(service.url, request(f"GET {path} HTTP/1.1", "Connection: close"))
        assert (path, answer.status, answer.body) == (path, 404, b"Not Found")


def test_a_method_that_is_not_allowed(service: Serving) -> None:
    """405 with the methods that are, for every path; reading never has another method than GET."""
    methods = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
    paths = ("/", "/metrics", "/databases/orders", "/api/v1/databases", "/assets/page.css")
    for method, path in itertools.product(methods, paths):
        answer = send(service.url, request(f"{method} {path} HTTP/1.1", "Connection: close"))
        assert (answer.status, answer.body) == (405, b"Method Not Allowed")
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    answer = send(service.url, request("GET /-/reload HTTP/1.1", "Connection: close"))
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_another_host(serve: Serve, orders: TemporaryDatabase) -> None:
    """A foreign name gets 421 everywhere; a foreign address only for what probes ask."""
    service = serve("--allow-host", "pgmonkey.internal", "--allow-host", "10.9.9.9")
    paths = ("/", "/metrics", "/healthz", "/readyz", "/api/v1/databases")
    eventually(lambda: service.get("/readyz").status == 200, 20)
    found = {
        host: [service.get(path, Host=host).status for path in paths]
        for host in ("evil.example", "10.1.2.3", "10.9.9.9", "pgmonkey.internal", "[::1]:9749")
    }
    assert found == {
        "evil.example": [421] * 5,
        "10.1.2.3": [421, 200, 200, 200, 421],
        "10.9.9.9": [200, 200, 200, 200, 200],
        "pgmonkey.internal": [200, 200, 200, 200, 200],
        "[::1]:9749": [200, 200, 200, 200, 200],
    }


def reload(service: Serving, token: str | None, **headers: str) -> tuple[int, dict[str, object]]:
    """Ask for a reload."""
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    answer = service.get("/-/reload", "POST", **headers)
    return answer.status, answer.json


def test_a_reload_needs_the_token(
    serve: Serve, orders: TemporaryDatabase, token_file: Path
) -> None:
    """Without or with a wrong token 401, from a browser 403; an event says why, not the token."""
    service = serve("--reload-token-file", token_file, "--log-format", "json")
    wrong = "something-else-entirely"
    assert reload(service, None)[0] == 401
    assert service.get("/-/reload", "POST").headers["WWW-Authenticate"] == "Bearer"
    assert reload(service, wrong)[0] == 401
    assert service.get("/-/reload", "POST", Authorization=f"Basic {TOKEN}").status == 401
    assert reload(service, TOKEN, Origin="http://evil.example")[0] == 403
    assert reload(service, TOKEN, Origin=service.url)[0] == 403
    assert reload(service, TOKEN, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert reload(service, TOKEN) == (
        200,
        {"applied": [], "rejected": [], "unchanged": ["orders"], "removed": []},
    )
    # The token is rotated: the file is read again.
    token_file.write_text("the next token\n")
    assert reload(service, TOKEN)[0] == 401
    assert reload(service, "the next token")[0] == 200
    token_file.unlink()
    assert reload(service, "the next token")[0] == 403
    service.wait_for("http.denied")
    denied = [json.loads(line) for line in service.text.splitlines() if "http.denied" in line]
    assert denied[0]["why"] == "no_token"
    assert wrong not in service.text
    assert TOKEN not in service.text


def test_a_reload_while_it_is_disabled(service: Serving) -> None:
    """Without a token file every reload over HTTP gets 403, and a hint how to allow it."""
    assert reload(service, TOKEN) == (
        403,
        {
            "error": "reload over HTTP is disabled",
            "hint": "serve --reload-token-file FILE allows it",
        },
    )


def test_a_reload_with_a_bad_file(
    serve: Serve, registry_dir: RegistryDirectory, orders: TemporaryDatabase, token_file: Path
) -> None:
    """200 with the databases that were applied and rejected, and the place of each problem."""
    service = serve("--reload-token-file", token_file)
    assert service.get("/healthz").status == 200
    registry_dir.write("bad", "connection_settings:\n  hots: x\n  dbname: y\n  user: z\n")
    status, body = reload(service, TOKEN)
    assert status == 200
    problems = body["rejected"]
    assert isinstance(problems, list)
    found = {(one["database"], one["code"], one["line"]) for one in problems}
    assert ("bad", "config.unknown_key", 2) in found
    assert all(one["path"] == str(registry_dir.file("bad")) for one in problems)


BODIES = {
    "1 MB": (["Content-Length: 1048576"], b"x" * 100_000, 413),
    "chunked": (["Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n", 411),
    "-1": (["Content-Length: -1"], b"", 400),
    "abc": (["Content-Length: abc"], b"", 400),
    "both": (["Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n", 400),
    "two": (["Content-Length: 5", "Content-Length: 6"], b"hello", 400),
}


def test_a_body_that_is_wrong(service: Serving) -> None:
    """Bodies are bounded and say how long they are; after anything else the connection ends."""
    for what, (headers, body, status) in BODIES.items():
        answer = send(service.url, request("POST /-/reload HTTP/1.1", *headers) + body)
        assert (what, answer.status, answer.headers["connection"]) == (what, status, "close")


HEADS = {
    "a header of 20 KB": (request("GET /healthz HTTP/1.1", "X-Long: " + "x" * 20_000), 431),
    "500 headers": (request("GET /healthz HTTP/1.1", *(f"X-{n}: y" for n in range(500))), 431),
    "a path of 5 KB": (request(f"GET /{'x' * 5000} HTTP/1.1"), 414),
    "a query of 5 KB": (request(f"GET /healthz?{'x' * 5000} HTTP/1.1"), 414),
    "control in a header": (request("GET /healthz HTTP/1.1", "X-Bell: \x07\x00"), 400),
    "control in the path": (request("GET /heal\x01thz HTTP/1.1"), 400),
    "nonsense": (b"\r\n\r\n\x00\xff nonsense\r\n\r\n", 400),
    "no Host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (request("GET /healthz HTTP/1.1", "Host: localhost"), 400),
}


def test_a_head_that_is_wrong(service: Serving) -> None:
    """Heads are bounded, with one Host and no control characters; after anything else the end."""
    for what, (data, status) in HEADS.items():
        answer = send(service.url, data)
        assert (what, answer.status, answer.headers["connection"]) == (what, status, "close")


def test_a_head_that_never_ends(service: Serving) -> None:
    """A head beyond its limit is refused though it is not complete: nothing is kept of it."""
    with connect(service.url) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nX-Long: " + b"x" * 20_000)
        assert read(client).status == 431


@pytest.mark.slow
def test_slow_and_idle_clients_are_ended(service: Serving) -> None:
    """Who sends a byte at a time, nothing, or no second request is ended after 5 s, not later."""
    began = time.monotonic()
    with connect(service.url) as slow, connect(service.url) as silent, connect(service.url) as kept:
        kept.sendall(request("GET /healthz HTTP/1.1"))
        assert kept.recv(65536).startswith(b"HTTP/1.1 200")
        slow.setblocking(False)
        head = iter(request("GET /healthz HTTP/1.1", "X-Slow: " + "x" * 100))

        def ended() -> bool:
            try:
                slow.send(bytes([next(head)]))
                return slow.recv(100) == b""
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True

        while not ended():
            assert time.monotonic() - began < 30
            time.sleep(0.2)  # its pace
        assert time.monotonic() - began > 4.5
        assert read(silent).status == 0
        assert read(kept).status == 0


@pytest.mark.timing
def test_hundreds_of_connections_do_not_keep_healthz_waiting(service: Serving) -> None:
    """With 400 idle and half-sent requests open, /healthz answers as fast as before, in 100 ms."""

    def healthz() -> float:
        began = time.monotonic()
        assert service.get("/healthz").status == 200
        return time.monotonic() - began

    alone = statistics.median(healthz() for _ in range(20))
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(service.url)) for _ in range(400)]
        for client in clients[::2]:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        crowded = statistics.median(healthz() for _ in range(20))
        assert crowded < max(0.1, 3 * alone)
        eventually(lambda: files(service) < 40, 20)


def test_scrapes_at_once_are_all_answered(service: Serving) -> None:
    """200 scrapes at once: each connects and gets its answer, and /healthz answers meanwhile."""
    assert service.get("/healthz").status == 200
    with ExitStack() as stack:
        service.process.send_signal(signal.SIGSTOP)  # so that all wait to be accepted
        try:
            clients = [stack.enter_context(connect(service.url, 3)) for _ in range(200)]
            for client in clients:
                client.sendall(request("GET /metrics HTTP/1.1", "Connection: close"))
                client.settimeout(30)
        finally:
            service.process.send_signal(signal.SIGCONT)
        assert service.get("/healthz").status == 200
        answers = [read(client) for client in clients]
    assert {answer.status for answer in answers} == {200}
    assert all(b"process_open_fds" in answer.body for answer in answers)


@pytest.mark.slow
def test_clients_that_send_a_byte_of_body_after_their_answer(service: Serving) -> None:
    """64 of them are ended within 20 s, and others get answers meanwhile."""
    assert service.get("/healthz").status == 200
    before = files(service)
    with ExitStack() as stack:
        for _ in range(64):
            client = stack.enter_context(connect(service.url))
            client.sendall(request("POST /metrics HTTP/1.1", "Content-Length: 60000"))
            assert client.recv(65536).startswith(b"HTTP/1.1 405")
            with suppress(OSError):
                client.sendall(b"x")
        assert service.get("/healthz").status == 200
        eventually(lambda: files(service) <= before + 3, 20)


def test_http2_is_answered_and_refused_alike(serve: Serve, orders: TemporaryDatabase) -> None:
    """The limits of requests hold for HTTP/2; a client that goes on after its end logs nothing."""
    service = serve()
    with httpx.Client(http1=False, http2=True, base_url=service.url) as client:
        answer = client.get("/healthz")
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
        assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 421
        assert client.post("/-/reload", content=b"x" * 40_000).status_code == 403
        with suppress(httpx.TransportError):  # the answer comes before the body's end
            assert client.post("/-/reload", content=b"x" * 900_000).status_code == 413
    assert service.get("/healthz").status == 200
    assert "rror" not in service.text


@pytest.mark.slow
def test_connections_are_bounded(service: Serving) -> None:
    """Of 1,200 silent clients 1,024 are kept, for 5 s; the others are closed at once."""
    assert service.get("/healthz").status == 200
    before = files(service)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    try:
        with ExitStack() as stack:
            for _ in range(1200):
                stack.enter_context(connect(service.url))
            assert files(service) < 1080
            eventually(lambda: answers(service), 20)
        # The next test's clients must not be among those that are too many.
        eventually(lambda: files(service) <= before + 3, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answers(service: Serving) -> bool:
    """Whether /healthz answers."""
    try:
        return service.get("/healthz").status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_more_clients_than_the_process_may_have_files(
    serve: Serve, orders: TemporaryDatabase
) -> None:
    """With no descriptor left, silent clients are ended, and then others get their answers."""
    service = serve()
    assert service.get("/healthz").status == 200
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (100, 100))
    with ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(connect(service.url))
        with connect(service.url, 30) as client:
            client.sendall(request("GET /healthz HTTP/1.1", "Connection: close"))
            assert read(client).status == 200


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Authority, Path, Path]:
    """An authority, and a certificate for 127.0.0.1 with its key."""
    authority = Authority("pgmonkey tests")
    return authority, *authority.issue("127.0.0.1", tmp_path)


def over_tls(service: Serving, authority: Authority) -> tuple[int, str]:
    """Ask /healthz over TLS; return the status and the certificate's serial number."""
    parts = urlsplit(service.url)
    context = ssl.create_default_context(cadata=authority.pem)
    connection = http.client.HTTPSConnection(
        str(parts.hostname), parts.port, context=context, timeout=10
    )
    try:
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)
        serial = str((connection.sock.getpeercert() or {})["serialNumber"])
        connection.request("GET", "/healthz")
        return connection.getresponse().status, serial
    finally:
        connection.close()


def test_the_wrong_protocol(
    serve: Serve, orders: TemporaryDatabase, certificate: tuple[Authority, Path, Path]
) -> None:
    """TLS on a plain port and HTTP on a TLS port are ended, and log no error."""
    plain = serve()
    with connect(plain.url) as client:
        context = ssl.create_default_context()
        with pytest.raises((ssl.SSLError, OSError)):
            context.wrap_socket(client, server_hostname="localhost").close()
    assert plain.get("/healthz").status == 200

    authority, crt, key = certificate
    encrypted = serve("--tls-cert", crt, "--tls-key", key)
    assert send(encrypted.url, request("GET /healthz HTTP/1.1")).status == 0
    assert over_tls(encrypted, authority)[0] == 200
    for service in (plain, encrypted):
        assert "error" not in service.text.lower().replace("last_error", "")


def test_a_new_certificate_is_taken_up(
    serve: Serve,
    orders: TemporaryDatabase,
    certificate: tuple[Authority, Path, Path],
    tmp_path: Path,
) -> None:
    """A renewed certificate is used without a restart; one without its key is not."""
    authority, crt, key = certificate
    service = serve("--tls-cert", crt, "--tls-key", key)
    assert service.url.startswith("https://")
    status, serial = over_tls(service, authority)
    assert status == 200
    good = crt.read_bytes(), key.read_bytes()
    crt.write_text("no certificate")
    service.wait_for("the one before stays in use", 30)
    assert over_tls(service, authority) == (200, serial)
    crt.write_bytes(good[0])
    authority.issue("127.0.0.1", tmp_path)
    eventually(lambda: over_tls(service, authority)[1] != serial, 30)


def test_a_scrape_while_every_database_hangs(
    serve: Serve, registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """With every probe stuck in a silent network, scrapes and the page are answered at once."""
    for number in range(6):
        registry_dir.declare(f"d{number}", database, connection={"port": proxy.port})
    proxy.set("blackhole")
    service = serve()
    eventually(lambda: proxy.connections >= 4, 15)
    took = []
    for path in ("/metrics", "/", "/api/v1/databases", "/metrics", "/databases/d0", "/metrics"):
        began = time.monotonic()
        assert service.get(path).status == 200
        took.append(time.monotonic() - began)
    assert min(took) < 0.2
    assert max(took) < 5  # a connect takes twice as long to fail


def test_the_admin_part_elsewhere(
    serve: Serve, orders: TemporaryDatabase, token_file: Path
) -> None:
    """With --admin-listen probes and admin each have their own address, and nothing of the other."""
    service = serve("--admin-listen", "127.0.0.1:0", "--reload-token-file", token_file)
    page = service.wait_for(r"status page on (http://[^\s\"]+)").group(1)
    admin = ("/", "/databases/orders", "/api/v1/databases", "/api/v1/events", "/assets/page.css")
    probes = ("/metrics", "/healthz")

    def status(url: str, path: str, method: str = "GET", *headers: str) -> int:
        return send(url, request(f"{method} {path} HTTP/1.1", "Connection: close", *headers)).status

    assert [status(service.url, path) for path in (*admin, *probes)] == [404] * 5 + [200] * 2
    assert [status(page, path) for path in (*admin, *probes)] == [200] * 5 + [404] * 2
    token = f"Authorization: Bearer {TOKEN}"
    assert status(service.url, "/-/reload", "POST", token) == 404
    assert status(page, "/-/reload", "POST", token) == 200


def test_an_unencrypted_token_is_warned_of(
    serve: Serve, orders: TemporaryDatabase, token_file: Path
) -> None:
    """Reloads that others on the network can ask for, and listen to, are worth a warning."""
    open_one = serve("--listen", "0.0.0.0:0", "--reload-token-file", token_file)
    open_one.wait_for("cross the network")
    private = serve(
        "--listen", "0.0.0.0:0", "--admin-listen", "127.0.0.1:0", "--reload-token-file", token_file
    )
    assert private.get("/healthz").status == 200
    assert "cross the network" not in private.text


@pytest.mark.parametrize("what", ["token", "cert", "pair"])
def test_files_that_cannot_be_used_are_said_at_once(
    what: str, registry_dir: RegistryDirectory, orders: TemporaryDatabase, canary: Canary,
    certificate: tuple[Authority, Path, Path], tmp_path: Path,
) -> None:  # fmt: skip
    """A token file or a certificate that is no good ends the start with a line that names it."""
    from tests.kit.command import run

    _, crt, key = certificate
    empty = tmp_path / "empty"
    empty.write_text("\n")
    options = {
        "token": ["--reload-token-file", empty],
        "cert": ["--tls-cert", tmp_path / "nowhere.crt", "--tls-key", key],
        "pair": ["--tls-cert", crt, "--tls-key", empty],
    }[what]
    done = run("serve", registry_dir, "--listen", "127.0.0.1:0", *options, canary=canary)
    assert done.code == 1
    assert done.out == ""
    expected = {
        "token": f"the token file {empty} is empty\n",
        "cert": f"{tmp_path / 'nowhere.crt'}: No such file or directory\n",
        "pair": f"{crt} and {empty} are not a certificate and its private key, in PEM form and not"
        " encrypted\n",
    }[what]
    assert done.err == expected


def test_a_certificate_needs_its_key(
    registry_dir: RegistryDirectory, orders: TemporaryDatabase, canary: Canary
) -> None:
    """One of the two options alone is wrong usage."""
    from tests.kit.command import run

    done = run("serve", registry_dir, "--tls-cert", "x.crt", canary=canary)
    assert done.code == 2
    assert "one needs the other" in done.err


def test_a_socket_that_is_closed_at_once(service: Serving) -> None:
    """Connections that end before they begin leave nothing behind and nothing in the log."""
    assert service.get("/healthz").status == 200
    before = files(service)
    for _ in range(100):
        with connect(service.url) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    eventually(lambda: files(service) <= before + 2, 20)
    assert service.get("/healthz").status == 200
    assert "Traceback" not in service.text
