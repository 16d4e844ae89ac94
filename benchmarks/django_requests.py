"""Requests of a Django application, through the engine and through Django's own with its pool."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from wsgiref.util import setup_testing_defaults

from benchmarks.comparison import Race, Result
from benchmarks.setting import Setting, setting
from pgmonkey import Registry

POOL = 10
THREADS = (1, 8)
REQUESTS = 160
ROUNDS = 25
WAYS = {"pgmonkey": "default", "Django's pool": "pool", "Django, a connection a thread": "thread"}


def run() -> list[Result]:
    """Compare requests that run one transaction each, in one process, without a web server."""
    with setting() as place:
        place.declare("orders", "pool", size=POOL)
        with Registry(place.directory, watch=False, metrics=None) as registry:
            handler = _application(place, registry)
            results = []
            try:
                for number in THREADS:
                    race = Race(
                        {
                            name: _in_threads(handler, f"/{alias}", number)
                            for name, alias in WAYS.items()
                        },
                        rounds=ROUNDS,
                        operations=REQUESTS,
                    )
                    threads = f"{number} thread{'s' if number > 1 else ''}"
                    print(
                        race.table(
                            f"a Django request with a transaction, {threads}", "Django's pool"
                        )
                    )
                    results.append(
                        race.result(
                            f"a Django request, {threads} / Django's pool",
                            "pgmonkey",
                            "Django's pool",
                            bar=1.05,
                        )
                    )
            finally:
                _close()
            return results


def _application(place: Setting, registry: Registry) -> Any:
    """Return the WSGI handler of an application whose paths are the aliases of its databases."""
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    own = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": place.server.host,
        "PORT": place.server.port,
        "NAME": "postgres",
        "USER": "app",
        "PASSWORD": place.arguments["password"],
    }
    pool = {"min_size": 1, "max_size": POOL}

    def answer(request: HttpRequest, alias: str) -> HttpResponse:
        from django.db import connections, transaction

        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            cursor.execute("SELECT %s", [request.path])
            return HttpResponse(cursor.fetchone()[0])

    class Urls:
        urlpatterns = (path("<str:alias>", answer),)

    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=Urls,
        LOGGING_CONFIG=None,
        PGMONKEY={"REGISTRY": registry},
        DATABASES={
            "default": {"ENGINE": "pgmonkey.contrib.django", "NAME": "orders"},
            "pool": {**own, "OPTIONS": {"pool": pool}},
            "thread": {**own, "CONN_MAX_AGE": None},
        },
    )
    django.setup()
    return WSGIHandler()


def _in_threads(handler: Any, path: str, number: int) -> Callable[[], object]:
    def work() -> None:
        for _ in range(REQUESTS // number):
            _get(handler, path)

    def thread() -> None:
        work()
        _close_thread()

    def spread() -> None:
        threads = [threading.Thread(target=thread) for _ in range(number)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()

    return work if number == 1 else spread


def _get(handler: Any, path: str) -> None:
    environ = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    response = handler(environ, lambda *_: None)
    assert b"".join(response) == path.encode()
    response.close()


def _close_thread() -> None:
    from django.db import connections

    connections.close_all()


def _close() -> None:
    from django.db import connections

    _close_thread()
    for alias in WAYS.values():
        connections[alias].close_pool()
