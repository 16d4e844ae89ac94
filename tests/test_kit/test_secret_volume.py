"""The Kubernetes secret volume of the tests."""

from __future__ import annotations

import re
import stat

import pytest

from tests.kit.secret_volume import SecretVolume


def listing(volume):
    return sorted(path.name for path in volume.directory.iterdir())


def test_the_layout_is_the_kubelets(volume):
    """Visible names are links through `..data` to a directory named after the time."""
    assert volume.write({"username": "orders", "password": "tea"})

    stamp, data, *visible = listing(volume)
    stamp, data = sorted((stamp, data), key=len, reverse=True)
    assert re.fullmatch(r"\.\.\d{4}(_\d\d){5}\.\d+", stamp)
    assert data == "..data"
    assert visible == ["password", "username"]
    assert (volume.directory / "..data").readlink().name == stamp
    assert str(volume.path("password").readlink()) == "..data/password"
    assert volume.path("password").read_text() == "tea"
    assert stat.S_IMODE((volume.directory / stamp).stat().st_mode) == 0o755


def test_an_update_replaces_the_directory_and_not_the_links(volume):
    """After an update the links are the same objects, and the old directory is gone."""
    volume.write({"username": "orders", "password": "tea"})
    old = (volume.directory / "..data").readlink().name
    link = volume.path("password").lstat()

    assert volume.write({"username": "orders", "password": "coffee"})

    assert volume.path("password").read_text() == "coffee"
    assert (volume.path("password").lstat().st_ino, link.st_mtime_ns) == (
        link.st_ino,
        volume.path("password").lstat().st_mtime_ns,
    )
    assert old not in listing(volume)
    assert len(listing(volume)) == 4


def test_the_same_payload_is_not_written_again(volume):
    """A second write of the same payload changes nothing."""
    volume.write({"password": "tea"})
    before = listing(volume)

    assert not volume.write({"password": b"tea"})

    assert listing(volume) == before


def test_a_removed_key_disappears(volume):
    """A key that is no longer in the secret loses its visible link."""
    volume.write({"password": "tea", "token": "t"})

    volume.write({"password": "tea"})

    assert not volume.path("token").is_symlink()
    assert volume.path("password").read_text() == "tea"


@pytest.mark.parametrize("links_first", [False, True])
def test_every_reader_sees_all_of_one_version(tmp_path, links_first):
    """Between any two steps of an update the files are all old or all new."""
    volume = SecretVolume(tmp_path, links_first=links_first)
    volume.write({"username": "old", "password": "old"})

    seen = []
    for step in volume.steps({"username": "new", "password": "new"}):
        pair = {volume.path(key).read_text() for key in ("username", "password")}
        assert len(pair) == 1
        seen.append((step, pair.pop()))

    swap = [step for step, _ in seen].index("swap")
    assert {text for _, text in seen[:swap]} == {"old"}
    assert {text for _, text in seen[swap:]} == {"new"}


@pytest.mark.parametrize("links_first", [False, True])
def test_the_order_of_new_links_is_chosen(tmp_path, links_first):
    """Old kubelets make the link of a new key before the swap, new ones after it."""
    volume = SecretVolume(tmp_path, links_first=links_first)
    steps = list(volume.steps({"password": "tea"}))

    assert (steps.index("links") < steps.index("swap")) is links_first


@pytest.mark.parametrize("key", ["", "..data", "a/b", "a b", "..", "ä"])
def test_a_key_that_kubernetes_refuses_is_refused(volume, key):
    """A key that a Kubernetes secret cannot have is an error, and nothing is written."""
    with pytest.raises(ValueError, match="no key of a Kubernetes secret"):
        volume.write({"good": "1", key: "x"})

    assert listing(volume) == []


def test_files_have_the_chosen_mode(tmp_path):
    """`mode` sets the permissions, with any umask."""
    volume = SecretVolume(tmp_path / "new" / "mount", mode=0o640)
    volume.write({"password": "tea"})

    assert stat.S_IMODE(volume.path("password").stat().st_mode) == 0o640
