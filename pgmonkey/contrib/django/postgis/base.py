"""Django's engine for PostGIS, on connections of a registry."""

from __future__ import annotations

from django.contrib.gis.db.backends.postgis import base as postgis

from pgmonkey.contrib.django import base


class DatabaseWrapper(postgis.DatabaseWrapper, base.DatabaseWrapper):
    """One thread's view of a database with PostGIS."""
