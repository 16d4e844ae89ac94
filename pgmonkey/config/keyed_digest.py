"""A keyed digest: compares contents inside this process and says nothing about them outside."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Final

# With a key that nobody knows, a digest cannot be tried against a list of passwords.
_KEY: Final = secrets.token_bytes(32)


def keyed_digest(content: bytes, *, after: bytes = b"") -> bytes:
    """Return 16 bytes that are equal for equal contents, in this process only.

    Args:
        content: What is compared.
        after: Another digest that goes in first.
    """
    return hashlib.blake2b(after + b"|" + content, key=_KEY, digest_size=16).digest()


def files_digest(contents: Mapping[str, bytes]) -> bytes:
    """Return a keyed digest of several contents with their names; empty for none."""
    if not contents:
        return b""
    return keyed_digest(
        b"".join(
            f"{name}\0{len(content)}\0".encode() + content
            for name, content in sorted(contents.items())
        )
    )
