"""The server's side of the worker process: start it, talk to it, end it."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from pipeline.web.kinds import WorkerOptions

__all__ = ["Worker", "WorkerDiedError", "WorkerProcess"]

READ_BYTES = 2**16
TOKEN_VARIABLE = "AR2UNET_TOKEN"  # not for a process that reads strangers' files
END_SECONDS = 5.0  # from the end of its pipes to its own


class WorkerDiedError(Exception):
    """The worker process is no more."""


class Worker(Protocol):
    """What the scheduler needs of a worker."""

    def start(self) -> None:
        """Start it; what it was before is ended."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Give an order. Raises WorkerDiedError."""

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """Return what it says next; None where it says nothing for so many seconds. Raises WorkerDiedError."""

    def kill(self) -> None:
        """End it, whatever it is at."""


class WorkerProcess:
    """``python -m pipeline.web.worker`` with its two pipes.

    Args:
        options: What it is started with.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()

    @property
    def pid(self) -> int | None:
        """The process's number; None where there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it; what it was before is ended."""
        self.kill()
        self._buffer.clear()
        # -P: a folder that the server happens to be started in is not where modules come from.
        command = [sys.executable, "-P", "-m", "pipeline.web.worker"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )
        self.send(self.options.as_dict())

    def send(self, message: Mapping[str, Any]) -> None:
        """Give an order.

        Raises:
            WorkerDiedError: If nobody takes it.
        """
        process = self._process
        if process is None or process.stdin is None:
            raise WorkerDiedError("the worker is not running")
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise WorkerDiedError(self._describe_end()) from error

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """Return what it says next; None where it says nothing for so many seconds.

        Raises:
            WorkerDiedError: If it will never say anything again.
        """
        process = self._process
        if process is None or process.stdout is None:
            raise WorkerDiedError("the worker is not running")
        if b"\n" not in self._buffer:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(timeout):
                    return None
            received = os.read(process.stdout.fileno(), READ_BYTES)
            if not received:
                raise WorkerDiedError(self._describe_end())
            self._buffer += received
            if b"\n" not in self._buffer:
                return None
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        message: dict[str, Any] = json.loads(line)
        return message

    def kill(self) -> None:
        """End it, whatever it is at."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # bytes that nobody will read
                    continue

    def _describe_end(self) -> str:
        try:
            status = None if self._process is None else self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        if status is None:
            return "the worker process ended"
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"the worker process ended {how}"
