from __future__ import annotations

import pytest

from tests.kit import need


def test_what_is_there_is_returned(monkeypatch):
    """`need` returns a component that was found."""
    monkeypatch.setenv("CI", "true")

    assert need("/usr/bin/openssl", "openssl") == "/usr/bin/openssl"


def test_what_is_missing_skips_the_test(monkeypatch):
    """Without `CI=true` a missing component skips the test."""
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match="needs openssl"):
        need(None, "openssl")


def test_what_is_missing_fails_in_ci(monkeypatch):
    """With `CI=true` a missing component fails the test."""
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match="openssl is missing"):
        need(None, "openssl")
