from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmonkey.config.loader import load_file
from pgmonkey.config.secret_files import (
    LIMIT,
    SecretFileError,
    Snapshot,
    SnapshotMovedError,
    secret_text,
)
from tests.kit.pairs import assert_pairs

CONFIG = """\
connection_settings:
  host: db.example
  dbname: orders
  user: {from_file: USER}
  password: {from_file: PASSWORD}
"""


def read(path):
    """Read one secret file by itself."""
    with Snapshot() as snapshot:
        return secret_text(snapshot.read_bytes(str(path))[0])


@given(
    text=st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1
    ).filter(lambda text: not text.startswith("\ufeff")),
    end=st.sampled_from(["", "\n", "\r\n"]),
)
def test_exactly_one_trailing_newline_is_removed(text, end):
    """Everything else arrives byte for byte, other newlines and blanks included."""
    content = (text + end).encode()
    if not end and text.endswith("\n"):
        end = "\r\n" if text.endswith("\r\n") else "\n"
        text = text[: -len(end)]
    elif end == "\n" and text.endswith("\r"):
        text = text[:-1]
    if text:
        assert secret_text(content) == text
    else:
        with pytest.raises(SecretFileError, match="empty"):
            secret_text(content)


@pytest.mark.parametrize(
    "content, code",
    [
        (b"", "secret.empty"),
        (b"\n", "secret.empty"),
        (b"\r\n", "secret.empty"),
        (b"a\0b", "secret.nul"),
        (b"\xff\xfe", "secret.encoding"),
        (b"\xef\xbb\xbfpw", "secret.bom"),
        (b"x" * (LIMIT + 1), "secret.too_large"),
    ],
)
def test_bad_contents_are_refused(tmp_path, content, code):
    """Empty, NUL, not UTF-8, a byte order mark, too large: a code each, never the content."""
    path = tmp_path / "password"
    path.write_bytes(content)
    with pytest.raises(SecretFileError) as caught:
        read(path)
    assert caught.value.code == code
    assert caught.value.__context__ is None or not isinstance(
        caught.value.__context__, UnicodeDecodeError
    )


def test_the_limit_is_exact(tmp_path):
    """64 KiB is accepted."""
    path = tmp_path / "password"
    path.write_bytes(b"x" * LIMIT)
    assert len(read(path)) == LIMIT


def test_only_regular_files_are_read(tmp_path):
    """A directory, a pipe, a device, a socket's absence: refused, and never waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, code in [
        (tmp_path, "secret.not_regular"),
        (pipe, "secret.not_regular"),
        ("/dev/null", "secret.not_regular"),
        (tmp_path / "missing", "secret.missing"),
        (tmp_path / "missing" / "deeper", "secret.missing"),
        (pipe / "deeper", "secret.missing"),
        (tmp_path / ("x" * 300), "secret.missing"),
    ]:
        with pytest.raises(SecretFileError) as caught:
            read(path)
        assert caught.value.code == code, path


def test_links_are_followed_but_not_in_circles(tmp_path):
    """A link to a file is that file; a circle of links is missing."""
    (tmp_path / "file").write_text("tea\n")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "circle").symlink_to("circle")
    assert read(tmp_path / "link") == "tea"
    with pytest.raises(SecretFileError, match="leads nowhere"):
        read(tmp_path / "circle")


def test_a_file_that_may_not_be_read_says_who_tried(tmp_path):
    """Permission denied, with the uid of the process as a hint."""
    path = tmp_path / "password"
    path.write_text("tea")
    path.chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(SecretFileError) as caught:
            read(path)
        assert caught.value.code == "secret.permission"
        assert str(caught.value) == "may not be read (permission denied)"
        return
    tmp_path.chmod(0o755)
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:  # root reads anything: another account has to try
        try:
            os.setgid(65534)
            os.setuid(65534)
            try:
                os.chdir("/")
                with Snapshot() as snapshot:
                    snapshot.read_bytes(str(path))
            except SecretFileError as error:
                os.write(sender, f"{error.code} {error.hint}".encode())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    assert said == "secret.permission the process runs as uid 65534"


def test_a_snapshot_stays_with_one_state_of_a_volume(volume):
    """After a swap, what was opened before is void instead of mixed."""
    volume.write({"username": "old", "password": "old"})
    with Snapshot() as snapshot:
        assert snapshot.read_bytes(str(volume.path("username")))[0] == b"old"
        volume.write({"username": "new", "password": "new"})
        with pytest.raises(SnapshotMovedError):
            snapshot.read_bytes(str(volume.path("password")))


def test_a_file_beside_the_volumes_own_is_read_too(volume):
    """A plain file in a directory that has `..data` is no part of the volume, but a file."""
    volume.write({"username": "app"})
    (volume.directory / "extra").write_text("tea")
    assert read(volume.directory / "extra") == "tea"


@pytest.mark.slow
def test_a_user_is_never_paired_with_another_states_password(volume, tmp_path):
    """While a Kubernetes volume is replaced hundreds of times, every config is of one state."""
    file = tmp_path / "orders.yaml"
    file.write_text(
        CONFIG.replace("USER", str(volume.path("username"))).replace(
            "PASSWORD", str(volume.path("password"))
        )
    )

    def write(number):
        volume.write({"username": f"u{number}", "password": f"p{number}"})

    assert_pairs(write, lambda: load_file(file), states=100)


def test_paths_are_relative_to_the_config_file(tmp_path, monkeypatch):
    """Wherever the process runs, `from_file: secrets/x` is beside the config."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "user").write_text("app\n")
    (tmp_path / "secrets" / "password").write_text("tea\n\n")
    file = tmp_path / "orders.yaml"
    file.write_text(CONFIG.replace("USER", "secrets/user").replace("PASSWORD", "secrets/password"))
    monkeypatch.chdir("/")
    config = load_file(file)
    assert config.connect_kwargs("normal")["user"] == "app"
    assert config.connect_kwargs("normal")["password"] == "tea\n"
    assert config.watched_directories == {str(tmp_path / "secrets")}
    assert config.secret_modified == pytest.approx(
        (tmp_path / "secrets" / "user").stat().st_mtime, abs=5
    )


@settings(max_examples=50)
@given(content=st.binary(max_size=64))
def test_any_content_is_a_secret_or_an_error(content):
    """Whatever a file holds, the answer is text or a problem that does not quote it."""
    try:
        text = secret_text(content)
    except SecretFileError:
        pass
    else:
        assert content.decode().startswith(text)
