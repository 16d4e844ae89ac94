"""The table."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Make it."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Item",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=50)),
                ("details", models.JSONField(default=dict)),
                ("made_at", models.DateTimeField(auto_now_add=True)),
            ],
        ),
    )
