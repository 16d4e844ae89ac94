"""What a file means otherwise than it did in pgmonkey 4.0: for `pgmonkey check --from-4.0`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from pgmonkey.config.models import KEYS, KWARGS
from pgmonkey.config.yaml_reader import parse
from pgmonkey.errors import Problem

if TYPE_CHECKING:
    from pgmonkey.config.settings import DatabaseConfig

_CODE: Final = "warning.upgrade"
_CONNECTION: Final = "connection_settings"
_SESSION: Final = ("sync_settings", "async_settings")
_POOLS: Final = ("pool_settings", "async_pool_settings")
#: What 4.0 read; it dropped everything else.
_KNOWN: Final = {
    *("user", "password", "host", "port", "dbname", "connect_timeout", "application_name"),
    *("sslmode", "sslcert", "sslkey", "sslrootcert"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "autocommit"),
}
_SECTIONS: Final = {"connection_type", _CONNECTION, *_SESSION, *_POOLS}


def find_changes(config: DatabaseConfig) -> Iterator[Problem]:
    """Yield a warning for each part of a good file that meant something else in 4.0.

    Reads and parses the file again. No value is in a warning: it may be the password.
    """
    content = Path(config.path).read_bytes()
    document, _ = parse(content, config.path)
    if document is None:
        return  # it has changed meanwhile
    try:
        # It was read before, within the limits: this is what 4.0 made of it, in plain types.
        tree, before = document.value, yaml.safe_load(content)
    except (ValueError, yaml.YAMLError):
        return  # 4.0 could not read it: some text looks like a date that there is not
    wrapper = ("postgresql",) if isinstance(tree.get("postgresql"), dict) else ()
    inside = (tree["postgresql"], before["postgresql"]) if wrapper else (tree, before)
    found = [*_changes(*inside), *_switches(*inside, config), *_kwargs(inside[0], config)]
    changes = [((*wrapper, *path), message, hint) for path, message, hint in found]
    if wrapper:
        changes += [
            ((name,), "pgmonkey 4.0 dropped it beside postgresql:", "it takes effect now")
            for name in tree
            if name in KEYS
        ]
        changes.append((wrapper, "this wrapper is deprecated", "move its contents up one level"))
    for path, message, hint in changes:
        line, column = document.position(path) or (None, None)
        yield Problem(config.path, _CODE, message, line, column, ".".join(path), hint, config.name)


def _changes(
    tree: Mapping[str, Any], before: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield path, message and hint of what has another meaning."""
    for name in tree:
        if name in KEYS and name not in _SECTIONS:
            yield (name,), "pgmonkey 4.0 ignored it", "it takes effect now"
    connection = tree.get(_CONNECTION)
    for name in connection if isinstance(connection, dict) else ():
        if name not in _KNOWN:
            yield (_CONNECTION, name), "pgmonkey 4.0 ignored it", "it takes effect now"
    for section in (_CONNECTION, *_SESSION):
        now, then = tree.get(section), before.get(section)
        if not isinstance(now, dict) or not isinstance(then, dict):
            continue
        for name, value in now.items():
            old = then.get(name)
            # A switch of PostgreSQL takes True, and that of psycopg is typed.
            switch = isinstance(old, bool) and (section in _SESSION or name == "autocommit")
            if isinstance(value, str) and not switch and str(old) != value:
                kind = "another value"
                if isinstance(old, (int, float)):
                    kind = "true or false" if isinstance(old, bool) else "a number"
                hint = "now it is the text as written, as if it had quotes"
                yield (section, name), f"pgmonkey 4.0 read {kind}", hint
            if name == "search_path" and section in _SESSION and "," in str(value):
                message = "pgmonkey 4.0 set one schema of this name"
                yield (section, name), message, "it is a list of schemas now"


def _switches(
    tree: Mapping[str, Any], before: Mapping[str, Any], config: DatabaseConfig
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield path, message and hint of each switch that is another way now."""
    is_pool = config.connection_type in ("pool", "async_pool")
    written = (tree.get(_CONNECTION) or {}).get("autocommit") is not None
    has_pool = is_pool or any(tree.get(section) for section in _POOLS)
    if config.autocommit and written and has_pool:
        message = "pools of pgmonkey 4.0 ignored it"
        hint = "each statement of a pool commits by itself now: remove it, unless that is meant"
        yield (_CONNECTION, "autocommit"), message, hint
    switches = (
        ((_CONNECTION, "autocommit"), config.autocommit or is_pool),
        (("pool_settings", "check_on_checkout"), config.pool_settings.check_on_checkout),
        (
            ("async_pool_settings", "check_on_checkout"),
            config.async_pool_settings.check_on_checkout,
        ),
    )
    for (section, name), is_on in switches:
        if not is_on and (before.get(section) or {}).get(name):
            message = "pgmonkey 4.0 took any text for on"
            yield (section, name), message, "it is off now, as it is written"


def _kwargs(
    tree: Mapping[str, Any], config: DatabaseConfig
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield path, message and hint of what was given to a pool that is not of the file's type."""
    for section, kind in zip(_POOLS, ("pool", "async_pool"), strict=True):
        given = (tree.get(section) or {}).get(KWARGS)
        if given and kind != config.connection_type:
            for name in given:
                message = "pgmonkey 4.0 gave it to this pool alone"
                yield (section, KWARGS, name), message, "it holds for all types now"
