"""Settings of the project; what the tests vary comes from the environment."""

from __future__ import annotations

import os

SECRET_KEY = "nothing is signed"
INSTALLED_APPS = ["django.contrib.contenttypes", "tests.contrib.django_project.shop"]
ROOT_URLCONF = "tests.contrib.django_project.urls"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING_CONFIG = None

_MAX_AGE = os.environ.get("CONN_MAX_AGE", "0")
DATABASES = {
    "default": {
        "ENGINE": "pgmonkey.contrib.django",
        "NAME": "orders",
        "CONN_MAX_AGE": None if _MAX_AGE == "None" else int(_MAX_AGE),
    }
}
