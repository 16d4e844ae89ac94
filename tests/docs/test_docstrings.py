"""Every example of a docstring runs, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil

import fastapi
import yaml

import pgmonkey
from tests.docs.environment import Environment

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(pgmonkey.__path__, "pgmonkey.")
    if module.name
    not in (
        "pgmonkey.__main__",  # importing it runs the command line
        "pgmonkey.contrib.django.postgis.base",  # importing it needs GDAL, which may be missing
    )
)


def test_every_example_of_a_docstring_runs(tmp_path, database, canary, monkeypatch, capsys):
    """In a directory that has the registry of the repository, examples print what they show."""
    environment = Environment(tmp_path, database.server, canary)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    for name, value in environment.variables.items():
        monkeypatch.setenv(name, value)
    # The search for examples looks at every name of a module: also at Django's settings.
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.contrib.django_project.settings")
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"connection_settings": database.parameters()})
    )
    (tmp_path / "orders.yaml").write_text("connection_settings: {host: db, password: tea}")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    finder = doctest.DocTestFinder(exclude_empty=True)

    with environment.databases(), pgmonkey.Registry("registry.d") as registry:
        for module in map(importlib.import_module, MODULES):
            for example in finder.find(module, module.__name__):
                example.globs.update(
                    registry=registry,
                    manager=pgmonkey.PGConnectionManager(),
                    FastAPI=fastapi.FastAPI,
                )
                runner.run(example, clear_globs=False)
                for made in example.globs.values():
                    if isinstance(made, pgmonkey.Registry) and made is not registry:
                        made.close()
                    elif isinstance(made, pgmonkey.PGConnectionManager):
                        made.clear_cache()

    assert runner.tries > 40
    assert runner.failures == 0, capsys.readouterr().out
