"""One table."""

from __future__ import annotations

from django.db import models


class Item(models.Model):
    """Something that is sold."""

    name = models.CharField(max_length=50)
    details = models.JSONField(default=dict)
    made_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name
