"""The model worker: a process of its own that takes one job after the other.

It is asked on its standard input and answers on its standard output, a JSON object a line. Whatever libraries print
goes nowhere: a line about a file may name a patient. It ends with the server, however that ends.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import AR2UNetError
from pipeline.formats.nifti_header import printable
from pipeline.web.kinds import KINDS, Order, Outcome, Runner, WorkerOptions

__all__ = ["answer", "main"]

NICENESS = 5  # the page comes first
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)

Say = Callable[[Mapping[str, Any]], None]


def main() -> None:
    """Serve until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    os.umask(0o077)
    os.nice(NICENESS)
    with suppress(OSError):  # where memory runs out this process goes, not the server
        Path("/proc/self/oom_score_adj").write_text("1000")
    answers = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    _serve(sys.stdin.buffer, lambda message: _write(answers, message))


def _serve(requests: BinaryIO, say: Say) -> None:
    options = WorkerOptions(**json.loads(requests.readline()))
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(requests, orders), daemon=True).start()
    try:
        runners = {name: kind.make_runner(options) for name, kind in KINDS.items()}
        say({"type": "ready", "about": {name: dict(runner.about()) for name, runner in runners.items()}})
    except AR2UNetError as error:
        say({"type": "refused", "message": str(error)})
        return
    while True:
        answer(runners, orders.get(), say)


def _read_orders(requests: BinaryIO, orders: queue.SimpleQueue[Order]) -> None:
    """Pass orders on; leave at once when the server is gone, whatever is being computed."""
    for line in requests:
        orders.put(Order(**json.loads(line)))
    os._exit(0)


def answer(runners: Mapping[str, Runner], order: Order, say: Say) -> None:
    """Do one job, and say what became of it.

    Args:
        runners: By kind.
        order: The job.
        say: Gets messages of the types "progress", "done" and "failed".
    """

    def on_progress(stage: str, done: int, total: int) -> None:
        say({"type": "progress", "id": order.id, "stage": stage, "done": done, "total": total})

    try:
        outcome: Outcome = runners[order.kind].run(order, on_progress)
        say({"type": "done", "id": order.id, "roles": outcome.roles, "scan": Path(outcome.scan).name})
    except AR2UNetError as error:
        code = "storage_full" if _is_out_of_space(error.__cause__) else "bad_scan"
        say({"type": "failed", "id": order.id, "code": code, "message": _without_folders(str(error), order)})
    except MemoryError:
        say({"type": "failed", "id": order.id, "code": "worker_died", "message": "not enough memory for this scan"})
    except Exception as error:
        if _is_out_of_space(error):
            say({"type": "failed", "id": order.id, "code": "storage_full", "message": "no space left for the results"})
            return
        # Where it happened, but not the message: that may hold a patient's data.
        frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        message = f"an unexpected {type(error).__name__} in the worker"
        say({"type": "failed", "id": order.id, "code": "internal", "message": message, "frames": frames})


def _is_out_of_space(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in OUT_OF_SPACE


def _without_folders(message: str, order: Order) -> str:
    """Leave the server's own folders out of a message."""
    folders = {Path(order.work), *(Path(path).parent for path in (order.view, *order.files.values()))}
    for folder in folders:
        message = message.replace(f"{printable(folder)}/", "")
    return message


def _write(file: BinaryIO, message: Mapping[str, Any]) -> None:
    file.write(json.dumps(message).encode() + b"\n")
    file.flush()


if __name__ == "__main__":
    main()
