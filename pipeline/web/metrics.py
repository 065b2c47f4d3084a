"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

SECONDS = (0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The numbers of one server. No label holds anything about a person or the id of a job."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Counter("ar2unet_jobs", "Jobs that came to their end.", ["kind", "state"], registry=self.registry)
        self.seconds = Histogram(
            "ar2unet_job_seconds",
            "In the worker.",
            ["kind"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queued = Gauge("ar2unet_jobs_waiting", "Jobs that wait for the worker.", registry=self.registry)
        self.live = Gauge("ar2unet_jobs_live", "Jobs that are not at their end.", registry=self.registry)
        self.stored = Gauge("ar2unet_stored_bytes", "Of all jobs' files.", registry=self.registry)
        self.uploaded = Counter("ar2unet_uploaded_bytes", "Of all files taken.", registry=self.registry)
        self.restarts = Counter("ar2unet_worker_restarts", "Of the worker process.", registry=self.registry)
        self.answers = Counter("ar2unet_answers", "Requests answered.", ["method", "status"], registry=self.registry)

    def render(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self.registry)
