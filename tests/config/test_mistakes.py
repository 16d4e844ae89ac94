"""Values that cannot work, and passwords that are probably not meant: by their look alone."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmonkey.config.mistakes import in_dbname, in_host, in_name, in_password, in_port

HIDDEN = st.sampled_from(
    [*" \t\n\r\x00\x07\x1b\x7f\x85\xa0", "\u2003", "\u2028", "\u200b", "\ufeff"]
)
WORDS = st.text("aBz09._~!#%&*+?^-", min_size=1, max_size=12)
IPV6 = st.integers(0, 2**128 - 1).map(IPv6Address).map(str)
IPV4 = st.integers(0, 2**32 - 1).map(IPv4Address).map(str)


@pytest.mark.parametrize(
    "host",
    [
        "", "localhost", "db.example", "db_1.example", "größe.example", "192.0.2.10", "::1", "::",
        "2001:db8::1", "fe80::1%eth0", "::ffff:192.0.2.10", "/run/postgresql", "/run/a b:[c]", "@pg:x",
        "${HOST:-db}:5432",
    ],
)  # fmt: skip
def test_hosts_that_can_work_are_accepted(host):
    """Names, addresses, directories of sockets, and references that are not resolved."""
    assert in_host(host) is None


@pytest.mark.parametrize(
    "host, code",
    [
        ("127.0.0.1:5432", "config.host"),
        ("db.example:5432", "config.host"),
        ("db:", "config.host"),
        (":5432", "config.host"),
        ("[::1]", "config.host"),
        ("[::1]:5432", "config.host"),
        ("[fe80::1%eth0]", "config.host"),
        ("::1::2", "config.host"),
        ("a:b:c", "config.host"),
        ("tcp://10.1.2.3:5432", "config.url"),
        ("postgresql://db", "config.url"),
        ("db example", "config.white_space"),
        ("db\u200b.example", "config.white_space"),
        ("db\x1b[0m", "config.white_space"),
        (" /run/postgresql", "config.white_space"),
        ("/run/postgresql\n", "config.white_space"),
    ],
)
def test_hosts_that_cannot_work_are_refused(host, code):
    """A port in it, brackets, a URL, white space."""
    assert in_host(host).code == code


@given(address=IPV6, port=st.integers(0, 65535))
def test_an_ipv6_address_is_a_host_without_brackets(address, port):
    """Every address is accepted; with brackets, which a port needs, it is not."""
    assert in_host(address) is in_host(f"{address}%eth0") is None
    assert in_host(f"[{address}]").code == in_host(f"[{address}]:{port}").code == "config.host"


@given(host=WORDS | IPV4, port=st.integers(0, 65535))
def test_a_name_is_a_host_without_a_port(host, port):
    """Whatever the name is, a port beside it is refused."""
    assert in_host(host) is None
    assert in_host(f"{host}:{port}").code == "config.host"


@given(name=WORDS, hidden=HIDDEN, inside=st.text(max_size=5))
def test_what_does_not_show_is_refused_at_either_end(name, hidden, inside):
    """In a host, a port, a user and a database."""
    for text in (f"{hidden}{inside}{name}", f"{name}{inside}{hidden}"):
        for look in (in_name, in_dbname, in_port, in_host):
            if "://" not in text:
                assert look(text).code == "config.white_space"


@given(name=WORDS, inside=st.text(" \t\u00e9\u4e2d'\":/[]", max_size=6))
def test_names_may_have_anything_inside(name, inside):
    """PostgreSQL allows blanks and every letter inside the name of a role or a database."""
    assert in_name(f"{name}{inside}{name}") is None


@pytest.mark.parametrize("port", ["tcp://10.1.2.3:5432", "udp://10.1.2.3:53"])
def test_a_service_link_is_explained(port):
    """Kubernetes sets `ORDERS_PORT` to such a URL for a service called `orders`."""
    mistake = in_port(port)
    assert mistake.code == "config.url"
    assert "enableServiceLinks: false" in mistake.hint
    assert "Kubernetes" not in in_port("http://db").hint


@pytest.mark.parametrize(
    "password, message",
    [
        ("tea\n", "ends with a line break"),
        ("\r\ntea", "starts with a line break"),
        ("tea ", "ends with white space"),
        ("\ufefftea", "starts with a control character"),
        ("'tea'", "starts and ends with a quote"),
        ("\u201ctea", "starts with a quote"),
        ("tea`", "ends with a quote"),
        ("<%= ENV['TEA'] %>", "has the marks of a template"),
        ("{{ .Data.data.tea }}\n", "has the marks of a template"),
        ("{{tea", "has the marks of a template"),
        ("{% tea %}", "has the marks of a template"),
        ("${TEA}", "has the marks of a template"),
        ("$(TEA)", "has the marks of a template"),
        ('{"password": "tea"}', "is a JSON document"),
        (' ["tea"]\n', "is a JSON document"),
        ("{}", "is a JSON document"),
    ],
)
def test_a_password_that_is_probably_not_meant_is_noticed(password, message):
    """White space, line breaks, quotes and the marks of templates at its ends."""
    assert in_password(password).message == message


@pytest.mark.parametrize(
    "password", ["", "tea", "a b", "it's", "{tea}", "[1", "${", "$tea", "50%", "<tea>", "$(a", "}{"]
)
def test_other_passwords_are_not_noticed(password):
    """Quotes and blanks inside, and single marks, are usual."""
    assert in_password(password) is None


@given(text=st.text())
def test_any_password_can_be_looked_at(text):
    """No text makes the look fail, and what it says quotes none of it."""
    mistake = in_password(text)
    if mistake is not None and len(text) > 40:
        assert text not in f"{mistake.message} {mistake.hint}"


def test_a_deep_document_is_looked_at():
    """A text that would exceed the recursion limit of a parser is no document."""
    assert in_password("[" * 50_000 + "]" * 50_000) is None
    assert in_password(json.dumps({"a": [{"b": 1}]})).message == "is a JSON document"
