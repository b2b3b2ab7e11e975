"""Reads the plugin's configuration, and checks every option.

Only this module reads options. An unknown or wrong option stops Datasette at startup, with a message that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .errors import InvalidArgument
from .retention_rule import Rule
from .settings import MAX_DAYS, PLUGIN, SYNCHRONOUS, ConfigError, Settings
from .standing import StandingQuery, read_standing_queries


def _rules(option: str, value: Any) -> tuple[tuple[str, Rule], ...]:
    """Check ``channel_retention``: the retention rules by pattern, in their order."""
    where = f"{PLUGIN}: option {option!r}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of channel patterns")
    found: list[tuple[str, Rule]] = []
    for pattern, limits in value.items():
        if not isinstance(limits, Mapping) or not limits or set(limits) - {"days", "messages", "bytes"}:
            raise ConfigError(f"{where}: {pattern!r} must have days, messages or bytes, and nothing else")
        for name, limit in limits.items():
            high = MAX_DAYS if name == "days" else 2**62
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 <= limit <= high:
                raise ConfigError(f"{where}: {name} of {pattern!r} must be a number between 0 and {high}")
            if name != "days" and limit != int(limit):
                raise ConfigError(f"{where}: {name} of {pattern!r} must be a whole number")
        found.append((str(pattern), Rule(**limits)))
    return tuple(found)


def _access(option: str, value: Any) -> tuple[tuple[str, Any, Any], ...]:
    """Check ``channel_permissions``: each pattern with its allow blocks for viewing and publishing, in their order.

    ``None`` stands for a block that is not set.
    """
    where = f"{PLUGIN}: option {option!r}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of channel patterns")
    for pattern, blocks in value.items():
        if not isinstance(blocks, Mapping) or not blocks or set(blocks) - {"view", "publish"}:
            raise ConfigError(f"{where}: {pattern!r} must have view or publish, and nothing else")
        for name, block in blocks.items():
            if not isinstance(block, (bool, Mapping)):
                raise ConfigError(f"{where}: {name} of {pattern!r} must be true, false or an allow block")
    return tuple((str(pattern), blocks.get("view"), blocks.get("publish")) for pattern, blocks in value.items())


def _standing(option: str, value: Any) -> tuple[StandingQuery, ...]:
    """Check ``standing_queries``."""
    # The checks of names need the limits in this module.
    try:
        return read_standing_queries(value)
    except InvalidArgument as error:
        raise ConfigError(f"{PLUGIN}: option {option!r}: {error.message}") from None


_MAPPINGS = {"channel_retention": _rules, "channel_permissions": _access, "standing_queries": _standing}


def _check(option: str, kind: type, value: Any, meta: Mapping[str, Any]) -> Any:
    where = f"{PLUGIN}: option {option!r}"
    if kind is tuple:
        return _MAPPINGS[option](option, value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false")
    elif kind is str:
        if not isinstance(value, str):
            raise ConfigError(f"{where} must be text: {meta['unit']}")
    else:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise ConfigError(f"{where} must be a number of {meta['unit']}")
        if kind is int and value != int(value):
            raise ConfigError(f"{where} must be a whole number of {meta['unit']}")
        if not meta["low"] <= value <= meta["high"]:
            raise ConfigError(f"{where} must be between {meta['low']:g} and {meta['high']:g} {meta['unit']}")
        value = kind(value)
    return value


#: The options that belong to the instance.
INSTANCE_ONLY = ("demo_database", "freeze_heap")


def read_settings(instance: Any, database: Any = None) -> Settings:
    """Check the plugin's configuration and return the settings of one database.

    ``instance`` is the block under ``plugins: datasette-pubsub:`` at the top of
    the configuration, ``database`` the one of the database. Raises
    :class:`ConfigError`, whose text names the option and its bounds.
    """
    kinds = {f.name: (type(f.default), f.metadata) for f in fields(Settings)}
    values: dict[str, Any] = {}
    for level, block in (("instance", instance), ("database", database)):
        if block is None:
            continue
        if not isinstance(block, Mapping):
            raise ConfigError(f"{PLUGIN}: the plugin's configuration must be a mapping of options")
        for name, value in block.items():
            if name not in kinds:
                raise ConfigError(f"{PLUGIN}: unknown option {name!r}; known: {', '.join(sorted(kinds))}")
            if name in INSTANCE_ONLY and level == "database":
                raise ConfigError(f"{PLUGIN}: option {name!r} belongs to the instance, not to a database")
            if name == "standing_queries" and level == "instance":
                raise ConfigError(f"{PLUGIN}: option 'standing_queries' belongs to a database, not to the instance")
            values[name] = _check(name, *(kinds[name][0], value, kinds[name][1]))
    settings = Settings(**values)
    if settings.synchronous not in SYNCHRONOUS:
        raise ConfigError(f"{PLUGIN}: option 'synchronous' must be one of {', '.join(SYNCHRONOUS)}")
    return settings
