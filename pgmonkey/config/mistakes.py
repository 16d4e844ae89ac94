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
_KEYS_OF_THEIR_OWN: Final = "write host, port, dbname, user and password as keys of their own"


def in_name(text: str) -> Mistake | None:
    """Return what is wrong with the name of a user."""
    # Most names are done here.
    if text.isprintable() and text[:1] != " " != text[-1:]:
        return None
    found = _at_an_end(text)
    return None if found is None else Mistake("config.white_space", found, "remove it")


def in_dbname(text: str) -> Mistake | None:
    """Return what is wrong with the name of a database."""
    if text.startswith(("postgresql://", "postgres://")):
        message = "expected the name of a database, got a URL (not shown)"
        return Mistake("config.url", message, _KEYS_OF_THEIR_OWN)
    return in_name(text)


def in_host(text: str) -> Mistake | None:
    """Return what is wrong with a host: a name, an address or the directory of a socket."""
    if _PLAIN_HOST.fullmatch(text):
        return None  # most hosts
    if "://" in text:
        hint = _KUBERNETES if text.startswith(_SERVICE_LINK) else _KEYS_OF_THEIR_OWN
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


def in_password(text: str) -> Mistake | None:
    """Return what is probably not meant to be a part of a password."""
    code = "warning.password"
    if _is_json(text):
        hint = "write the password alone, without the document around it"
        return Mistake(code, "is a JSON document", hint)
    if _TEMPLATE.fullmatch(text.strip()):
        hint = "it is used as it is: what should replace it did not run"
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
