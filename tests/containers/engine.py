"""Do by hand what a container engine does with our Dockerfile. Run in a mount namespace of its own.

Each stage gets this machine's root file system with a layer of its own above it, the interpreter of
the tests at `/usr/local`, where the base image has it, and none of the repository. The last stage is
then mounted read-only and its command becomes process 1 of its own process and network namespaces,
under the user of the Dockerfile. What happened goes to standard output, as JSON.

    unshare --mount python engine.py SPECIFICATION
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

SPECIFICATION = json.loads(sys.argv[1])
WORK = Path(SPECIFICATION["work"])
BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
SECONDS = 30


def mount(*arguments: object) -> None:
    """Mount, in this namespace only."""
    subprocess.run(["mount", *map(str, arguments)], check=True)


def overlay(lower: str, target: Path) -> None:
    """Mount a directory with a layer above it that takes every change."""
    layer = WORK / "layers" / str(len(list((WORK / "layers").iterdir())))
    for name in ("upper", "work"):
        (layer / name).mkdir(parents=True)
    options = f"lowerdir={lower},upperdir={layer}/upper,workdir={layer}/work"
    mount("-t", "overlay", "overlay", "-o", options, target)


def base_image(name: str) -> Path:
    """Return the root of a stage before its first step."""
    root = WORK / name
    root.mkdir()
    overlay("/", root)
    overlay(SPECIFICATION["python"], root / "usr/local")
    mount("-t", "proc", "proc", root / "proc")
    mount("--rbind", "/dev", root / "dev")
    for hidden in SPECIFICATION["hidden"]:
        mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", root / hidden.lstrip("/"))
    subprocess.run(["chroot", root, "ldconfig"], check=True)
    return root


def inside(root: Path, stage: dict, command: list[str], *, user: str) -> list[str]:
    """Return the command line that runs a command within a stage."""
    env = {"PATH": BASE_PATH, **SPECIFICATION["environment"], **stage["env"]}
    return [
        *("chroot", f"--userspec={user}", str(root), "/usr/bin/env", "--ignore-environment"),
        *(f"--chdir={stage['workdir']}", *(f"{name}={value}" for name, value in env.items())),
        *command,
    ]


def copy(origin: Path, sources: list[str], root: Path, workdir: str, target: str) -> None:
    """COPY: a directory gives its content, a file goes into a directory under its name."""
    destination = root / (Path(workdir) / target).as_posix().lstrip("/")
    for source in sources:
        found = origin / source.lstrip("/")
        if found.is_dir():
            shutil.copytree(found, destination, symlinks=True, dirs_exist_ok=True)
        else:
            destination.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, destination)


def build() -> Path:
    """Carry out every step of every stage, and return the root of the last."""
    roots: dict[str, Path] = {}
    root = WORK
    for number, stage in enumerate(SPECIFICATION["stages"]):
        root = roots[stage["name"]] = base_image(f"stage{number}")
        workdir = "/"
        for kind, *rest in stage["steps"]:
            if kind == "WORKDIR":
                workdir = rest[0]
                (root / workdir.lstrip("/")).mkdir(parents=True)
            elif kind == "COPY":
                origin, *sources, target = rest
                copy(
                    roots[origin] if origin else Path(SPECIFICATION["context"]),
                    sources, root, workdir, target,
                )  # fmt: skip
            else:
                current = {**stage, "workdir": workdir}
                subprocess.run(
                    inside(root, current, ["/bin/sh", "-c", rest[0]], user="0:0"),
                    check=True,
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr,
                )
    return root


def relay(path: str) -> None:
    """Be the database server's address in this network namespace, which has no other way out."""
    listener = socket.create_server(("127.0.0.1", 5432))

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(path)
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def get(path: str) -> tuple[int, str]:
    """Ask the service."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:9749{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def until(asked: Callable[[], object]) -> None:
    """Wait until a callable returns something true."""
    deadline = time.monotonic() + SECONDS
    while not asked():
        if time.monotonic() > deadline:
            raise SystemExit("it took too long")
        time.sleep(0.05)


def run(root: Path) -> dict:
    """Run the last stage's command as a container, and look at it from within and without."""
    stage = SPECIFICATION["stages"][-1]
    user = stage["user"]
    for source, target in SPECIFICATION["volumes"]:
        place = root / target.lstrip("/")
        place.mkdir(parents=True)
        mount("--bind", source, place)
        mount("-o", "remount,bind,ro", place)
    mount("-o", "remount,ro", root)
    mount("-o", "remount,ro", root / "usr/local")
    relay(SPECIFICATION["socket"])

    def executed(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            inside(root, stage, list(command), user=user),
            capture_output=True, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip

    healthy = stage["healthcheck"]
    seen: dict = {"before": executed(*healthy).returncode}
    log = (WORK / "log").open("wb")
    unshare = subprocess.Popen(
        [
            *("unshare", "--pid", "--fork", "--kill-child"),
            *inside(root, stage, [*stage["entrypoint"], *stage["command"]], user=user),
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        until(lambda: unshare.poll() is not None or executed(*healthy).returncode == 0)
        if unshare.poll() is None:
            until(lambda: get("/readyz")[0] == 200)
            first = int(children.read_text().split()[0])
            status = Path(f"/proc/{first}/status").read_text().splitlines()
            seen |= {
                "healthy": executed(*healthy).returncode,
                "ready": json.loads(get("/readyz")[1]),
                "metrics": get("/metrics")[1],
                "ids": [line.split()[1:] for line in status if line.startswith(("Uid", "Gid"))],
                "pids": next(line.split()[1:] for line in status if line.startswith("NSpid")),
                "command": Path(f"/proc/{first}/cmdline").read_bytes().decode().split("\0")[:-1],
                "name": executed("id", "--user", "--name").stderr,
                "write": [
                    executed("touch", f"{where}/new").stderr
                    for where in ("", "/tmp", "/opt/pgmonkey", "/etc/pgmonkey/registry.d")
                ],
                "pip": executed("python", "-m", "pip", "--version").stderr,
                "programs": executed("ls", "/opt/pgmonkey/bin").stdout.split(),
                "check": executed("pgmonkey", "check", "/etc/pgmonkey/registry.d").stdout,
            }
            os.kill(first, signal.SIGTERM)
        seen["exit"] = unshare.wait(SECONDS)
        seen["after"] = executed(*healthy).returncode
    finally:
        unshare.kill()
        unshare.wait()
    log.close()
    seen["log"] = (WORK / "log").read_text()
    return seen


def main() -> None:
    """Build, and run what was built in a network namespace of its own."""
    if SPECIFICATION.get("root"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        print(json.dumps(run(Path(SPECIFICATION["root"]))))
        return
    mount("-t", "tmpfs", "tmpfs", WORK)
    (WORK / "layers").mkdir()
    specification = {**SPECIFICATION, "root": str(build())}
    command = ["unshare", "--net", sys.executable, __file__, json.dumps(specification)]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
