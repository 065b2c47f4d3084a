"""How far the job in work is, and how long it and those that wait will still take."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

__all__ = ["LiveProgress", "Pace", "Stage"]

REMEMBERED_JOBS = 20

Stage = Literal["waiting", "reading", "network", "writing"]


@dataclass
class LiveProgress:
    """The job in work; changed by the scheduler's thread alone.

    Attributes:
        id: The job's.
        stage: "reading", "network" or "writing".
        done: Slices that went through the network.
        total: Slices in all; 0 while unknown.
        began: When the worker got it, as ``time.monotonic`` counts.
        first_slice: When the first slice was done; None before.
        last_slice: When the latest was.
    """

    id: str
    stage: Stage = "reading"
    done: int = 0
    total: int = 0
    began: float = field(default_factory=time.monotonic)
    first_slice: float | None = None
    last_slice: float | None = None

    def advance(self, stage: Stage, done: int, total: int) -> None:
        """Take in what the worker says."""
        if stage == "network":
            self.done, self.total = done, total
            self.last_slice = time.monotonic()
            self.first_slice = self.first_slice or self.last_slice
        elif stage == "writing":
            self.done = self.total
        self.stage = stage

    def network_seconds_left(self) -> float | None:
        """Return what the network still needs; None before two slices are done."""
        if self.first_slice is None or self.last_slice is None or self.done < 2:
            return None
        rate = (self.last_slice - self.first_slice) / (self.done - 1)
        return max(0.0, (self.total - self.done) * rate - (time.monotonic() - self.last_slice))


class Pace:
    """What the latest jobs took, from which that of the next is told."""

    def __init__(self) -> None:
        self._jobs: deque[float] = deque(maxlen=REMEMBERED_JOBS)
        self._writing: deque[float] = deque(maxlen=REMEMBERED_JOBS)

    def remember(self, live: LiveProgress) -> None:
        """Take in a job that has just ended well."""
        now = time.monotonic()
        self._jobs.append(now - live.began)
        if live.last_slice is not None:
            self._writing.append(now - live.last_slice)

    @property
    def job_seconds(self) -> float | None:
        """What a job takes; None before the first."""
        return fmean(self._jobs) if self._jobs else None

    def seconds_left(self, live: LiveProgress) -> float | None:
        """Return what the job in work still needs; None while nobody can say."""
        network = live.network_seconds_left()
        if network is not None:
            return network + (fmean(self._writing) if self._writing else 0.0)
        if self.job_seconds is None:
            return None
        return max(0.0, self.job_seconds - (time.monotonic() - live.began))
