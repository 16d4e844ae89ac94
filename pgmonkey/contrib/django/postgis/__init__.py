"""The engine for PostGIS: `"ENGINE": "pgmonkey.contrib.django.postgis"`."""
