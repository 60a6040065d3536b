"""The engine's own totals at /metrics, asked for when Prometheus asks. Counts nothing itself."""

import dataclasses
import threading
from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hybrid_k2.engine import EngineCore
from hybrid_k2.server.metrics import PREFIX
from hybrid_k2.server.service import Service


class EngineTotals(Collector):
    """What runs and waits, how far a model is loaded, and every total that the engine keeps."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._reading = threading.Lock()  # scrapes run in threads of their own
        self._last_read = 0, 0.0  # bytes, seconds: of the CPU kernels when last asked

    def collect(self) -> Iterator[Metric]:
        done, total = self._service.progress
        loaded = 1.0 if self._service.is_loaded else done / max(total, 1)
        yield _gauge("model_load_progress", "Share of the model that is loaded", loaded)
        if self._service.is_loaded:
            yield from self._of(self._service.core)

    def _of(self, core: EngineCore) -> Iterator[Metric]:
        yield _gauge("num_requests_running", "Requests in the engine's places", core.num_running)
        yield _gauge("num_requests_waiting", "Requests that wait for a place", core.num_waiting)
        stats = dataclasses.asdict(core.stats)
        yield _counter(
            "num_preemptions", "Requests set back for want of pages", stats["preemptions"]
        )
        for field, value in stats.items():
            name = field.removesuffix("_s") + "_seconds" * field.endswith("_s")
            yield _counter(f"engine_{name}", "Since the model was opened", value)
        memory, *_ = core.cache_stats().tiers
        share = memory.pages_in_use / max(memory.pages_total, 1)
        yield _gauge("kv_cache_usage_perc", "Share of the KV pages that requests hold", share)
        yield from self._of_kernels(core)

    def _of_kernels(self, core: EngineCore) -> Iterator[Metric]:
        with self._reading:
            done = core.kernel_counters()
            last_bytes, last_s = self._last_read
            self._last_read = done.weight_bytes, done.busy_s
        busy_s = done.busy_s - last_s
        bytes_per_s = (done.weight_bytes - last_bytes) / busy_s if busy_s else 0.0
        yield _counter("weight_bytes", "Bytes of weights the CPU kernels read", done.weight_bytes)
        yield _counter("kernel_seconds", "Time that the CPU kernels took", done.busy_s)
        yield _counter(
            "experts_cpu", "Experts of tokens that the CPU computed, shared ones too", done.experts
        )
        yield _counter(
            "experts_gpu", "Experts of tokens that the GPU computed for the CPU", done.skipped
        )
        yield _gauge(
            "ram_bandwidth_gbps",
            "10^9 bytes of weights per second of the CPU kernels' time since the last scrape, "
            "whoever made it; 0 if none ran",
            bytes_per_s / 1e9,
        )


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, what, value)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, what, value)
