"""What the project itself tests, run by Django's runner, side by side, and by pytest-django."""

from __future__ import annotations

from django.db import connection
from django.test import TestCase, TransactionTestCase

from pgmonkey.contrib.django import get_registry
from tests.contrib.django_project.shop.models import Item


def _database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        return cursor.fetchone()[0]


def _orders() -> list[str]:
    """Return where a plain connection of the registry leads, and what it sees there."""
    with get_registry().get("orders") as conn:
        names = conn.execute("SELECT name FROM shop_item").fetchall()
        return [conn.info.dbname, *(name for (name,) in names)]


class First(TestCase):
    """Tests in a transaction."""

    def test_an_item(self) -> None:
        """An item is alone in the test database."""
        Item.objects.create(name="tea")
        assert Item.objects.count() == 1
        assert _database().startswith("test_")
        assert _orders() == [_database()]

    def test_a_request(self) -> None:
        """A view sees the transaction of the test."""
        Item.objects.create(name="tea")
        assert self.client.get("/order").status_code == 200
        assert Item.objects.count() == 2


class Second(TransactionTestCase):
    """Tests that commit."""

    def test_an_item(self) -> None:
        """The table is emptied afterwards."""
        Item.objects.create(name="tea")
        assert _orders() == [_database(), "tea"]
        assert self.client.get("/order").status_code == 200
        assert Item.objects.count() == 2
