"""GET /metrics, for Prometheus: what the engine counts, and how long clients wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from tools.generation.engine import EngineStats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAUGES = {
    "slots": "Texts that can be written at the same time",
    "active": "Texts that are being written",
    "waiting": "Texts that wait for a slot",
    "cache_bytes": "Bytes of states in the prefix cache",
    "cache_entries": "States in the prefix cache",
}
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts",
    "cached_tokens": "Tokens of prompts that the prefix cache had absorbed already",
    "completion_tokens": "Tokens that were written",
    "steps": "Steps of all slots",
    "prompt_pieces": "Pieces in which prompts were absorbed",
}


class Metrics:
    """What is measured, in a registry of its own.

    Args:
        stats: of the engine.
        states: how many clients keep.
    """

    def __init__(self, stats: Callable[[], EngineStats], states: Callable[[], int]):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats, states))
        self._first_token = Histogram(
            "liquidnet_time_to_first_token_seconds", "From a request to the first text of it", buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._duration = Histogram(
            "liquidnet_http_request_duration_seconds", "From a request to the end of its answer", ("route", "status"),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip

    def first_token(self, seconds: float) -> None:
        """A request has waited so long for its first text."""
        self._first_token.observe(seconds)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        self._duration.labels(route, str(status)).observe(seconds)

    def response(self) -> Response:
        """All of it, as Prometheus reads it."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats], states: Callable[[], int]):
        self._stats, self._states = stats, states

    def describe(self) -> list[Metric]:
        return []  # so that registering it asks the engine nothing

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"liquidnet_{name}", text, value=getattr(stats, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"liquidnet_{name}", text, value=getattr(stats, name))
        finished = CounterMetricFamily("liquidnet_texts_finished", "Texts that have ended", labels=["reason"])
        for reason, count in sorted(stats.requests.items()):
            finished.add_metric([reason], count)
        yield finished
        yield GaugeMetricFamily("liquidnet_states", "States that clients keep", value=self._states())
