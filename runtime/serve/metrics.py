"""Numbers for Prometheus: ``/metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from diffplugin.runtime.restoration import Restoration

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Counters of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("diffplugin_requests", "HTTP requests", ["method", "route", "status"], **made)
        self._seconds = Histogram("diffplugin_request_seconds", "HTTP requests", ["route"], buckets=_SECONDS, **made)
        self._jobs = Counter("diffplugin_jobs", "Jobs that ended", ["state"], **made)
        self._job_seconds = Histogram("diffplugin_job_seconds", "From start to result", buckets=_SECONDS, **made)
        self._wait_seconds = Histogram("diffplugin_wait_seconds", "From acceptance to start", buckets=_SECONDS, **made)
        self._stages = Counter("diffplugin_stage_seconds", "Time in each kind of graph", ["stage"], **made)
        self._plugins = Counter("diffplugin_plugin_runs", "Plugins that ran", ["plugin"], **made)
        self._pixels = Counter("diffplugin_pixels", "Pixels of restored photos", **made)
        self._errors = Counter("diffplugin_errors", "Refused requests and failed jobs", ["kind"], **made)
        self.queued = Gauge("diffplugin_queue_jobs", "Jobs that wait", **made)
        self.running = Gauge("diffplugin_running_jobs", "Jobs that run", **made)
        self.max_queue = Gauge("diffplugin_queue_limit", "Jobs that may wait", **made)
        self.workers = Gauge("diffplugin_workers", "Photos restored at the same time", **made)
        self.reserved = Gauge("diffplugin_reserved_bytes", "Memory that running jobs have reserved", **made)
        self.limit = Gauge("diffplugin_reserved_limit_bytes", "Memory for running jobs", **made)
        self.ready = Gauge("diffplugin_ready", "1: the engines are prepared", **made)
        ProcessCollector(registry=self.registry)
        for state in ("done", "failed", "cancelled"):  # a rate needs the zero
            self._jobs.labels(state)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def job_ended(self, state: str) -> None:
        self._jobs.labels(state).inc()

    def job_done(self, made: Restoration, seconds: float, waited: float) -> None:
        self._job_seconds.observe(seconds)
        self._wait_seconds.observe(max(0.0, waited))
        for graph, took in made.timings.items():
            self._stages.labels(graph).inc(took)
        for stage in made.plan.chain:
            self._plugins.labels(stage.plugin).inc()
        self._pixels.inc(made.plan.output_size[0] * made.plan.output_size[1])

    def error(self, kind: str) -> None:
        self._errors.labels(kind).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
