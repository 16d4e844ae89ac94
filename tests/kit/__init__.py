"""The test kit: a real server, a network that fails on demand, and watchers over every test.

The plugins (`canary`, `leaks`, `behaviour`) apply to every test by themselves; `fixtures` has what a
test asks for. See CONTRIBUTING.md for the list.
"""

from tests.kit.canary import Canary
from tests.kit.components import need, postgres_with_tls
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import aeventually, eventually
from tests.kit.proxy import ChaosProxy
from tests.kit.registry_dir import RegistryDirectory

__all__ = [
    "Canary",
    "CapturedEvents",
    "ChaosProxy",
    "RegistryDirectory",
    "TemporaryDatabase",
    "aeventually",
    "eventually",
    "need",
    "postgres_with_tls",
]
