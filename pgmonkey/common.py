"""Where pgmonkey 4.0 had names that are in `pgmonkey` now, or that are gone.

Its modules below `pgmonkey.common` and `pgmonkey.managers` are made when that parent is imported: the
import system finds them in `sys.modules` then.
"""

from __future__ import annotations

import sys
import warnings
from types import ModuleType
from typing import Any, Final

_HERE_NOW: Final = {
    "common.utils.redaction": ("redact_config",),
    "common.utils.configutils": ("load_config",),
    "common.utils.envutils": ("EnvInterpolationError",),
    "managers.pgconnection_manager": ("PGConnectionManager",),
}
_GONE: Final = {
    "common.exceptions": {"ConfigFileCreatedError": "nothing raises it"},
    "common.utils.configutils": {"normalize_config": "load_config does it"},
    "common.utils.envutils": {"resolve_env_vars": "load_config does it, with resolve_env=True"},
    "managers.pg_server_config_manager": {"PGServerConfigManager": "run pgmonkey pgserverconfig"},
    "managers.pgcodegen_manager": {"PGCodegenManager": "run pgmonkey pgconfig generate-code"},
    "managers.pgconfig_manager": {"PGConfigManager": "run pgmonkey pgconfig create, or test"},
    "managers.pgexport_manager": {"PGExportManager": "run pgmonkey pgexport"},
    "managers.pgimport_manager": {"PGImportManager": "run pgmonkey pgimport"},
}


class _Moved(ModuleType):
    """A module of pgmonkey 4.0."""

    def __getattr__(self, name: str) -> Any:
        place = self.__name__.removeprefix("pgmonkey.")
        if name in _HERE_NOW.get(place, ()):
            message = f"import {name} from pgmonkey, not from {self.__name__}"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return getattr(sys.modules["pgmonkey"], name)
        if advice := _GONE.get(place, {}).get(name):
            # `from ... import` shows the text of no AttributeError.
            raise ImportError(f"{name} of pgmonkey 4.0 is gone: {advice}", name=self.__name__)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def make_modules(parent: str) -> None:
    """Make the modules that 4.0 had below the module `parent`, which calls this at its import."""
    for place in ("common.utils", *_HERE_NOW, *_GONE):
        full = f"pgmonkey.{place}"
        if full.startswith(f"{parent}.") and full not in sys.modules:
            module = sys.modules[full] = _Moved(full, "It was a module of pgmonkey 4.0.")
            above, _, name = full.rpartition(".")
            setattr(sys.modules[above], name, module)


make_modules(__name__)
