"""The demonstration: a real PostgreSQL, three databases under load, passwords that rotate."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import prometheus_client
import psycopg

from pgmonkey.demo.server import EmbeddedServer
from pgmonkey.demo.workload import TABLES, Workload
from pgmonkey.registry.registry import Registry
from pgmonkey.service.runner import (
    Service,
    ServiceOptions,
    collector_registry,
    note_signals,
    on_signals,
)
from pgmonkey.service.server import Listener
from pgmonkey.version import __version__


def run_demo(
    directory: str | os.PathLike[str],
    listener: Listener,
    *,
    rotate_every: float,
    duration: float | None,
) -> None:
    """Run the demonstration until SIGINT or SIGTERM. It leaves no process and no file behind.

    Args:
        directory: The registry's directory; it declares `orders`, `events` and `reports`.
        listener: The listening socket of the service.
        rotate_every: Seconds between two rotations; the databases take turns.
        duration: Seconds after which it ends by itself; `None`: never.

    Raises:
        EmbeddedServerError: PostgreSQL does not start.
        RegistryConfigError: The directory or a file has problems.
        UnknownDatabaseError: One of the three databases is not declared.
    """
    noted = note_signals()
    print(f"pgmonkey {__version__}: starting PostgreSQL ...", flush=True)
    with listener, EmbeddedServer() as server:
        # In the server's directory: its guard removes the secrets, too, even after a SIGKILL.
        roles = Roles(server, server.directory / "secrets")
        roles.create()
        if noted:
            raise KeyboardInterrupt
        os.environ["PGMONKEY_DEMO_HOST"] = server.host
        os.environ["PGMONKEY_DEMO_PORT"] = str(server.port)
        os.environ["PGMONKEY_DEMO_SECRETS"] = os.fspath(roles.directory)
        metrics = collector_registry()
        # Started by root, the secrets are in a directory of the server's account.
        registry = Registry(directory, metrics=metrics, probe_interval=15.0, trust="off")
        workload = asyncio.run(
            _run(registry, listener, metrics, roles, rotate_every, duration, noted)
        )
    print(
        f"stopped after {workload.total('ok'):,} transactions, {workload.total('error'):,} errors;"
        " PostgreSQL and the secrets are gone",
        flush=True,
    )


class Roles:
    """The database roles of the demonstration, and the secret files with their passwords.

    Args:
        server: Where the roles are.
        directory: Where the files are, a directory for each database.
    """

    def __init__(self, server: EmbeddedServer, directory: Path) -> None:
        self.server = server
        self.directory = directory

    def create(self) -> None:
        """Create a role, a database and its table for each name."""
        for name, table in TABLES.items():
            user, password = f"{name}_app", secrets.token_urlsafe(24)
            self.server.create_role(user, password)
            self.server.create_database(name, owner=user)
            with self.server.connect(name) as conn:
                conn.execute(f"SET ROLE {user}")
                conn.execute(table)
            write_secret(self.directory / name, {"username": user, "password": password})

    def rotate(self, name: str) -> None:
        """Give a role a new password: first on the server, then in the files."""
        user, password = f"{name}_app", secrets.token_urlsafe(24)
        self.server.set_password(user, password)
        write_secret(self.directory / name, {"username": user, "password": password})


def write_secret(directory: Path, payload: Mapping[str, str]) -> None:
    """Write files that only their owner may read, as the kubelet writes a mounted secret.

    The visible names are links through `..data` to a directory with a new name. One rename
    replaces `..data`, so a reader sees all of the old secret or all of the new one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data, temporary = directory / "..data", directory / "..data_tmp"
    old = data.resolve() if data.is_symlink() else None
    new = directory / f"..{secrets.token_hex(8)}"
    new.mkdir()
    for key, value in payload.items():
        path = new / key
        path.touch(mode=0o600)
        path.write_text(value, encoding="utf-8")
    temporary.symlink_to(new.name)
    temporary.rename(data)
    for key in payload:
        if not (directory / key).is_symlink():
            (directory / key).symlink_to(Path("..data", key))
    if old is not None:
        shutil.rmtree(old)


async def _run(
    registry: Registry,
    listener: Listener,
    metrics: prometheus_client.CollectorRegistry,
    roles: Roles,
    rotate_every: float,
    duration: float | None,
    noted: list[int],
) -> Workload:
    async with registry:
        workload = Workload(registry)
        metrics.register(workload)
        service = Service(registry, listener, metrics=metrics, options=ServiceOptions(grace=0.0))
        ended = asyncio.Event()

        def stop() -> None:
            service.readiness.stopping = True
            ended.set()

        on_signals(service, stop, noted)
        if duration is not None:
            asyncio.get_running_loop().call_later(duration, stop)
        print(_welcome(registry, service, roles), flush=True)
        serving = asyncio.create_task(service.run())
        workload.start()
        rotating = asyncio.create_task(_rotate(roles, workload, rotate_every))
        try:
            done, _ = await asyncio.wait(
                {serving, rotating, asyncio.ensure_future(ended.wait())},
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                task.result()
        finally:
            rotating.cancel()
            await workload.stop()
            service.stop()
            await serving
    return workload


async def _rotate(roles: Roles, workload: Workload, every: float) -> None:
    while True:
        for name in TABLES:
            await asyncio.sleep(every)
            ok, failed = workload.total("ok"), workload.total("error")
            print(
                f"-- {ok:,} transactions, {failed:,} errors; now {name} gets a new password",
                flush=True,
            )
            try:
                await asyncio.to_thread(roles.rotate, name)
            except psycopg.Error as error:  # the user may have killed the server to see an outage
                print(f"-- {name} keeps its password: {error}", flush=True)


def _welcome(registry: Registry, service: Service, roles: Roles) -> str:
    with roles.server.connect() as conn:
        version = conn.info.parameter_status("server_version")
    orders = registry.path / "orders.yaml"
    metrics = f"curl -s {service.url}/metrics | grep"
    return f"""
PostgreSQL {version} listens on port {roles.server.port}; {", ".join(registry.names)} of {registry.path} are in use.

look   {metrics} demo_transactions
       {metrics} config_version
try    edit {orders}: another max_size takes effect when you save
       edit it badly: the event names file, line and key; the last good one goes on
       echo wrong > {roles.directory}/orders/password && kill -HUP {os.getpid()}
         the server rejects it, so the old connections stay; the next rotation mends it
stop   Ctrl-C

The status page: {service.page_url}/
"""
