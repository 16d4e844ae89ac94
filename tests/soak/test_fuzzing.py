"""Fuzzing: whatever a file holds, loading it gives a config or problems, soon and in little memory."""

from __future__ import annotations

import os
import random
import resource
import time
from pathlib import Path
from typing import Final

import pytest

from pgmonkey.config.interpolation import LoadOptions
from pgmonkey.config.loader import load_bytes

SECONDS: Final = float(os.environ.get("SOAK_FUZZ_SECONDS", "2"))
LARGEST: Final = 256 * 1024  # bytes
#: Seconds of processor time. A busy machine makes even that longer: without being asked for the
#: soak, only what is far off fails.
SLOWEST: Final = 0.05 if "SOAK_FUZZ_SECONDS" in os.environ else 0.5
MEMORY: Final = 50 * 1024  # KiB

_ROOT: Final = Path(__file__).parents[2]
_HEAD: Final = b"connection_settings: {host: db, dbname: orders, user: app}\n"
_PIECES: Final = (
    b"connection_settings:\n", b"pool_settings: {", b"  password: ", b"${A:-", b"}", b"$${", b"&a ",
    b"*a", b"<<: *a\n", b"- ", b": ", b"\n", b"\t", b"'", b'"', b"[", b"]", b"{", b"|\n", b">-\n",
    b"? ", b"!!binary ", b"\0", b"\xff", b"\xef\xbb\xbf", b"---\n", b"...\n", b"%YAML 1.2\n", b"#",
    b"{from_file: .}", b"{from_env: A}", b"999999999999999999999", b"-c a=b\\ ", b"\\", b"://",
    b"\xe2\x80\xa8", b"\r\n", b"5m", b"1e999", b",,,,", b"sslmode: ", b"options: ", b"host: ",
)  # fmt: skip


def large() -> list[bytes]:
    """Files of the largest size, each heavy in its own way."""

    def full(piece: bytes, start: bytes = _HEAD, end: bytes = b"") -> bytes:
        return start + piece * ((LARGEST - len(start) - len(end)) // len(piece)) + end

    numbered = [b"  hosst%d: x\n" % number for number in range(1900)]
    return [
        full(b"a: b\n"), full(b"["), full(b"{a: "), full(b"- "), full(b"&a [*a, "), full(b"x"),
        full(b"${A:-", b"description: "), full(b"${", b"description: "), full(b"$", b"description: "),
        full(b"${A}", b"description: "), full(b"{", b"description: ${A:-", b"}"),
        full(b"\\ ", b"connection_settings: {options: '", b"'}\n"),
        full(b"-c a=b ", b"connection_settings: {options: '", b"'}\n"),
        full(b",", b"connection_settings: {port: '", b"'}\n"),
        full(b"1,", b"connection_settings: {port: '", b"'}\n"),
        full(b"h,", b"connection_settings: {host: '", b"'}\n"),
        full(b"9", b"timeout: "), full(b"9", b"pool_settings: {min_size: ", b", max_size: 1}\n"),
        full(b"k", _HEAD, b": v\n"), full(b"k", b"connection_settings: {", b": v}\n"),
        full(b"k", b"connection_type: "), full(b"://:@", b"description: "),
        full(b"password=' ", b"description: "), full(b"a.", b"sync_settings: {", b"a: b}\n"),
        full(b"\xc3\xa9"), full(b"\x01"), full(b"\n"), full(b"#\n"), full(b"'", b"description: '"),
        full(b'\\"', b'description: "'), full(b"? "), full(b"!t "), full(b"*a "), full(b": "),
        b"connection_settings:\n" + b"".join(numbered), b"".join(one[2:] for one in numbered),
        b"sync_settings:\n" + b"".join(b"  s t%d: x\n" % number for number in range(1900)),
        b"connection_settings:\n" + b"".join(b"  h%d: ${\n" % number for number in range(1900)),
        b"a: &a [" + b"x," * 900 + b"]\n" + b"b: &b [*a,*a]\n" * 9,
        b"a: &a {}\n" + b"".join(b"b%d: &b%d {<<: [*a, *a]}\n" % (n, n) for n in range(400)),
    ]  # fmt: skip


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return a file with a few things done to it."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        at = chance.randint(0, len(changed))
        match chance.randrange(6):
            case 0:
                changed[at:at] = chance.choice(_PIECES)
            case 1:
                changed[at:at] = chance.randbytes(chance.randint(1, 4))
            case 2:
                del changed[at : at + chance.randint(1, 30)]
            case 3:
                changed[at : at + 1] = b"%c" % chance.randrange(256)
            case 4:
                piece = changed[at : at + chance.randint(1, 60)]
                changed[at:at] = piece * chance.randint(1, 40)
            case _:
                changed[at:at] = chance.choice(_PIECES) * chance.randint(1, 300)
    return bytes(changed[:LARGEST])


def cost(content: bytes) -> float:
    """Load one file; return the processor time it took, in seconds."""
    options = LoadOptions(environ={"A": "value"})
    start = time.thread_time()
    outcome = load_bytes(content, name="fuzz", path="fuzz.yaml", options=options)
    elapsed = time.thread_time() - start
    assert (outcome.config is None) == bool(outcome.problems)
    return elapsed


def check(content: bytes) -> None:
    """Load one file, and again if it seemed slow: the first time may pay for an import."""
    elapsed = cost(content)
    if elapsed > SLOWEST:
        elapsed = min(cost(content) for _ in range(3))
    assert elapsed <= SLOWEST, f"{elapsed:.3f} s for {content[:80]!r} ({len(content)} bytes)"


def rss() -> int:
    """Return the most memory that the process has had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.timing
@pytest.mark.parametrize("number", range(len(large())))
def test_a_large_file_is_cheap(number: int) -> None:
    """Loading any 256 KiB takes at most 50 ms and 50 MB."""
    content = large()[number]
    cost(_HEAD)
    before = rss()
    check(content)
    assert rss() - before <= MEMORY


@pytest.mark.timing
@pytest.mark.timeout(0)
def test_mutated_files_are_configs_or_problems() -> None:
    """Random files never cause another exception, take too long or need too much memory."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown if it fails
    chance = random.Random(seed)
    good = [
        path.read_bytes() for path in (_ROOT / "pgmonkey" / "demo" / "registry.d").glob("*.yaml")
    ]
    bad = [path.read_bytes() for path in (_ROOT / "tests/configs").glob("*.bad.yaml")]
    seeds = good * 10 + bad
    cost(_HEAD)
    before = rss()
    until = time.monotonic() + SECONDS
    count = 0
    while time.monotonic() < until:
        count += 1
        match chance.randrange(10):
            case 0:
                content = chance.randbytes(chance.randint(0, 2000))
            case 1:
                content = b"".join(chance.choices(_PIECES, k=chance.randint(1, 400)))
            case _:
                content = mutated(chance.choice(seeds), chance)
        try:
            check(content)
        except BaseException:
            print(f"file {count}: {content!r}")
            raise
    assert count > 100
    assert rss() - before <= MEMORY
