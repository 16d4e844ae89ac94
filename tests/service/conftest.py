"""The fixtures of the service's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.kit import Canary, RegistryDirectory, TemporaryDatabase
from tests.kit.fixtures import Share
from tests.service.serving import Serve, Serving


@pytest.fixture
def serve(registry_dir: RegistryDirectory, canary: Canary) -> Iterator[Serve]:
    """Start a service of the test's registry on a free port."""
    with ExitStack() as stack:

        def start(*arguments: object, **environment: str) -> Serving:
            return stack.enter_context(
                Serving(
                    "serve", registry_dir, "--listen", "127.0.0.1:0", "--grace", "0.2", *arguments,
                    canary=canary, env=environment,
                )
            )  # fmt: skip

        yield start


@pytest.fixture
def orders(registry_dir: RegistryDirectory, database: TemporaryDatabase) -> TemporaryDatabase:
    """A registry with one database that is there."""
    registry_dir.declare("orders", database)
    return database


@pytest.fixture(scope="module")
def service(
    share: Share,
    module_database: TemporaryDatabase,
    tmp_path_factory: pytest.TempPathFactory,
    canary: Canary,
) -> Iterator[Serving]:
    """A service without further options, for all tests of a module that leave it as it is."""
    registry_dir = RegistryDirectory(tmp_path_factory.mktemp("service") / "registry.d")
    registry_dir.declare("orders", module_database)
    words = ("serve", registry_dir, "--listen", "127.0.0.1:0", "--grace", "0.2")
    with share(partial(Serving, *words, canary=canary)) as service:
        yield service
