"""What Prometheus reads at /metrics: counts and times of requests, and what others collect.

Every metric is called hybrid_k2_*; those that vLLM has too appear a second time under its name, so
that dashboards made for it work. Knows nothing of HTTP; the engine's thread reports to it.
"""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from hybrid_k2.engine import StepOutput

PREFIX = "hybrid_k2_"
_VLLM_NAMES = frozenset(
    {
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "num_preemptions",
        "kv_cache_usage_perc",
        "num_requests_running",
        "num_requests_waiting",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "prompt_tokens",
        "generation_tokens",
        "request_success",
    }
)
# A prompt of 100 K tokens may take minutes; a token between 5 ms and a second.
_WAIT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 10)


class Metrics:
    """All of one server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._first_token_s = self._histogram(
            "time_to_first_token_seconds", "From a request to its first token", _WAIT_BUCKETS
        )
        self._between_tokens_s = self._histogram(
            "inter_token_latency_seconds", "From one token of an answer to the next", _TOKEN_BUCKETS
        )
        self._queue_s = self._histogram(
            "request_queue_time_seconds", "From a request to its place in the engine", _WAIT_BUCKETS
        )
        self._prefill_s = self._histogram(
            "request_prefill_time_seconds", "From its place to its first token", _WAIT_BUCKETS
        )
        self._decode_s = self._histogram(
            "request_decode_time_seconds", "From its first token to its last", _WAIT_BUCKETS
        )
        self._whole_s = self._histogram(
            "e2e_request_latency_seconds", "From a request to its end", _WAIT_BUCKETS
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self._generation_tokens = self._counter("generation_tokens", "Tokens of answers")
        self._cache_queries = self._counter(
            "prefix_cache_queries", "Tokens of prompts looked up in the prefix cache"
        )
        self._cache_hits = self._counter("prefix_cache_hits", "Tokens found there")
        self._ended = self._counter(
            "request_success", "Requests by how they ended", "finished_reason"
        )
        self._rejected = self._counter("admission_rejections", "Requests refused", "reason")

    def register(self, collector: Collector) -> None:
        """Shows what it collects from now on."""
        self._registry.register(collector)

    def request(self, num_prompt_tokens: int) -> "RequestTimer":
        """Begins to measure one answer."""
        return RequestTimer(self, num_prompt_tokens)

    def rejected(self, reason: str) -> None:
        """Counts a request that was turned away."""
        self._rejected.labels(reason).inc()

    def text(self, model_name: str) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(_WithVllmNames(self._registry, model_name))

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, what, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, what, labels, registry=self._registry)


class RequestTimer:
    """One answer's times; belongs to the engine's thread."""

    def __init__(self, metrics: Metrics, num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self._started_s = time.perf_counter()
        self._first_s: float | None = None
        self._latest_s: float | None = None

    def output(self, output: StepOutput) -> None:
        """Takes what a step gave the answer."""
        metrics, now_s = self._metrics, time.perf_counter()
        if output.token_id is not None:
            metrics._generation_tokens.inc()
            if self._latest_s is None:
                self._first_s = now_s
                waited_s = now_s - self._started_s
                metrics._first_token_s.observe(waited_s)
                metrics._queue_s.observe(output.queued_s)
                metrics._prefill_s.observe(max(waited_s - output.queued_s, 0.0))
                metrics._prompt_tokens.inc(self._num_prompt_tokens)
                metrics._cache_queries.inc(self._num_prompt_tokens)
                metrics._cache_hits.inc(output.num_cached_tokens)
            else:
                metrics._between_tokens_s.observe(now_s - self._latest_s)
            self._latest_s = now_s
        if output.finish_reason is not None:
            if self._first_s is not None:
                metrics._decode_s.observe(self._latest_s - self._first_s)
            metrics._whole_s.observe(now_s - self._started_s)
            metrics._ended.labels(output.finish_reason).inc()


class _WithVllmNames:
    """A registry whose metrics appear under vLLM's names, too, with the label of its dashboards."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._registry = registry
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            yield metric
            if metric.name.removeprefix(PREFIX) in _VLLM_NAMES:
                yield self._renamed(metric)

    def _renamed(self, metric: Metric) -> Metric:
        alias = Metric(_vllm(metric.name), metric.documentation, metric.type)
        label = {"model_name": self._model_name}
        alias.samples = [
            Sample(_vllm(s.name), {**s.labels, **label}, s.value, s.timestamp, s.exemplar)
            for s in metric.samples
        ]
        return alias


def _vllm(name: str) -> str:
    return f"vllm:{name.removeprefix(PREFIX)}"
