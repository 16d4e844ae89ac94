"""Three views: a transaction, an asynchronous one, and one that streams."""

from __future__ import annotations

from collections.abc import Iterator

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import path

from tests.contrib.django_project.shop.models import Item


def pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def order(request: HttpRequest) -> JsonResponse:
    with transaction.atomic():
        item = Item.objects.create(name="tea", details={"kind": "green"})
        locked = Item.objects.select_for_update().get(pk=item.pk)
        locked.details["seen"] = True
        locked.save()
    return JsonResponse({"id": item.pk, "pid": pid()})


async def later(request: HttpRequest) -> JsonResponse:
    item = await Item.objects.acreate(name="coffee")
    return JsonResponse({"id": item.pk, "count": await Item.objects.acount()})


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[str]:
        for item in Item.objects.order_by("pk").iterator(chunk_size=2):
            yield f"{item.name}\n"

    return StreamingHttpResponse(lines())


urlpatterns = [path("order", order), path("later", later), path("stream", stream)]
