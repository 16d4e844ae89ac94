"""The directories that Vault, Kubernetes, OpenShift and Docker give a container, as real mounts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.config.layouts import LAYOUTS
from tests.kit.command import environment

Seen = dict[str, Any]


def read_only(mount: str) -> str:
    return f"mount {mount} read-only (Kubernetes: readOnly: true on the volumeMount)"


IMAGE = "make the root file system read-only (readOnlyRootFilesystem: true)"

#: What a strict registry says of each, and what can be done.
PROBLEMS = {
    "vault": (
        "/mnt/root/vault/secrets/password belongs to another account (uid 100)",
        read_only("/mnt/root/vault/secrets"),
        "run what writes it as uid 10001",
        "trust that account with --trust-uid 100",
    ),
    "emptydir": (
        "/mnt/root/work can be changed by everybody (mode 0777)",
        read_only("/mnt/root/work"),
    ),
    "emptydir with fsGroup": (
        "/mnt/root/work can be changed by everybody (mode 2777)",
        read_only("/mnt/root/work"),
    ),
    "emptydir and root": (
        "/mnt/root/work can be changed by everybody (mode 0777)",
        read_only("/mnt/root/work"),
        "chmod go-w /mnt/root/work",
    ),
    "openshift": (
        "/mnt/root/work can be changed by everybody (mode 2777)",
        read_only("/mnt/root/work"),
    ),
    "openshift image": (
        "/mnt/root/opt/app can be changed by its group (mode 0775)",
        IMAGE,
        "chmod go-w /mnt/root/opt/app",
    ),
    "openshift image of a user": (
        "/mnt/root/opt/app belongs to another account (uid 1001)",
        IMAGE,
        "make root or uid 1000680000 its owner",
        "trust that account with --trust-uid 1001",
    ),
    "bind mount": (
        "/mnt/root/run/secrets belongs to another account (uid 1000)",
        read_only("/mnt/root/run/secrets"),
        "run what writes it as uid 10001",
        "trust that account with --trust-uid 1000",
    ),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def layouts() -> dict[str, Seen]:
    """What registries say of each layout."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-m", "true"], check=False).returncode:
        pytest.skip("mounting wants root, and a machine that lets it")
    done = subprocess.run(
        [unshare, "--mount", sys.executable, "-m", "tests.config.layouts"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Seen] = json.loads(done.stdout)
    return seen


@each_layout
def test_it_is_refused_and_the_hint_can_be_followed_there(
    layouts: dict[str, Seen], layout: str
) -> None:
    """The problem names the file or the volume, and what a person who runs that pod can do."""
    reason, *ways = PROBLEMS[layout]
    ((message, hint),) = layouts[layout]["strict"]
    assert message == f"the file is not trusted: {reason}"
    assert hint == f"{', '.join(ways)}, or use --trust warn"


@each_layout
def test_with_warn_it_is_used_and_the_status_shows_it(
    layouts: dict[str, Seen], layout: str
) -> None:
    """The warning names the same file and the same ways."""
    reason, *ways = PROBLEMS[layout]
    ((path, message, hint),) = layouts[layout]["warn"]
    assert f"{path} {message}" == reason
    assert hint.replace(", or ", ", ") == ", ".join(ways)


@each_layout
def test_a_read_only_mount_is_trusted_while_its_writer_goes_on(
    layouts: dict[str, Seen], layout: str
) -> None:
    """Whatever owners and modes it shows: nobody in the container can change it."""
    assert layouts[layout]["read-only"] == []
    assert layouts[layout].get("rotated", []) == []


@pytest.mark.parametrize("way", ["trusted uid", "same user"])
def test_vault_agent_may_be_trusted_or_run_as_the_same_user(
    layouts: dict[str, Seen], way: str
) -> None:
    """Its directory is sticky, so only the owner of the file matters."""
    assert layouts["vault"][way] == []


def test_a_trusted_account_opens_no_directory_to_others(layouts: dict[str, Seen]) -> None:
    """`trust_uids` is about owners alone: what everybody can change stays refused."""
    assert layouts["emptydir"]["trusted uid"] == layouts["emptydir"]["strict"]
    assert layouts["bind mount"]["trusted uid"] == []
