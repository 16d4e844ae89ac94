"""Where pgmonkey 4.0 had names that are in `pgmonkey` now, or that are gone.

The modules below this package and below `pgmonkey.managers` are those of 4.0. Each has its file, so that
any number of threads may import them at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
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


def older_names(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module of 4.0."""
    place = module.removeprefix("pgmonkey.")

    def older_name(name: str) -> Any:
        if name in _HERE_NOW.get(place, ()):
            message = f"import {name} from pgmonkey, not from {module}"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return getattr(sys.modules["pgmonkey"], name)
        if advice := _GONE.get(place, {}).get(name):
            # `from ... import` shows the text of no AttributeError.
            raise ImportError(f"{name} of pgmonkey 4.0 is gone: {advice}", name=module)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return older_name
