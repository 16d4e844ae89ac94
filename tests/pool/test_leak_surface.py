"""What can be reached from a registry by attributes shows no secret, however it is dumped."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import pprint
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import asdict, is_dataclass

import psycopg
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgmonkey import Registry
from pgmonkey.config.legacy import load_config
from pgmonkey.config.loader import load_file
from pgmonkey.config.redaction import Secret
from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.errors import ConfigError, ConnectError
from tests.kit.command import invoke

# What a registry is made of: our objects, the pools', and plain containers. A connection of psycopg
# knows its password by design, and is the borrower's own.
_OURS = ("pgmonkey", "psycopg_pool")
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)


def parts(item):
    """Return what an object holds: its attributes, or the items of a container."""
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, _CONTAINERS):
        return list(item)
    names = [name for kind in type(item).__mro__ for name in getattr(kind, "__slots__", ())]
    found = list(getattr(item, "__dict__", {}).values())
    for name in names:
        with suppress(AttributeError):
            found.append(getattr(item, name))
    return found


def reachable(root):
    """Yield every object that can be reached from one by attributes and items."""
    seen = set()
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (str, bytes, int, float, type(None), psycopg.BaseConnection)):
            yield item
        elif isinstance(item, _CONTAINERS) or type(item).__module__.startswith(_OURS):
            yield item
            waiting += parts(item)


def dumps(item):
    """Yield an object as whatever a log, a debugger, a cache or a queue would make of it."""
    yield repr(item)
    yield str(item)
    yield f"{item!r:>1}" if isinstance(item, (str, bytes, int, float)) else ""
    yield repr(getattr(item, "__dict__", ""))
    if is_dataclass(item):
        with suppress(TypeError):  # a lock in it cannot be copied
            yield repr(asdict(item))
    plain = is_dataclass(item) or isinstance(item, (DatabaseConfig, Secret, Exception))
    for dump in (pickle.dumps, json.dumps, *((copy.copy, copy.deepcopy) if plain else ())):
        with suppress(Exception):  # most refuse, which is fine
            yield repr(dump(item))
    with suppress(TypeError, ValueError):
        yield json.dumps(item, default=vars)
        yield json.dumps(item, default=str)


def look(root, canary):
    """Search all that can be reached; return how many objects that were."""
    count = 0
    for count, item in enumerate(reachable(root), 1):  # noqa: B007 - the number is used after the loop
        if isinstance(item, psycopg.BaseConnection):
            canary.check(repr(item), "a connection")
            continue
        for text in dumps(item):
            canary.check(text, f"a dump of {type(item).__qualname__}")
    return count


@pytest.fixture
def declared(registry_dir, database, volume):
    """Four databases, one of each type, whose passwords come from files and from the text."""
    for name in ("normal", "pool", "async", "async_pool"):
        registry_dir.declare(
            name, database, name, volume=volume if "pool" in name else None,
            sync_settings={"app.api_token": database.password},
        )  # fmt: skip
    return registry_dir


def test_the_search_finds_what_is_there(declared, canary):
    """A password deep inside of an object of ours would be seen."""
    with Registry(declared, metrics=None, watch=False) as registry:
        with registry.get("pool"):
            (outage, *_) = [item for item in reachable(registry) if type(item).__name__ == "Outage"]
            outage.failure = [{"why": canary.secret()}]
            with pytest.raises(AssertionError, match="a secret leaked into a dump of"):
                look(registry, canary)
            outage.failure = None


def test_a_sync_registry_holds_no_secret_in_the_open(declared, canary):
    """Handles, pools, configs, status, reports: before, during and after use."""
    with Registry(declared, metrics=None, watch=False) as registry:
        before = look(registry, canary)
        with registry.get("pool") as one, registry.get("normal") as two:
            assert one.execute("SELECT 1").fetchone() == two.execute("SELECT 1").fetchone()
            used = look(registry, canary)
            assert used > before + 50
            pools = [item for item in reachable(registry) if "Pool" in type(item).__name__]
            assert any(type(pool).__module__.startswith("psycopg_pool") for pool in pools)
        declared.write("pool", {"connection_settings": {"pasword": canary.secret(hostile=True)}})
        look(registry.reload(), canary)
        look(registry.status(), canary)
        look(registry, canary)
    look(registry, canary)


async def test_an_async_registry_holds_no_secret_in_the_open(declared, canary):
    """The same for the async side."""
    async with Registry(declared, metrics=None, watch=False) as registry:
        async with registry.get("async_pool") as one, registry.get("async") as two:
            for conn in (one, two):
                await conn.execute("SELECT 1")
            look(registry, canary)
        look(registry.status(), canary)


def test_a_refused_login_leaves_no_secret_behind(declared, database, canary):
    """The error, its causes, the locals of its frames, and what the registry remembers of it."""
    declared.declare("normal", database, "normal", connection={"password": canary.secret()})
    with Registry(declared, metrics=None, watch=False) as registry:
        with pytest.raises(ConnectError) as caught:
            registry.get("normal").open()
        look(registry, canary)
        error = caught.value
        assert error.__cause__ is None
        look(vars(error), canary)
        canary.check(repr(pickle.loads(pickle.dumps(ValueError(str(error))))))
        detailed = traceback.TracebackException.from_exception(error, capture_locals=True)
        canary.check("".join(detailed.format()), "the traceback with locals")
    del caught, error
    gc.collect()


# Texts that mean something to YAML, URLs, shells, libpq, JSON; none is part of anything around it.
SECRETS = st.text(
    st.one_of(
        st.sampled_from(" '\"\\@:/%#&?=${}<>,;|!*-\n\t[]`~"),
        st.characters(exclude_categories=["Cs", "Cc"]),
    ),
    min_size=1,
    max_size=24,
).map(lambda text: f"Zq7{text}7qZ")

PLACES = st.sampled_from(
    [
        ("connection_settings", "password"),
        ("connection_settings", "sslpassword"),
        ("connection_settings", "pass_word_token"),  # no key of libpq, but one of a secret
        ("sync_settings", "app.secret"),
        ("async_settings", "my_api_key"),
        ("credentials", "deep"),  # no section at all
    ]
)
FAULTS = st.sampled_from(
    [
        {},
        {"port": "abc"},
        {"hosst": "x"},
        {"sslmode": "bogus"},
        {"dbname": ["list"]},
        {"user": None},
        # The same secret in the wrong place, or a second time.
        {"port": "${SHOW_SECRET}"},
        {"host": {"from_env": "SHOW_SECRET"}},
        {"host": ["db", {"from_file": "secret"}]},
        {"dbname": "x${SHOW_SECRET}"},
        {"application_name": "${SHOW_SECRET}"},
        {"sslkey": "-----BEGIN ${SHOW_SECRET}/x"},
    ]
)


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A directory for one file after the other; the variable that they may name ends with it."""
    yield tmp_path_factory.mktemp("generated")
    os.environ.pop("SHOW_SECRET", None)


@pytest.mark.timeout(180)  # 10 s; 150 files, which seven commands read each
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    secret=SECRETS,
    place=PLACES,
    fault=FAULTS,
    origin=st.sampled_from(["text", "from_env", "from_file", "variable", "cut"]),
)
def test_any_secret_in_any_place_stays_unseen(where, canary, secret, place, fault, origin):
    """Whatever it looks like, wherever it stands or comes from, whatever else is wrong."""
    section, key = place
    misplaced = "SHOW_SECRET" in repr(fault) or "from_file" in repr(fault)
    secret_file = where / "secret"
    secret_file.write_bytes(secret.encode() + b"\n")
    os.environ["SHOW_SECRET"] = secret
    value = {
        "text": secret.replace("${", "$${"),
        "from_env": {"from_env": "SHOW_SECRET"},
        "from_file": {"from_file": "secret"},
        "variable": "${SHOW_SECRET}",
        "cut": secret,  # as written: `${` in it is a malformed reference
    }[origin]
    document = {
        "connection_settings": {"host": "db", "dbname": "d", "user": "u", **fault},
        "sync_settings": {},
        "async_settings": {},
    }
    document.setdefault(section, {})[key] = value
    text = yaml.safe_dump(document, allow_unicode=True)
    if origin == "cut":
        text = text.replace("7qZ", "", 1)  # a quote is left open, perhaps
    path = where / "orders.yaml"
    path.write_text(text, encoding="utf-8")

    shown = []
    for command, formats in {
        ("check",): ("text", "json", "github"),
        ("list",): ("table", "json"),
        ("show", "orders", "--source"): ("table", "json"),
    }.items():
        for output in formats:
            done = invoke(
                *command, "--dir", where, "-o", output, canary=canary, env={"SHOW_SECRET": secret}
            )
            shown += [done.out, done.err]
    try:
        config = load_file(path)
    except ConfigError as error:
        shown += [str(error), repr(error), repr(error.__cause__), repr(error.__context__)]
        shown.append(repr(pickle.dumps(error)))
        ours = error.__traceback__.tb_next  # this frame itself knows the secret
        detailed = traceback.TracebackException(type(error), error, ours, capture_locals=True)
        shown.append("".join(detailed.format()))
    else:
        shown += [repr(config), pprint.pformat(config.redacted()), str(config.public_hash)]
        if not misplaced:  # what is no secret by its key is kept as it is
            shown += [repr(getattr(config, name)) for name in type(config).__slots__]
    if not misplaced:
        with suppress(Exception):
            shown.append(repr(load_config(path, resolve_env=True)))
    for one in shown:
        assert "Zq7" not in one
