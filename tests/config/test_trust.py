"""Trust in files: who else can change them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pgmonkey import Registry
from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.config.loader import load_file
from pgmonkey.config.trust import TrustChecker
from pgmonkey.errors import ConfigError
from tests.kit.command import environment
from tests.kit.secret_volume import SecretVolume

GOOD = "connection_settings: {host: db, dbname: orders, user: app, password: {from_file: %s}}\n"
STRANGER = 65534


@pytest.fixture
def secret(tmp_path):
    """A secret in a directory of its own."""
    path = tmp_path / "secrets" / "password"
    path.parent.mkdir()
    path.write_text("tea\n")
    return path


@pytest.fixture
def directory(tmp_path, secret):
    """A registry of one database."""
    path = tmp_path / "registry.d"
    path.mkdir()
    (path / "orders.yaml").write_text(GOOD % secret)
    for one in (path, path / "orders.yaml", secret, secret.parent):
        one.chmod(0o755 if one.is_dir() else 0o644)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o640, 0o755])
def test_what_only_its_owner_can_change_is_trusted(secret, mode):
    """Reading by others is no reason for distrust: Kubernetes and Docker mount secrets like that."""
    secret.parent.chmod(0o755)
    secret.chmod(mode)
    assert TrustChecker().distrust(str(secret)) is None


@pytest.mark.parametrize("mode", [0o666, 0o646, 0o602, 0o777])
def test_what_everybody_can_change_is_not(secret, mode):
    """The file, its mode, and the command that helps."""
    secret.chmod(mode)
    distrust = TrustChecker().distrust(str(secret))
    assert str(distrust) == f"{secret} can be changed by everybody (mode {mode:04o})"
    assert distrust.hint == f"chmod go-w {secret}"


def test_a_group_with_members_is_not_trusted(secret):
    """Unless it is the account's own group, without other members."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files to other groups")
    secret.chmod(0o664)
    os.chown(secret, 0, STRANGER)
    assert "can be changed by its group (mode 0664)" in str(TrustChecker().distrust(str(secret)))
    os.chown(secret, 0, 0)
    assert TrustChecker().distrust(str(secret)) is None  # root's own group


def test_what_belongs_to_another_account_is_not_trusted(secret, monkeypatch):
    """A file, and a directory on the way to it."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(secret, STRANGER, -1)
    assert str(TrustChecker().distrust(str(secret))) == (
        f"{secret} belongs to another account (uid {STRANGER})"
    )
    with monkeypatch.context() as process:
        process.setattr(os, "geteuid", lambda: STRANGER)
        assert TrustChecker().distrust(str(secret)) is None
    os.chown(secret, 0, -1)
    os.chown(secret.parent, STRANGER, -1)
    assert TrustChecker().distrust(str(secret)).path == str(secret.parent)


def test_every_directory_and_link_on_the_way_counts(tmp_path, secret):
    """A link in a safe directory that leads through an open one is as open as that."""
    link = tmp_path / "link"
    link.symlink_to("secrets/../secrets/password")
    assert TrustChecker().distrust(str(link)) is None
    secret.parent.chmod(0o777)
    assert TrustChecker().distrust(str(link)).path == str(secret.parent)
    secret.parent.chmod(0o1777)  # sticky: what others own there is protected
    assert TrustChecker().distrust(str(link)) is None
    if os.geteuid() == 0:
        os.chown(link, STRANGER, -1, follow_symlinks=False)
        assert TrustChecker().distrust(str(link)).path == str(link)


def _circle(path):
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [Path.unlink, _circle])
def test_what_cannot_be_looked_at_is_trusted(secret, make):
    """Reading it says what is wrong."""
    make(secret)
    assert TrustChecker().distrust(str(secret)) is None


LAYOUTS = pytest.mark.parametrize(
    "directory_mode, file_mode",
    [(0o1777, 0o644), (0o3777, 0o440), (0o777, 0o644), (0o2777, 0o640)],
    ids=["secret", "secret with fsGroup", "ConfigMap", "ConfigMap with fsGroup"],
)


@LAYOUTS
def test_the_layouts_of_kubernetes_are_trusted(tmp_path, monkeypatch, directory_mode, file_mode):
    """Read-only mounts whose directories everybody may write to, and whose files are links."""
    mount = tmp_path / "mount"
    volume = SecretVolume(mount, mode=file_mode)
    volume.write({"username": "app", "password": "tea"})
    for path in (mount, (mount / "..data").resolve()):
        path.chmod(directory_mode)
    with monkeypatch.context() as system:
        of_mount, statvfs = SimpleNamespace(f_flag=os.ST_RDONLY), os.statvfs
        system.setattr(
            os, "statvfs", lambda path: of_mount if path.startswith(str(mount)) else statvfs(path)
        )
        assert TrustChecker().distrust(str(volume.path("password"))) is None
    if not directory_mode & 0o1000:  # the same where it is no mount
        assert TrustChecker().distrust(str(volume.path("password"))).path == str(mount)


# Started in a mount name space of its own: nothing of it is seen from outside, and it ends with it.
MOUNTED = """
import os, subprocess, sys
from pathlib import Path
from pgmonkey import Registry
from pgmonkey.errors import RegistryConfigError
from tests.kit.secret_volume import SecretVolume

registry, mount, directory_mode, file_mode, group = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount], check=True)
volume = SecretVolume(mount, mode=int(file_mode, 8))
volume.write({"password": "tea"})
for path in (Path(mount), Path(mount, "..data").resolve()):
    os.chown(path, 0, int(group))
    path.chmod(int(directory_mode, 8))
os.chown(volume.path("password"), 0, int(group))

def load():
    Registry(registry, metrics=None, watch=False, trust="strict").close()

if not int(directory_mode, 8) & 0o1000:
    try:
        load()
    except RegistryConfigError as error:
        print(error.problems[0].code)
subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
load()
print("trusted")
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="mounting wants root, and a machine that lets it",
)
@LAYOUTS
def test_the_layouts_of_kubernetes_are_trusted_as_real_mounts(
    directory, tmp_path, canary, directory_mode, file_mode
):
    """A strict registry reads a secret from a file system that is mounted read-only, and only then."""
    mount = tmp_path / "mount"
    mount.mkdir()
    (directory / "orders.yaml").write_text(GOOD % (mount / "password"))
    done = subprocess.run(
        [
            *("unshare", "-m", sys.executable, "-c", MOUNTED),
            *(directory, mount, f"{directory_mode:o}", f"{file_mode:o}", "2000"),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    canary.check(done.stdout + done.stderr)
    before = [] if directory_mode & 0o1000 else ["file.untrusted"]
    assert (done.stdout.split(), done.returncode) == ([*before, "trusted"], 0), done.stderr


@pytest.mark.parametrize("what", ["file", "secret", "directory"])
def test_strict_makes_a_problem_of_it(directory, secret, what):
    """Until it is mended; a change of permissions alone is seen at the next look."""
    opened = {"file": directory / "orders.yaml", "secret": secret, "directory": directory}[what]
    loader = DirectoryLoader(directory, trust="strict")
    mode = opened.stat().st_mode
    opened.chmod(mode | 0o022)
    (problem,) = {(one.code, one.hint, one.database) for one in loader.scan().all_problems()}
    assert problem == ("file.untrusted", f"chmod go-w {opened}", "orders")
    opened.chmod(mode)
    assert set(loader.scan().configs) == {"orders"}


def test_strict_counts_the_defaults_for_every_database(directory):
    """An account that can change the defaults can change every database."""
    defaults = directory / "_defaults.yaml"
    defaults.write_text("required: false\n")
    defaults.chmod(0o666)
    loader = DirectoryLoader(directory, trust="strict")
    scan = loader.scan()
    assert [problem.code for problem in scan.all_problems()] == ["file.untrusted"]
    assert not scan.configs
    defaults.chmod(0o644)
    assert set(loader.scan().configs) == {"orders"}


def test_a_registry_warns_once_for_each_file(directory, secret, events):
    """The library still serves the database."""
    secret.chmod(0o666)
    with Registry(directory, watch=False, metrics=None) as registry:
        registry.reload()
        (directory / "orders.yaml").write_text(GOOD % secret + "required: false\n")
        assert registry.reload().applied == ("orders",)
    (event,) = events.named("file.untrusted")
    assert event["path"] == str(secret)
    assert event["reason"] == f"{secret} can be changed by everybody (mode 0666)"


def test_a_strict_registry_refuses_and_an_indifferent_one_does_not_look(directory, events):
    """`trust` is an argument of the registry."""
    (directory / "orders.yaml").chmod(0o666)
    with pytest.raises(ConfigError, match=r"file\.untrusted"):
        Registry(directory, watch=False, metrics=None, trust="strict")
    assert len(events.named("file.untrusted")) == 1
    with Registry(directory, watch=False, metrics=None, trust="off") as registry:
        assert registry.names == ("orders",)
    assert len(events.named("file.untrusted")) == 1


KEY = "connection_settings: {host: db, dbname: orders, user: app, %s: key}\n"


@pytest.mark.parametrize(
    "mode, root_may", [(0o600, True), (0o400, True), (0o440, True), (0o640, True), (0o644, False)]
)
def test_libpqs_rule_for_private_keys_is_checked_at_load(tmp_path, mode, root_may):
    """For its owner alone, or root's and readable by the group; Kubernetes has its own hint."""
    (tmp_path / "key").write_text("key")
    (tmp_path / "key").chmod(mode)
    path: Path = tmp_path / "orders.yaml"
    path.write_text(KEY % "sslkey")
    if root_may and (os.geteuid() == 0 or not mode & 0o077):
        load_file(path)
        return
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("file.shared", "connection_settings.sslkey")
    assert f"is open to others (mode {mode:04o}, owned by" in problem.message
    assert problem.hint == "chmod 600; in Kubernetes: defaultMode: 0440, with an fsGroup"


def test_a_key_of_another_owner_must_not_be_open_to_its_group(tmp_path):
    """As libpq has it: the group may read only what belongs to root."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    (tmp_path / "key").write_text("key")
    (tmp_path / "key").chmod(0o640)
    os.chown(tmp_path / "key", STRANGER, -1)
    (tmp_path / "orders.yaml").write_text(KEY % "sslkey")
    with pytest.raises(ConfigError, match=f"owned by uid {STRANGER}"):
        load_file(tmp_path / "orders.yaml")


def test_an_open_password_file_is_a_problem(tmp_path):
    """Libpq ignores it with a warning, and the server then misses a password."""
    (tmp_path / "key").write_text("*:*:*:*:tea")
    (tmp_path / "key").chmod(0o640)
    (tmp_path / "orders.yaml").write_text(KEY % "passfile")
    with pytest.raises(ConfigError, match="libpq ignores it") as caught:
        load_file(tmp_path / "orders.yaml")
    (tmp_path / "key").chmod(0o600)
    load_file(tmp_path / "orders.yaml")
    assert caught.value.problems[0].hint == "chmod 600"
