"""Waiting for a job to change, without asking again and again."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Watchers"]


class Watchers:
    """Who waits for which job. Waiting is for the event loop, announcing for any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self.closed = False

    def attach(self) -> None:
        """Take the running event loop as the one that waits."""
        self._loop = asyncio.get_running_loop()

    def announce(self, job_id: str | None) -> None:
        """Wake those who wait for a job; None wakes all."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, job_id)

    def close(self) -> None:
        """Wake all, for good."""
        self.closed = True
        self._wake(None)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set when a job changes."""
        event = asyncio.Event()
        self._waiting[job_id].add(event)
        try:
            yield event
        finally:
            self._waiting[job_id].discard(event)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def _wake(self, job_id: str | None) -> None:
        waiting = list(self._waiting.values()) if job_id is None else [self._waiting.get(job_id, set())]
        for events in waiting:
            for event in events:
                event.set()
