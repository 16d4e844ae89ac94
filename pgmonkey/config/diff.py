"""What a reload would change: database by database, key by key. Pure decisions, secrets masked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

from pgmonkey.config.explain import explain
from pgmonkey.config.models import Effect, effect_of
from pgmonkey.config.redaction import MASK, scrub
from pgmonkey.config.settings import PLACE, DatabaseConfig

#: What a reload does, from the least to the most. `nothing`: no connection is touched. `resize`: the
#: pool is resized. `new_pool`: another pool takes its place. `rotate`: connections are replaced one
#: for one. `cutover`: they lead to another place, all from one moment on.
Consequence = Literal["nothing", "resize", "new_pool", "rotate", "cutover"]
#: The database comes, goes, keeps its last good configuration, or cannot be compared.
Outcome = Consequence | Literal["add", "remove", "reject", "unknown"]
_FROM_LEAST: Final[tuple[Consequence, ...]] = get_args(Consequence)
_WHERE: Final = frozenset(f"connection_settings.{key}" for key in PLACE)
_CONSEQUENCES: Final[Mapping[Effect, Consequence]] = {
    "nothing": "nothing",
    "resize": "resize",
    "new_pool": "new_pool",
    "reconnect": "rotate",
}


class KeyChange(NamedTuple):
    """One dotted key with its values, masked, and what the change of it does."""

    key: str
    before: Any
    after: Any
    consequence: Consequence


class DatabaseChange(NamedTuple):
    """What a reload does with one database.

    Args:
        name: The database.
        outcome: What happens to its connections; the most that one of its keys does.
        keys: The keys that differ.
        masked: The keys that were not compared, because both sides are masked.
    """

    name: str
    outcome: Outcome
    keys: tuple[KeyChange, ...] = ()
    masked: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.keys) or self.outcome != "nothing"


def between_configs(before: DatabaseConfig, after: DatabaseConfig) -> DatabaseChange:
    """Return what a reload changes that puts one configuration in the place of another."""
    secrets = (*before.secrets, *after.secrets)
    old, new = (
        {
            # The text of one side may hold a secret of the other.
            one.key: scrub(one.value, secrets) if isinstance(one.value, str) else one.value
            for one in explain(config, sources=False)
        }
        for config in (before, after)
    )
    changed = before.changed_keys(after)
    moves = before.place != after.place
    return _change(before.name, changed, old, new, moves=moves)


def between_values(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> DatabaseChange:
    """Return the same from effective values by dotted key, as a service shows them.

    A secret is masked on both sides, so it cannot be compared: `masked` names it.
    """
    keys = sorted(before.keys() | after.keys())
    changed = {key: _effect(key) for key in keys if before.get(key) != after.get(key)}
    masked = (key for key in keys if key not in changed and MASK in str(after.get(key)))
    return _change(name, changed, before, after)._replace(masked=tuple(masked))


def _effect(key: str) -> Effect:
    try:
        return effect_of(key)
    except KeyError:
        return "nothing"  # another version of pgmonkey has it: here it has no meaning


def _change(
    name: str,
    changed: Mapping[str, Effect],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    moves: bool = True,
) -> DatabaseChange:
    keys = tuple(
        KeyChange(key, old, new, _consequence(key, effect, old, new, moves=moves))
        for key, effect in changed.items()
        for old, new in [(before.get(key), after.get(key))]
    )
    most = max((_FROM_LEAST.index(one.consequence) for one in keys), default=0)
    return DatabaseChange(name, _FROM_LEAST[most], keys)


def _consequence(key: str, effect: Effect, old: Any, new: Any, *, moves: bool) -> Consequence:
    if moves and key in _WHERE:
        return "cutover"
    if key.endswith(".max_size") and old is not None and new is not None and new < old:
        return "new_pool"  # psycopg_pool cannot make a pool smaller at once
    return _CONSEQUENCES[effect]


def of_registry(
    before: Mapping[str, DatabaseConfig | None],
    after: Mapping[str, DatabaseConfig | None],
) -> Iterator[DatabaseChange]:
    """Yield what a reload does with each database, by name; `None` is a file with problems."""
    for name in sorted(before.keys() | after.keys()):
        if (outcome := one_sided(name, before, after)) is not None:
            yield DatabaseChange(name, outcome)
        else:
            old, new = before[name], after[name]
            assert old is not None
            assert new is not None
            yield between_configs(old, new)


def one_sided(
    name: str, before: Mapping[str, object | None], after: Mapping[str, object | None]
) -> Outcome | None:
    """Return the outcome of a database that has no values to compare on both sides."""
    if name not in after:
        return "remove"
    if after[name] is None:
        return "reject"
    if name not in before:
        return "add"
    return "unknown" if before[name] is None else None
