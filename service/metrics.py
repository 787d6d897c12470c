"""Numbers about the service for Prometheus: base units, few labels, no text.

A registry of its own for each application, so that several servers in one process do not count
into one another. What is counted is entered many at a time, or when somebody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from models.bundle import Bundle
from models.explainer import Explanation
from service.deferred import Deferred

MEDIA_TYPE = CONTENT_TYPE_LATEST
STAGES = ("queue", "tokenize", "run", "decode")
REASONS = ("client_gone", "deadline", "overload")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SHARES = tuple(tenth / 10 for tenth in range(11))
_AT_ONCE = 64  # counts that are entered together; that takes half a millisecond


class Metrics:
    """What is counted; every method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter(
            "l2e_requests", "Requests.", ["route", "method", "code"], registry=registry
        )
        self._duration = Histogram(
            "l2e_request_duration_seconds",
            "From a request's head to the last of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage = Histogram(
            "l2e_stage_duration_seconds",
            "Of each text: waiting, tokenisation, runs that it was part of, words and rationale.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._rows = Histogram(
            "l2e_batch_rows", "Rows in a run of the graph.", buckets=_SIZES, registry=registry
        )
        self._tokens = Histogram(
            "l2e_batch_tokens",
            "Padded tokens in a run of the graph.",
            buckets=_TOKENS,
            registry=registry,
        )
        self._padding = Counter(
            "l2e_padding_tokens", "Computed tokens that were padding.", registry=registry
        )
        self._dropped = Counter(
            "l2e_dropped",
            "Texts that were not computed because nobody waited any more, or were refused.",
            ["reason"],
            registry=registry,
        )
        self._failed = Counter("l2e_failed", "Texts on which the server failed.", registry=registry)
        self._predictions = Counter(
            "l2e_predictions", "Texts labelled.", ["label"], registry=registry
        )
        self._fraction = Histogram(
            "l2e_rationale_fraction",
            "Share of a text's words that its rationale takes.",
            buckets=_SHARES,
            registry=registry,
        )
        self._bundle = Gauge(
            "l2e_bundle_info", "The loaded bundle.", ["name", "digest"], registry=registry
        )
        # Series that are there from the start, so that a rate is 0 and not missing.
        self._drops = {reason: self._dropped.labels(reason) for reason in REASONS}
        self._stages = {stage: self._stage.labels(stage) for stage in STAGES}
        self._counts = Deferred(_AT_ONCE)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        self._counts.make()
        return generate_latest(self.registry)

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Adds a number that is looked up when it is asked for."""
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def loaded(self, bundle: Bundle) -> None:
        """Notes what is served."""
        self._bundle.labels(bundle.manifest.name, bundle.digest).set(1)
        for label in bundle.manifest.labels:
            self._predictions.labels(label)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._counts.add(self._enter_request, route, method, str(status), seconds)

    def explained(self, explanation: Explanation, stages: Mapping[str, float]) -> None:
        """Counts a text that has its label, and how long its stages took, in seconds."""
        share = None
        if count := len(explanation.word_scores):
            share = explanation.word_scores.covered(explanation.rationale) / count
        # Neither the text nor its words are kept.
        self._counts.add(self._enter_text, explanation.label, stages, share)

    def ran(self, rows: int, padded: int, tokens: int) -> None:
        """Counts a run of the graph with so many padded tokens, of which `tokens` were real."""
        self._counts.add(self._enter_run, rows, padded, tokens)

    def failed(self) -> None:
        """Counts a text on which the server failed."""
        self._counts.add(self._failed.inc)

    def dropped(self, reason: str, texts: int = 1) -> None:
        """Counts texts that are not computed, for one of `REASONS`."""
        self._counts.add(self._drops[reason].inc, texts)

    def _enter_request(self, route: str, method: str, code: str, seconds: float) -> None:
        self._requests.labels(route, method, code).inc()
        self._duration.labels(route).observe(seconds)

    def _enter_text(self, label: str, stages: Mapping[str, float], share: float | None) -> None:
        self._predictions.labels(label).inc()
        for stage, seconds in stages.items():
            self._stages[stage].observe(seconds)
        if share is not None:
            self._fraction.observe(share)

    def _enter_run(self, rows: int, padded: int, tokens: int) -> None:
        self._rows.observe(rows)
        self._tokens.observe(padded)
        self._padding.inc(padded - tokens)
