"""A Patroni cluster of two nodes on loopback, which moves its primary."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg
import yaml

from tests.kit.components import need, postgres_with_tls
from tests.kit.eventually import eventually
from tests.kit.ports import free_port
from tests.kit.process import end

_ACCOUNT = "postgres"
_PATIENCE = 90.0


class Node:
    """One member of the cluster: a Patroni and the server that it runs."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.port = free_port()
        self.api = free_port()
        self.directory = directory / name
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, path: str) -> dict[str, Any]:
        """Return an answer of the node's REST API; an empty one while it is away."""
        with (
            suppress(OSError, ValueError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.api}{path}", timeout=2) as answer,
        ):
            return dict(json.load(answer))
        return {}


class PatroniCluster:
    """Run etcd, and two nodes of which one is the primary; gone without a trace afterwards.

    Patroni is the one of the development environment, PostgreSQL and etcd are the
    distribution's. Started by root, they run as `postgres`.

    Args:
        superuser_password: Of `postgres`.
    """

    host = "127.0.0.1"

    def __init__(self, superuser_password: str) -> None:
        self._etcd_binary = str(need(shutil.which("etcd"), "etcd (.ci/install-servers)"))
        self._binaries = postgres_with_tls()
        self._password = superuser_password
        self._directory = Path(tempfile.mkdtemp(prefix="patroni-"))
        self._etcd_port = free_port()
        self._etcd: subprocess.Popen[bytes] | None = None
        self.nodes = [Node(name, self._directory) for name in ("one", "two")]

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        self._own(self._directory)
        peer = free_port()
        url = f"http://{self.host}:{self._etcd_port}"
        self._etcd = self._popen(
            "etcd",
            [
                self._etcd_binary,
                f"--data-dir={self._directory / 'etcd-data'}",
                f"--listen-client-urls={url}",
                f"--advertise-client-urls={url}",
                f"--listen-peer-urls=http://{self.host}:{peer}",
                f"--initial-advertise-peer-urls=http://{self.host}:{peer}",
                f"--initial-cluster=default=http://{self.host}:{peer}",
            ],
        )
        self.start_node(self.nodes[0])
        eventually(lambda: self.leader() is self.nodes[0], _PATIENCE, "the first node leads")
        self.start_node(self.nodes[1])
        eventually(self.is_whole, _PATIENCE, "the second node streams")

    def start_node(self, node: Node) -> None:
        """Start a node's Patroni, which starts its server, or makes it."""
        node.directory.mkdir(mode=0o700, exist_ok=True)
        configuration = node.directory / "patroni.yml"
        configuration.touch(mode=0o600)
        configuration.write_text(yaml.safe_dump(self._configuration(node)), encoding="utf-8")
        self._own(node.directory, configuration)
        node.process = self._popen(
            f"patroni-{node.name}", [sys.executable, "-m", "patroni", str(configuration)]
        )

    def _configuration(self, node: Node) -> dict[str, Any]:
        logins = {"username": "postgres", "password": self._password}
        return {
            "scope": "orders",
            "name": node.name,
            "restapi": {
                "listen": f"{self.host}:{node.api}",
                "connect_address": f"{self.host}:{node.api}",
            },
            "etcd3": {"host": f"{self.host}:{self._etcd_port}"},
            "bootstrap": {
                # The shortest that Patroni allows: how long a dead leader keeps its office.
                "dcs": {"ttl": 20, "loop_wait": 1, "retry_timeout": 3},
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "no-sync"],
            },
            "postgresql": {
                "listen": f"{self.host}:{node.port}",
                "connect_address": f"{self.host}:{node.port}",
                "bin_dir": str(self._binaries),
                "data_dir": str(node.directory / "data"),
                "pgpass": str(node.directory / "pgpass"),
                "use_pg_rewind": True,
                "authentication": {"superuser": logins, "replication": logins, "rewind": logins},
                "pg_hba": [
                    "host all all 127.0.0.1/32 scram-sha-256",
                    "host replication all 127.0.0.1/32 scram-sha-256",
                ],
                "parameters": {
                    "unix_socket_directories": str(node.directory),
                    # A segment in /dev/shm would outlive the kill of a leader.
                    "dynamic_shared_memory_type": "mmap",
                    "fsync": "off",
                    "max_connections": 100,
                },
            },
        }

    def leader(self) -> Node | None:
        """Return the node that says that it is the primary and runs."""
        for node in self.nodes:
            said = node.ask("/patroni")
            if (said.get("role"), said.get("state")) in (
                ("primary", "running"),
                ("master", "running"),
            ):
                return node
        return None

    def is_whole(self) -> bool:
        """Tell whether one node leads and the other one streams from it."""
        members = self.nodes[0].ask("/cluster").get("members", [])
        return sorted(one.get("state") for one in members) == ["running", "streaming"]

    def switch_over(self) -> None:
        """Let the two nodes change their roles, as an operator does; returns when they have."""
        leader = self.leader()
        assert leader is not None
        other = next(node for node in self.nodes if node is not leader)
        request = urllib.request.Request(
            f"http://{self.host}:{leader.api}/switchover",
            data=json.dumps({"leader": leader.name, "candidate": other.name}).encode(),
            method="POST",
        )
        urllib.request.urlopen(request, timeout=60).close()
        eventually(lambda: self.leader() is other, _PATIENCE, "the other node leads")

    def kill_leader(self) -> Node:
        """Kill the leading Patroni and its server, as a machine dies; return the node."""
        leader = self.leader()
        assert leader is not None
        assert leader.process is not None
        lock = (leader.directory / "data" / "postmaster.pid").read_text(encoding="utf-8")
        postmaster = psutil.Process(int(lock.splitlines()[0]))
        family = [leader.process.pid, postmaster.pid]
        family += [child.pid for child in postmaster.children(recursive=True)]
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        leader.process.wait(_PATIENCE)
        leader.process = None
        return leader

    def execute(self, statement: str, *, dbname: str = "postgres") -> None:
        """Run one statement on the primary as superuser."""
        leader = self.leader()
        assert leader is not None
        with psycopg.connect(
            **self.parameters(leader, "postgres", self._password, dbname), autocommit=True
        ) as connection:
            connection.execute(statement.encode())

    def parameters(self, node: Node, user: str, password: str, dbname: str) -> dict[str, Any]:
        """Return where a node's server is, for `psycopg.connect`."""
        return {
            "host": self.host,
            "port": node.port,
            "user": user,
            "password": password,
            "dbname": dbname,
            "connect_timeout": 2,
        }

    def log_text(self) -> str:
        """Return the end of all logs."""
        return "\n".join(
            f"== {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}"
            for log in sorted(self._directory.glob("*.log"))
        )

    def close(self) -> None:
        """Stop everything and remove the directory."""
        running = [node.process for node in self.nodes if node.process is not None]
        for process in running:
            process.terminate()  # Patroni stops its server
        for process in (*running, *([self._etcd] if self._etcd else [])):
            end(process)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _own(self, *paths: Path) -> None:
        if os.geteuid() == 0:
            for path in paths:
                shutil.chown(path, _ACCOUNT, _ACCOUNT)

    def _popen(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root, and the interpreter may be where only root
            # may look: the account gets the right to look everywhere, and no other one.
            command = [
                "setpriv",
                f"--reuid={_ACCOUNT}",
                f"--regid={_ACCOUNT}",
                "--clear-groups",
                "--inh-caps=+dac_override",
                "--ambient-caps=+dac_override",
                *command,
            ]
        with (self._directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._directory
            )
