"""How far a training is, as a file that the server reads while the training runs in a process of its own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from pipeline.formats.atomic import atomic_write

__all__ = ["ProgressHandler"]


class ProgressHandler:
    """Write a JSON after each epoch, with the names that 3D Slicer's progress bar knows.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.started = time.monotonic()

    def attach(self, engine: Engine) -> None:
        """Write at the end of each epoch, and of the training."""
        engine.add_event_handler(Events.STARTED, self._write)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._complete)

    def _write(self, engine: Engine, **more: Any) -> None:
        state = {"epoch": engine.state.epoch, "total_epochs": engine.state.max_epochs, **more}
        output = engine.state.output
        if isinstance(output, list) and output and "loss" in output[0]:
            state["loss"] = round(float(output[0]["loss"]), 4)
        with atomic_write(self.path) as file:
            file.write(json.dumps(state).encode())

    def _complete(self, engine: Engine) -> None:
        self._write(engine, total_time=round(time.monotonic() - self.started, 1))
