"""Configs from dictionaries, without the manager that connects with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgmonkey.config.interpolation import LoadOptions
from pgmonkey.config.legacy import load_dict
from pgmonkey.config.loader import config_or_raise
from pgmonkey.config.settings import DatabaseConfig


def config_from_dict(mapping: Mapping[str, Any]) -> DatabaseConfig:
    """Make a config as the manager does, or raise the problems of the dictionary."""
    return config_or_raise(load_dict(mapping, LoadOptions(isolate=False)), isolate=False)
