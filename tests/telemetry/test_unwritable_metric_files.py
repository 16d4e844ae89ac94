"""Files of the multi-process mode that cannot be written: it costs metrics, never the application."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.kit import Canary, RegistryDirectory
from tests.kit.program import Program

pytestmark = pytest.mark.serverless

PRELUDE = """
import mmap, resource, shutil, threading, time, traceback, warnings
from pathlib import Path
import prometheus_client
from prometheus_client.multiprocess import MultiProcessCollector
from pgmonkey import ConnectError, Registry
from pgmonkey.telemetry import events, metrics

files = Path(argv[1])
Full = "No space left on device"
Missing = "No such file or directory"

def in_a_child(act):
    if (child := os.fork()) == 0:
        try:
            act()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]

def failures():
    return [e.fields["error"] for e in events.recent() if e.name == "metrics.failed"]

def reported(*errors):
    "Wait for the event, which is written in the thread that was the first to fail."
    while not failures():
        time.sleep(0.01)
    assert len(failures()) == 1 and failures()[0] in errors, failures()

def scraped():
    registry = prometheus_client.CollectorRegistry()
    MultiProcessCollector(registry, str(files))
    return registry.get_sample_value("pgmonkey_registry_databases")

def use(spoil=lambda: None):
    registry = Registry(argv[0], metrics=prometheus_client.CollectorRegistry())
    try:
        with registry:
            metrics.write_files()
            spoil()
            metrics.write_files()
            metrics.write_files()
            raise LookupError("of the application")
    except LookupError:
        pass
    assert registry.closed
    assert "registry.closed" in [event.name for event in events.recent()]
    assert not [t for t in threading.enumerate() if t.name == "pgmonkey-watch"]

# Python 3.12 warns of every fork in a process with threads, whatever the threads are.
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
"""


def run(
    code: str,
    registry_dir: RegistryDirectory,
    canary: Canary,
    files: Path,
    prefix: tuple[str, ...] = (),
    *,
    databases: int = 1,
    variable: str = "PROMETHEUS_MULTIPROC_DIR",
) -> None:
    """Run a program to its end: no error, no signal, and no output but events."""
    for number in range(databases):
        registry_dir.write(
            f"orders{number}",
            {"connection_settings": {"host": "127.0.0.1", "port": 1, "dbname": "d", "user": "u"}},
        )
    with Program(
        PRELUDE + code, registry_dir, files,
        canary=canary, options=("-W", "error"), prefix=prefix, env={variable: str(files)},
    ) as program:  # fmt: skip
        assert program.code(40) == 0, program.text
        assert program.said == ["done"], program.said
        assert all(line.startswith("event='") for line in program.text.splitlines())


def test_a_directory_that_cannot_be_used(
    registry_dir: RegistryDirectory, canary: Canary, tmp_path: Path
) -> None:
    """The registry closes, the exception of the block is raised, and one event names the reason."""
    program = """
variable = "PROMETHEUS_MULTIPROC_DIR"

def missing():
    use()
    reported(Missing)

def deleted_meanwhile():
    files.mkdir()
    use(lambda: shutil.rmtree(files))
    reported(Missing)

def no_directory():
    files.touch()
    use()
    reported("Not a directory")

def not_writable():
    os.environ[variable] = "/sys"
    use()
    reported("Permission denied", "Read-only file system")

def made_later():
    use(files.mkdir)
    use()
    reported(Missing)
    assert scraped() == 1

def unset_meanwhile():
    files.mkdir()
    use(lambda: os.environ.pop(variable))
    assert not failures()
    assert scraped() == 1

for case in missing, deleted_meanwhile, no_directory, not_writable, made_later, unset_meanwhile:
    files = Path(argv[1], case.__name__)
    os.environ[variable] = str(files)
    assert in_a_child(case) == 0, case
say("done")
"""
    run(program, registry_dir, canary, tmp_path)


def in_children(code: str, rooms: range) -> str:
    """Return a program that runs code in a child process for each number of free pages."""
    return f"""
own = prometheus_client.Counter("own", "Of the application.", ["label"])

def fill(room):
    with filler.open("wb") as file:
        free = os.statvfs(files)
        os.posix_fallocate(file.fileno(), 0, (free.f_bavail - room) * free.f_frsize)

filler = files / "filler"
for room in {rooms!r}:
{textwrap.indent(textwrap.dedent(code), "    ")}
    for file in files.iterdir():
        file.unlink()
say("done")
"""


def test_a_full_disk_ends_no_process(
    registry_dir: RegistryDirectory, canary: Canary, tmp_path: Path
) -> None:
    """Whatever room is left when a file must grow: nothing dies, and the numbers come later."""
    program = """
    def use_it():
        fill(room)
        with Registry(argv[0], metrics=prometheus_client.CollectorRegistry(), watch=False):
            metrics.write_files()
            reported(Full)
            filler.unlink()
            metrics.write_files()
            assert scraped() == 25, scraped()
    assert in_a_child(use_it) == 0, room
    """
    run(in_children(program, range(1, 11, 2)), registry_dir, canary, *tmpfs(tmp_path), databases=25)


def test_a_full_disk_ends_no_child_process_of_one_that_has_counted(
    registry_dir: RegistryDirectory, canary: Canary, tmp_path: Path
) -> None:
    """Its files need room for all that its parent has in them, the application's own counts too."""
    program = """
    def parent():
        for label in range(40):
            own.labels(str(label)).inc()
        with Registry(argv[0], metrics=prometheus_client.CollectorRegistry(), watch=False):
            metrics.write_files()
            fill(room)
            assert in_a_child(child) == 0, room
    def child():
        metrics.write_files()
        reported(Full)
        filler.unlink()
        metrics.write_files()
        own.labels("1").inc()
        assert scraped() == 10, scraped()
    assert in_a_child(parent) == 0
    """
    run(in_children(program, range(0, 6, 2)), registry_dir, canary, *tmpfs(tmp_path), databases=10)


def test_a_file_that_may_not_grow(
    registry_dir: RegistryDirectory, canary: Canary, tmp_path: Path
) -> None:
    """A limit for the size of files costs numbers of the registry, and none of the application."""
    program = """
files.mkdir()
own = prometheus_client.Counter("own", "Of the application.", ["label"])
for size in 0, 5000, 9000:
    if os.fork() == 0:
        own.labels("1").inc()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        use()
        reported("File too large")
        own.labels("1").inc()
        own.labels("2").inc()
        os._exit(0)
    assert os.wait()[1] == 0, size
say("done")
"""
    run(program, registry_dir, canary, tmp_path / "files", databases=25)


def test_a_worker_that_ended_leaves_few_pages(
    registry_dir: RegistryDirectory, canary: Canary, tmp_path: Path
) -> None:
    """Many recycled workers fit into the 64 MiB of memory that a container has for files."""
    program = """
files.mkdir()
for _ in range(5):
    if os.fork() == 0:
        with Registry(argv[0], metrics=prometheus_client.CollectorRegistry()) as registry:
            try:
                registry.get("orders0").open()
            except ConnectError:
                pass
        os._exit(0)
    prometheus_client.multiprocess.mark_process_dead(os.wait()[0])
left = [path.stat() for path in files.iterdir()]
assert {path.name.partition("_")[0] for path in files.iterdir()} == {"counter", "histogram"}
assert sum(one.st_blocks * 512 for one in left) <= 5 * 6 * mmap.PAGESIZE, left
say("done")
"""
    older_name = "prometheus_multiproc_dir"  # prometheus_client warns of it, and reads it
    run(program, registry_dir, canary, tmp_path / "files", variable=older_name)


def tmpfs(directory: Path) -> tuple[Path, tuple[str, ...]]:
    """Return where a small file system in memory is for a command, and what runs the command."""
    files = directory / "files"
    files.mkdir()
    prefix = ("unshare", "--mount", "sh", "-c")
    mount = f"mount -t tmpfs -o size=192k tmpfs '{files}'"
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, mount], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("may not mount a file system")
    return files, (*prefix, f'{mount} && exec "$@"', "sh")
