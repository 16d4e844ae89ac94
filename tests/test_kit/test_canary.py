from __future__ import annotations

import base64
import hashlib
import html
import json
import logging
import urllib.parse
import warnings

import pytest
import structlog

from tests.kit import Canary

HOSTILE = Canary("core0123456789abcdef")
SECRET = HOSTILE.secret(hostile=True)
DISGUISES = {
    "plain": f"password={SECRET}!",
    "repr": repr(SECRET),
    "json": json.dumps({"password": SECRET}),
    "url": urllib.parse.quote(SECRET, safe=""),
    "html": html.escape(SECRET),
    "reversed": SECRET[::-1],
    "hex": SECRET.encode().hex(),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "base64 of a longer text": base64.b64encode(f"user:{SECRET}".encode()).decode(),
    "base64 one byte further": base64.b64encode(f"users:{SECRET}".encode()).decode(),
    "md5": hashlib.md5(SECRET.encode()).hexdigest(),
    "sha256": hashlib.sha256(SECRET.encode()).hexdigest(),
    "base64 of a sha1": base64.b64encode(hashlib.sha1(SECRET.encode()).digest()).decode(),
    "a blake2b among other digits": f"00ff{hashlib.blake2b(SECRET.encode()).hexdigest()}00ff",
    "short sha256": hashlib.sha256(SECRET.encode()).hexdigest()[:12],
}


@pytest.mark.parametrize("text", DISGUISES.values(), ids=DISGUISES.keys())
def test_finds_a_secret_in_its_usual_disguises(text):
    """A secret is found in each of these encodings, and the message does not show it."""
    with pytest.raises(AssertionError, match="a secret leaked into the page") as caught:
        HOSTILE.check(text, "the page")
    assert HOSTILE.core not in str(caught.value)


def test_finds_nothing_in_other_text():
    """Masked and unrelated text passes."""
    HOSTILE.check("password: ***REDACTED***")
    HOSTILE.check(hashlib.sha256(b"something else").hexdigest())


LEAKY = '''
import logging, sys, warnings
import prometheus_client, pytest, structlog

class Failure(Exception):
    pass

def test_stdout(canary):
    """d"""
    print("x", canary.secret())

def test_stderr(canary):
    """d"""
    sys.stderr.write(canary.secret()[::-1])

def test_capsys(canary, capsys):
    """d"""
    print(canary.secret())
    capsys.readouterr()

def test_log(canary):
    """d"""
    logging.getLogger("psycopg.pool").debug("connecting %s", {"password": canary.secret()})

def test_log_exception(canary):
    """d"""
    try:
        raise Failure(canary.secret())
    except Failure:
        logging.getLogger("any").exception("it failed")

def test_event(events, canary):
    """d"""
    structlog.get_logger().info("config.applied", password=canary.secret())

def test_metric(canary):
    """d"""
    prometheus_client.Gauge("leak", "d", ["label"]).labels(canary.secret()).set(1)

@pytest.mark.filterwarnings("default")
def test_warning(canary):
    """d"""
    warnings.warn(canary.secret())

def test_cause(canary):
    """d"""
    with pytest.raises(Failure):
        try:
            raise ValueError(canary.secret())
        except ValueError:
            raise Failure("clean") from None

def test_local_variable(canary):
    """d"""
    from pgmonkey.demo.server import EmbeddedServer, EmbeddedServerError
    with pytest.raises(EmbeddedServerError, match="not started"):
        EmbeddedServer().create_role("orders", canary.secret())

def test_passed_clean(canary):
    """d"""
    assert canary.secret()
'''


def test_every_sink_is_watched(pytester, kit):
    """A secret in any sink fails the test that put it there, and the report does not show it."""
    kit()
    pytester.makepyfile(LEAKY)

    result = pytester.runpytest_subprocess("-p", "no:randomly", "-rA")

    leaks = [line for line in LEAKY.splitlines() if line.startswith("def test_")]
    # Metrics live for the whole process: from the leaking test on, each test sees them.
    assert result.parseoutcomes()["errors"] >= len(leaks) - 1
    for sink in (
        "captured stdout call",
        "captured stderr call",
        "captured output",
        "the log (psycopg.pool)",
        "the log (any)",
        "an event",
        "the default Prometheus registry",
        "an expected exception (ValueError)",
        "local 'password' of server.py:create_role",
    ):
        result.stdout.fnmatch_lines(f"*{sink.replace('[', '[[]')}*")


def test_a_clean_test_passes(canary, capsys, events):
    """Output, logs, events, warnings and exceptions without a secret are no finding."""
    print("password ***REDACTED***")
    capsys.readouterr()
    logging.getLogger("psycopg").debug("connected")
    structlog.get_logger().info("config.applied", keys=["connection_settings.password"])
    with pytest.warns(UserWarning, match="clean"):
        warnings.warn("clean", stacklevel=1)
    assert events.names == ["config.applied"]
    assert canary.find("clean") is None
