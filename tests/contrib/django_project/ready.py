"""The project in the process of the tests, set up once, and what of it works only then."""

from __future__ import annotations

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.contrib.django_project.settings")
django.setup()

from tests.contrib.django_project.shop.models import Item  # noqa: E402 - models need the set-up
from tests.contrib.django_project.urls import pid  # noqa: E402 - imports models

__all__ = ["Item", "pid"]
