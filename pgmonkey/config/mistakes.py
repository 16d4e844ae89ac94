"""Common mistakes in a value: what it starts or ends with, a port in a host, a bare template."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Final, NamedTuple


class Mistake(NamedTuple):
    """Say what is wrong with a value, and what to do. It quotes nothing of the value."""

    code: str
    message: str
    hint: str


_LINE_BREAKS: Final = frozenset("\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")
_QUOTES: Final = frozenset("\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb")
_TEMPLATE: Final = re.compile(
    r"(?:<%|\{\{|\{%).*|.*(?:%>|\}\}|%\})|\$\{.*\}|\$\(.*\)",  # of ERB, Jinja or Go, a shell
    re.DOTALL,
)
_PLAIN_HOST: Final = re.compile(r"[\w.-]+")
_MARKS: Final = re.compile(r"[:\[\]]")
_ONE_COLON: Final = re.compile(r"[^:]*:[^:]*")
_SERVICE_LINK: Final = ("tcp://", "udp://", "sctp://")
_KUBERNETES: Final = (
    "Kubernetes sets NAME_PORT to a URL for each service: use a variable of another name, or set "
    "enableServiceLinks: false in the pod"
)
_UNDER_URL: Final = "write a URL under the key url, or its parts under keys of their own"
_LIBPQ_SCHEMES: Final = ("postgresql://", "postgres://")
_DRIVER: Final = re.compile(r"postgres(?:ql)?\+[\w.-]+://", re.IGNORECASE)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NO_ENCODING: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_ENCODE: Final = (
    "in a part of it write %40 for @, %2F for /, %3A for :, %25 for % and %20 for a space"
)
_FORM: Final = "write postgresql://user:password@host:5432/dbname?parameter=value"
_OR_STRING: Final = "or host=... dbname=... user=... password='...'"
#: Parameters that other programs put into a URL, and what is written here.
_OF_OTHERS: Final = {
    "ssl": "as sslmode, such as sslmode=require",
    "schema": "without schema; write search_path under sync_settings and async_settings",
    "pgbouncer": "without pgbouncer; write pooler: pgbouncer at the top level of the file",
    "connection_limit": "without connection_limit; write max_size under pool_settings",
}


def in_name(text: str) -> Mistake | None:
    """Return what is wrong with the name of a user."""
    # Most names are done here.
    if text.isprintable() and text[:1] != " " != text[-1:]:
        return None
    found = _at_an_end(text)
    return None if found is None else Mistake("config.white_space", found, "remove it")


def in_dbname(text: str) -> Mistake | None:
    """Return what is wrong with the name of a database."""
    if text.startswith(_LIBPQ_SCHEMES):
        message = "expected the name of a database, got a URL (not shown)"
        return Mistake("config.url", message, _UNDER_URL)
    return in_name(text)


def in_host(text: str) -> Mistake | None:
    """Return what is wrong with a host: a name, an address or the directory of a socket."""
    if _PLAIN_HOST.fullmatch(text):
        return None  # most hosts
    if "://" in text:
        hint = _KUBERNETES if text.startswith(_SERVICE_LINK) else _UNDER_URL
        return Mistake("config.url", "expected a host name, got a URL (not shown)", hint)
    if text.startswith(("/", "@")):
        return in_name(text)
    if (mistake := in_name(text)) is not None:
        return mistake
    if any(map(_kind, text)):
        return Mistake("config.white_space", "a host has no white space inside", "remove it")
    if "${" in text or not _MARKS.search(text):
        return None
    if "[" in text or "]" in text:
        hint = "write ::1, and a port under the key port"
        return Mistake("config.host", "an IPv6 address is written without brackets", hint)
    if _ONE_COLON.fullmatch(text):
        return Mistake("config.host", "a host has no port in it", "write it under the key port")
    if not _is_ipv6(text):
        hint = "write a name, or an address such as 192.0.2.10 or ::1"
        return Mistake("config.host", "this is no IPv6 address, and a name has no colon", hint)
    return None


def in_port(text: str) -> Mistake | None:
    """Return what is wrong with a port, or a list of them, that is not a matter of its digits."""
    if "://" in text:
        hint = _KUBERNETES if text.startswith(_SERVICE_LINK) else "write the number alone"
        message = "expected an integer from 1 to 65535, got a URL (not shown)"
        return Mistake("config.url", message, hint)
    return in_name(text)


def in_url(text: str) -> Mistake | None:
    """Return what is wrong with a URI or connection string, as far as libpq would not say it."""
    code = "config.malformed_url"
    if not text:
        return Mistake(code, "is empty", f"{_FORM}, {_OR_STRING}")
    if text[0] in _QUOTES:
        hint = "remove the quotes: docker run --env-file, for one, keeps them"
        return Mistake(code, "starts with a quote", hint)
    if text[0] == "$":
        return Mistake(code, "starts with a $", "${NAME} with braces is a reference to a variable")
    if _DRIVER.match(text):
        message = "has a driver in its scheme, as SQLAlchemy writes it"
        return Mistake(code, message, "write postgresql:// without the + and the driver")
    if text.startswith("jdbc:"):
        return Mistake(code, "is a URL of JDBC", "remove jdbc: at its start")
    if not text.startswith(_LIBPQ_SCHEMES):
        if _SCHEME.match(text):
            return Mistake(code, "does not start with postgresql:// or postgres://", _FORM)
        return None
    rest = text.partition("://")[2]
    credentials, at, after = rest.partition("@")
    # libpq takes the host from behind the first `@`, the path from behind the first `/`: a piece of
    # a password with one of these inside would become the name of a host or a database.
    if "@" in after or (at and "/" in credentials):
        return Mistake(code, "has an @ in the wrong place, or a / before it", _ENCODE)
    if " " in rest or not rest.isprintable():
        return Mistake(code, "has white space or a control character inside", _ENCODE)
    if _NO_ENCODING.search(rest):
        return Mistake(code, "has a % that begins no percent-encoding", _ENCODE)
    return None


def in_parsed_url(text: str) -> Mistake:
    """Return what is wrong with a URI or connection string that libpq refuses."""
    code = "config.malformed_url"
    if not text.startswith(_LIBPQ_SCHEMES):
        message = "is neither a URI nor a connection string that libpq accepts"
        return Mistake(code, message, f"{_FORM}, {_OR_STRING}")
    _, at, after = text.partition("@")
    parameters = (after if at else text).partition("?")[2].split("&")
    for parameter in parameters:
        name = parameter.partition("=")[0]
        if name in _OF_OTHERS:
            message = "has a parameter that is not of libpq"
            return Mistake(code, message, f"write it {_OF_OTHERS[name]}")
    return Mistake(code, "is no URI that libpq accepts", f"{_FORM}; a parameter must be of libpq")


def in_password(text: str) -> Mistake | None:
    """Return what is probably not meant to be a part of a password."""
    code = "warning.password"
    if _is_json(text):
        hint = "name its member with json_key, or write the password alone"
        return Mistake(code, "is a JSON document", hint)
    if _TEMPLATE.fullmatch(text.strip()):
        hint = "it is used as written: no program has filled in the template"
        return Mistake(code, "has the marks of a template", hint)
    if found := _at_an_end(text):
        return Mistake(code, found, "remove it, unless it is a part of the password")
    ends = [text[:1] in _QUOTES, text[-1:] in _QUOTES]
    if text and any(ends):
        verbs = " and ".join(
            verb for verb, found in zip(("starts", "ends"), ends, strict=True) if found
        )
        hint = "remove the quotes, unless they are a part of the password"
        return Mistake(code, f"{verbs} with a quote", hint)
    return None


def _at_an_end(text: str) -> str | None:
    """Say which character that does not show a text starts or ends with."""
    for verb, character in (("starts", text[:1]), ("ends", text[-1:])):
        if kind := _kind(character):
            return f"{verb} with {kind}"
    return None


def _kind(character: str) -> str:
    """Return what a character is, if it does not show."""
    if character in _LINE_BREAKS:
        return "a line break"
    if character.isspace():
        return "white space"
    # Cf: what has no width, such as a byte order mark.
    hidden = character and unicodedata.category(character) in ("Cc", "Cf")
    return "a control character" if hidden else ""


def _is_ipv6(text: str) -> bool:
    from ipaddress import AddressValueError, IPv6Address  # most hosts have no colon

    try:
        IPv6Address(text.partition("%")[0])  # without the zone, as in fe80::1%eth0
    except AddressValueError:
        return False
    return True


def _is_json(text: str) -> bool:
    stripped = text.strip()
    if (stripped[:1], stripped[-1:]) not in (("{", "}"), ("[", "]")):
        return False
    try:
        json.loads(stripped)
    except (ValueError, RecursionError):
        return False
    return True
