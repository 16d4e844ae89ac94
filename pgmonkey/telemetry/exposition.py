"""The text of a scrape: what prometheus_client would write, byte for byte, in a fraction of its time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

import prometheus_client
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

#: Names that stand for themselves in every format, however the client wants names escaped.
_PLAIN: Final = r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*"
_KINDS: Final = frozenset({"counter", "gauge", "summary", "histogram"})
#: What a sample has beside name, labels and value; here nothing.
_BARE: Final = Sample("", {}, 0.0)[3:]
#: Prometheus' text has no place for these among the samples of a metric.
_APART: Final = ("_created", "_gsum", "_gcount")
_go: Final[Callable[[float], str]] = floatToGoString
_END: Final = "# EOF\n"


class Labels(dict[str, str]):
    """Hold the labels of a series together with their text, which is made once, not at each scrape.

    Args:
        labels: Names and values. They never change: the text would not follow.
    """

    __slots__ = ("text",)

    def __init__(self, labels: dict[str, str]) -> None:
        super().__init__(labels)
        self.text = _text(labels)


def expose(
    accept: str = "", metrics: prometheus_client.CollectorRegistry | None = None
) -> tuple[bytes, str]:
    """Return the body and the content type of the answer to a scrape.

    For the `/metrics` of an application that has many databases, in any framework. The bytes are
    those of `prometheus_client.generate_latest` or of its OpenMetrics twin, whichever the
    client asks for.

    Args:
        accept: The header `Accept` of the request.
        metrics: What to expose; default: prometheus_client's default registry.

    Example:
        >>> body, content_type = expose(accept="text/plain")
        >>> content_type.partition(";")[0]
        'text/plain'
    """
    if metrics is None:
        metrics = prometheus_client.REGISTRY
    encode, content_type = choose_encoder(accept)
    if re.search(r"escaping=(?!underscores|allow-utf-8)", content_type):
        return encode(metrics), content_type  # it changes names that need no escaping, too
    openmetrics = content_type.startswith("application/openmetrics-text")
    lines: list[str] = []
    for metric in metrics.collect():
        try:
            lines += _written(metric, openmetrics=openmetrics)
        except _NotPlainError:
            lines.append(encode(_One(metric)).decode().removesuffix(_END))
    if openmetrics:
        lines.append(_END)
    return "".join(lines).encode(), content_type


class _NotPlainError(Exception):
    """A metric has something that is left to prometheus_client."""


class _One(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _written(metric: Metric, *, openmetrics: bool) -> list[str]:
    """Return the lines of a metric.

    Raises:
        _NotPlainError: There is more to it than names, labels and values.
    """
    if metric.unit or metric.type not in _KINDS:
        raise _NotPlainError
    name = _plain(metric.name)
    told = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        told = told.replace('"', r"\"")
    elif metric.type == "counter":
        name += "_total"
    lines = [f"# HELP {name} {told}\n", f"# TYPE {name} {metric.type}\n"]
    last = None
    for sample in metric.samples:
        name, labels, value = sample[:3]
        if sample[3:] != _BARE:
            raise _NotPlainError
        if name != last:
            last = _plain(name)
            if not openmetrics and name.removeprefix(metric.name) in _APART:
                raise _NotPlainError
        text = labels.text if isinstance(labels, Labels) else _text(labels)
        number = float(value)
        # From a million on Go writes other digits than Python. What is no number is not less.
        digits = repr(number) if -1e6 < number < 1e6 else _go(number)
        lines.append(f"{name}{text} {digits}\n")
    return lines


def _text(labels: dict[str, str]) -> str:
    pairs = []
    for name, value in sorted(labels.items()):
        said = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        pairs.append(f'{_plain(name)}="{said}"')
    return f"{{{','.join(pairs)}}}" if pairs else ""


@lru_cache(maxsize=1024)  # a handful of names, each looked at for thousands of samples
def _plain(name: str) -> str:
    if re.fullmatch(_PLAIN, name) is None:
        raise _NotPlainError
    return name
