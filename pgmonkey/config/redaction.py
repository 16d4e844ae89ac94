"""Secrets: the type that holds one, the keys of secrets, and how text is masked."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Final, NoReturn, Self
from urllib.parse import quote, quote_plus

MASK: Final = "***REDACTED***"

# Names of keys, without what is between their words.
_EXACT: Final = frozenset(
    {"sslkey", "sslcert", "sslrootcert", "scramclientkey", "scramserverkey", "url"}
)
_PARTS: Final = (
    *("token", "secret", "credential", "apikey", "privatekey"),
    *("password", "passwd", "passphrase", "passcode"),
)
# `password` with letters left out, and words that end in one of its short forms, as `dbpass`.
_SHORTENED: Final = re.compile(
    r"p(?=[a-z]*(?:ss|w))a?s{0,3}w?o?r?d?|[a-z]*(?:(?<!by)(?<!com)pass|pwd|pw)"
)
#: Keys that hold no secret, and whose values people need: the path of libpq's password file, and
#: the name of the method with which a server encrypts passwords.
_HARMLESS: Final = frozenset({"passfile", "password_encryption"})
_WORDS: Final = re.compile(r"[A-Z]*[a-z]+|[A-Z]+")
#: The keys of a reference, which says where a secret is, and not what.
_REFERENCES: Final = frozenset(
    frozenset(keys) for keys in (("from_env",), ("from_file",), ("from_file", "json_key"))
)
#: A secret of fewer characters is masked only where it is a whole word.
SHORT: Final = 4

# The password of `scheme://user:password@host`. It may hold an "@" itself, so the match is greedy
# up to the last one before the path; a "/", "?" or "#" inside is caught when no "@" follows without.
_URL_PASSWORD: Final = re.compile(r"(?<=://)([^\s:/@?#]*):([^\s/?#]+|[^\s?#]+|[^\s@]+)@")
_URL_PARAMETER: Final = re.compile(r"(?<=[?&])([\w.\-]++)(=)[^&\s#]+")
# Connection strings, and `-c name=value` in `options`. Possessive: a name is read once.
_ASSIGNMENT: Final = re.compile(
    r"(?<![\w.\-])([\w.\-]++)(\s*+=\s*+)(?:'(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)+)"
)
# Where a sentence ends without a full stop, as in the messages of libpq.
_BREAK: Final = r"(?<=[^\s.:;,?!])[ \t\r]*\n[ \t]*(?=[A-Z])"
# C0, DEL, C1, and the separators and direction marks that rearrange a line of a log.
_CONTROL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


class Secret:
    """Hold one sensitive text, and never show it.

    It prints as a mask and cannot be hashed, iterated or pickled. A comparison takes the same
    time wherever the difference is. A copy is the object itself.

    Example:
        >>> print(Secret("tea"), Secret("tea").reveal())
        ***REDACTED*** tea
    """

    __slots__ = ("_reveal",)

    # A hash of a secret would be a hint at it.
    __hash__: ClassVar[None]  # type: ignore[assignment]  # a secret has no hash, on purpose

    def __init__(self, value: str) -> None:
        # In a closure, so that a dump of attributes shows a function.
        self._reveal: Callable[[], str] = lambda: value

    def reveal(self) -> str:
        """Return the text, for the one place that needs it."""
        return self._reveal()

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return MASK

    def __structlog__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:  # and with it goes the hash
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(
            self._reveal().encode("utf-8", "surrogatepass"),
            other._reveal().encode("utf-8", "surrogatepass"),
        )

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled")

    __reduce__ = __reduce_ex__  # type: ignore[assignment]  # it refuses, whatever it is given
    __getstate__ = __reduce_ex__  # type: ignore[assignment]  # it refuses, whatever it is given


@lru_cache(maxsize=4096)
def is_sensitive(key: str) -> bool:
    """Tell whether values under this key are secret.

    Upper and lower case are the same, and so are `-` and `_`. A short or misspelt `password` is
    sensitive like the right one. A dotted path is no key.

    Example:
        >>> is_sensitive("password"), is_sensitive("AWS_SECRET_KEY"), is_sensitive("host")
        (True, True, False)
        >>> is_sensitive("pasword"), is_sensitive("db_pass"), is_sensitive("passfile")
        (True, True, False)
    """
    if key.lower() in _HARMLESS:
        return False
    words = [word.lower() for word in _WORDS.findall(key)]
    joined = "".join(words)
    return (
        joined in _EXACT
        or any(part in joined for part in _PARTS)
        or any(_SHORTENED.fullmatch(word) or _is_misspelt(word) for word in (*words, joined))
    )


def _is_misspelt(word: str) -> bool:
    """Tell whether the end of a word becomes `password` by at most two changes of a letter."""
    right = "password"
    if len(set(right) & set(word)) < 5:  # two changes leave five of its seven letters
        return False
    row = list(
        range(len(right) + 1)
    )  # how far the word, as far as it is read, is from `p`, `pa`...
    for letter in word:
        before, row = row, [0]
        for at, wanted in enumerate(right):
            row.append(min(before[at] + (letter != wanted), before[at + 1] + 1, row[at] + 1))
    return row[-1] <= 2


# What is between the words of keys, numbers and paths; the braces of a reference.
_BETWEEN: Final = re.compile(r"\$\{(?=\w)|(?<=\w)\}|[\s_.,:;/+-]+")
_PLAIN_WORD: Final = re.compile(
    r"[^\W\d_]+"  # letters
    r"|\d{1,12}|\d{1,3}[A-Za-z]{1,7}|0[xob][0-9A-Fa-f]{1,8}"  # a number, also with a unit
    r"|[A-Z]{2,}\d{1,3}"  # a part of the name of a variable
)
_MIXED_WORD: Final = re.compile(r"\w{1,5}")
_HUMP: Final = re.compile(r"[A-Z]?[^\W\dA-Z_]+|[A-Z]+")
_LONGEST_PLAIN: Final = 63  # characters; PostgreSQL has no longer names


def may_be_secret(text: str) -> bool:
    """Tell whether a text that is in the wrong place looks like a secret.

    Words, numbers, numbers with units and what is made of these do not.

    Example:
        >>> may_be_secret("verify_full"), may_be_secret("30 sec"), may_be_secret("Tr0ub4dor&3")
        (False, False, True)
    """
    if len(text) > _LONGEST_PLAIN:
        return True
    words = [word for word in _BETWEEN.split(text) if word]
    mixed = [word for word in words if _PLAIN_WORD.fullmatch(word) is None]
    return (
        len(mixed) > 1
        or any(_MIXED_WORD.fullmatch(word) is None for word in mixed)
        or any(_changes_case(word) for word in words)
    )


def _changes_case(word: str) -> bool:
    """Tell whether a word has capitals more often than camelCase."""
    humps = len(_HUMP.findall(word))
    return humps > 1 and humps > len(word) / 3


def may_be_quoted(text: str, secrets: Iterable[str]) -> bool:
    """Tell whether a text of a file may be shown: it has no known secret, and looks like none."""
    return not may_be_secret(text) and not any(_holds(text, secret) for secret in secrets)


def _holds(text: str, secret: str) -> bool:
    """Tell whether a text holds a secret; a short one counts as a whole word only."""
    if len(secret) >= SHORT or secret not in text:
        return secret in text
    return secret != "" and re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text) is not None


def redact_config(config: Any) -> Any:
    """Return a copy of a configuration with every secret masked.

    Masks the values of sensitive keys at any depth, and passwords and sensitive parameters inside
    of URLs, connection strings and options. `None`, `""` and references (`from_env`, `from_file`)
    stay.

    Args:
        config: A mapping, a list or a single value; it is not changed.

    Example:
        >>> redact_config({"connection_settings": {"host": "db", "password": "tea"}})
        {'connection_settings': {'host': 'db', 'password': '***REDACTED***'}}
    """
    return _redact(config, sensitive=False, above=())


def _redact(value: Any, *, sensitive: bool, above: tuple[int, ...]) -> Any:
    if value is None or value == "":
        return value
    if isinstance(value, Secret) or (sensitive and not isinstance(value, Mapping)):
        return MASK
    if id(value) in above:
        return MASK  # it contains itself
    inside = (*above, id(value))
    if isinstance(value, Mapping):
        pointer = sensitive and frozenset(value) in _REFERENCES
        return {
            key: _redact(
                item,
                sensitive=not pointer and (sensitive or is_sensitive(str(key))),
                above=inside,
            )
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_redact(item, sensitive=False, above=inside) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return mask_urls(value) if isinstance(value, str) else value


def mask_urls(text: str) -> str:
    """Return the text with the secrets inside URLs, connection strings and options masked."""
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{MASK}@", text)
        text = _URL_PARAMETER.sub(_masked, text)
    elif "=" in text:
        text = _ASSIGNMENT.sub(_masked, text)
    return text


def _masked(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}{MASK}" if is_sensitive(match[1]) else match[0]


def scrub(text: str, secrets: Iterable[Secret]) -> str:
    """Return an error text of libpq or of the system in one line, without secrets.

    Masks the known secrets, also in their quoted forms, and the passwords inside URLs. A secret of
    fewer than 4 characters is masked only where it is a whole word: elsewhere the masks would give
    it away. Lines become sentences, and control characters become spaces.
    """
    values = sorted({secret.reveal() for secret in secrets} - {""}, key=len, reverse=True)
    for value in values:
        for form in sorted(set(_appearances(value)), key=len, reverse=True):
            if form not in text:
                continue
            if len(value) < SHORT:
                text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", MASK, text)
            else:
                text = text.replace(form, MASK)
    return _CONTROL.sub(" ", re.sub(_BREAK, ". ", mask_urls(text)))


def _appearances(value: str) -> Iterator[str]:
    """Yield the value as it is, and as Python, JSON, URLs and connection strings write it."""
    yield value
    yield repr(value)[1:-1]
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield value.replace("\\", "\\\\").replace("'", "\\'")
    encoded = value.encode("utf-8", "replace")
    yield quote(encoded, safe="")
    yield quote(encoded)
    yield quote_plus(encoded)


class RedactedDict(dict[str, Any]):
    """A dictionary whose secrets don't show when it is printed.

    The values are plain and usable, as in `psycopg.connect(**config["connection_settings"])`.

    Example:
        >>> settings = RedactedDict(user="app", password="tea")
        >>> print(settings, settings["password"])
        {'user': 'app', 'password': '***REDACTED***'} tea
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(redact_config(self))

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __structlog__(self) -> Any:
        return redact_config(self)

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        yield from redact_config(self).items()

    def copy(self) -> Self:
        """Return a shallow copy that prints in the same way."""
        return type(self)(self)

    def __or__(self, other: Any) -> Any:
        merged = super().__or__(other)
        return merged if merged is NotImplemented else type(self)(merged)
