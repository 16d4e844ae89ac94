"""The package as its users get it: its names, its weight, its wheel."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pgmonkey

ROOT = Path(__file__).parents[1]


def test_exported_members():
    """The public names are these; a new one, or one less, is a decision."""
    assert sorted(pgmonkey.__all__) == [
        "Change",
        "CheckoutTimeout",
        "ConfigError",
        "ConnectError",
        "Credentials",
        "Database",
        "DatabaseRemovedError",
        "EnvInterpolationError",
        "Gap",
        "HandleClosedError",
        "LeftOpenError",
        "Listener",
        "NestedCheckoutError",
        "OverrideError",
        "PGConnectionManager",
        "PgmonkeyError",
        "Problem",
        "Registry",
        "RegistryConfigError",
        "ReloadRejectedError",
        "ReloadReport",
        "TooManyWaiting",
        "UnknownDatabaseError",
        "WrongSideError",
        "__version__",
        "load_config",
        "read_env_file",
        "redact_config",
    ]


@pytest.mark.parametrize("name", pgmonkey.__all__)
def test_every_exported_member_is_there_and_documented(name):
    """Each public name can be imported, is listed by `dir`, and has a docstring."""
    member = getattr(pgmonkey, name)

    assert name in dir(pgmonkey)
    if name != "__version__":
        assert (member.__doc__ or "").strip()


def test_an_unknown_member_is_an_attribute_error():
    """A name that is not there fails as it does for any module."""
    with pytest.raises(AttributeError, match="Registrar"):
        pgmonkey.Registrar  # noqa: B018 - it raises


FRAMEWORKS = {"django", "fastapi", "flask", "pytest", "sqlalchemy"}
SERVICE = {"click", "starlette", "hypercorn", "jinja2"}


@pytest.mark.parametrize(
    "program, optional",
    [
        ("import pgmonkey", FRAMEWORKS | SERVICE | {"rich"}),
        # structlog imports rich by itself, where that is installed.
        ("from pgmonkey import *", FRAMEWORKS | SERVICE),
    ],
    ids=["import", "every member"],
)
def test_importing_loads_nothing_of_the_outside(program, optional):
    """Neither `import pgmonkey` nor the use of any member loads a framework, the command line or the service."""
    check = f"import sys\n{program}\nprint(*({optional} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert done.stdout == "\n"


def test_importing_starts_nothing():
    """An import opens no thread, no file and no connection, and says nothing."""
    check = (
        "import os, threading\n"
        "before = set(os.listdir('/dev/fd'))\n"
        "from pgmonkey import *\n"
        "assert set(os.listdir('/dev/fd')) == before\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", check],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from this tree."""
    directory = tmp_path_factory.mktemp("built")
    done = subprocess.run(  # without --wheel, it is built from the source distribution
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = directory.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield path, archive


@pytest.fixture(scope="module")
def source(wheel):
    """The names of the files in the source distribution that the wheel was built from."""
    (path,) = wheel[0].parent.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_the_source_distribution_has_all_that_is_committed(source):
    """It can be built and tested as a clone can: tests, documentation, Makefile, what CI runs."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    # `registry.d` is a link to a directory, whose files are there.
    committed = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}

    assert committed - source == set()
    assert {name for name in source - committed if not name.endswith("PKG-INFO")} == set()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    """Every file of the package is in the wheel, its licence, and no test."""
    _, archive = wheel
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "pgmonkey").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"pgmonkey-{pgmonkey.__version__}.dist-info"

    assert set(archive.namelist()) == package | {
        f"{info}/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    assert "pgmonkey/py.typed" in package


def test_the_wheel_says_what_it_needs(wheel):
    """Version, Python, extras, licence and the command are in the metadata."""
    path, archive = wheel
    info = f"pgmonkey-{pgmonkey.__version__}.dist-info"
    metadata = message_from_string(archive.read(f"{info}/METADATA").decode())

    assert path.name == f"pgmonkey-{pgmonkey.__version__}-py3-none-any.whl"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert [url.partition(",")[0] for url in metadata.get_all("Project-URL")] == [
        *("Documentation", "Repository", "Issues", "Changelog"),
    ]
    assert set(metadata.get_all("Provides-Extra")) == {"serve", "demo", "test"}
    entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert "pgmonkey = pgmonkey.cli.app:main" in entry_points
    assert "[pytest11]\npgmonkey = pgmonkey.contrib.pytest" in entry_points


def test_the_core_does_not_need_the_extras(wheel):
    """What only the service or the demonstration needs is no dependency of the library."""
    _, archive = wheel
    info = f"pgmonkey-{pgmonkey.__version__}.dist-info"
    metadata = message_from_string(archive.read(f"{info}/METADATA").decode())
    core = [need for need in metadata.get_all("Requires-Dist") if "extra ==" not in need]

    assert sorted({need.split(">")[0] for need in core}) == [
        "click",
        "prometheus-client",
        "psycopg-pool<4,",
        "psycopg[binary]<4,",
        "pydantic<3,",
        "pyyaml",
        "structlog",
        "typing-extensions",
        "watchfiles",
    ]


def requirements(name, found):
    """Return the names of a distribution and of all that it needs here, without extras."""
    if name not in found:
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                requirements(canonicalize_name(need.name), found)
    return found


def size(files):
    """Return the bytes of files, with what Python compiles them to."""
    return sum(path.stat().st_size for path in map(Path, files) if path.is_file())


def test_an_installation_is_small():
    """What `pip install pgmonkey` brings beside psycopg and its pool has at most 30 MB."""
    theirs = requirements("psycopg", requirements("psycopg-pool", {"psycopg-binary"}))
    brought = requirements("pgmonkey", set()) - theirs - {"pgmonkey"}
    assert "pydantic-core" in brought
    total = sum(
        size(file.locate() for file in importlib.metadata.files(name) or ()) for name in brought
    )
    source = [path for path in (ROOT / "pgmonkey").rglob("*") if "__pycache__" not in path.parts]
    total += size(source) + 1.5 * size(path for path in source if path.suffix == ".py")

    assert total < 30e6
