"""A server in the test's own process, with a worker that a test can hold, kill, and watch."""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline.predictor import Predictor
from pipeline.web.app import create_app
from pipeline.web.kinds import Order, Runner
from pipeline.web.segmentation import SegmentationRunner
from pipeline.web.service import Service
from pipeline.web.settings import Settings
from pipeline.web.staging import StagingRunner
from pipeline.web.worker import answer
from pipeline.web.worker_process import WorkerDiedError

ENDED = ("finished", "failed", "cancelled")

# The DICOM series of the readers' tests, whose folder is not above this one.
_spec = importlib.util.spec_from_file_location(
    "dicom_fixtures", Path(__file__).parents[1] / "formats" / "dicom" / "conftest.py"
)
_dicom = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_dicom)
write_series, PATIENT = _dicom.write_series, _dicom.PATIENT


class ThreadWorker:
    """The worker's own code in a thread, with what a process can suffer."""

    def __init__(self, runner: SegmentationRunner) -> None:
        self.runners: dict[str, Runner] = {"segmentation": runner, "staging": StagingRunner()}
        self.go = threading.Event()  # cleared, it holds the next job before its first step
        self.go.set()
        self.starts = 0
        self.orders: list[Order] = []
        self.fault: Callable[[Order], None] | None = None
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def start(self) -> None:
        self.starts += 1
        self._messages = queue.Queue()
        self._messages.put(
            {"type": "ready", "about": {name: dict(runner.about()) for name, runner in self.runners.items()}}
        )

    def send(self, message: dict[str, Any]) -> None:
        order = Order(**message)
        self.orders.append(order)
        threading.Thread(target=self._work, args=(order, self._messages), daemon=True).start()

    def _work(self, order: Order, messages: queue.Queue[dict[str, Any] | None]) -> None:
        messages.put({"type": "progress", "id": order.id, "stage": "reading", "done": 0, "total": 0})
        self.go.wait(30)
        if self.fault is not None:
            self.fault(order)
        answer(self.runners, order, messages.put)

    def receive(self, timeout: float) -> dict[str, Any] | None:
        try:
            message = self._messages.get(timeout=timeout) if timeout else self._messages.get_nowait()
        except queue.Empty:
            return None
        if message is None:
            raise WorkerDiedError("the worker process ended by signal 9")
        return message

    def kill(self) -> None:
        self._messages = queue.Queue()

    def die(self) -> None:
        """As kill -9 from outside."""
        self._messages.put(None)


class Client(TestClient):
    """A browser or a script in front of the server, and the service behind it."""

    service: Service
    worker: ThreadWorker

    def begin(self, **new: Any) -> str:
        answer = self.post("/api/jobs", json=new)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def upload(self, job: str, content: bytes | Path, role: str = "flair"):
        content = content.read_bytes() if isinstance(content, Path) else content
        return self.post(f"/api/jobs/{job}/uploads", params={"role": role}, content=content)

    def submit(self, *files: Path, **roles: Path) -> str:
        """Upload a scan and start its job."""
        job = self.begin()
        for role, file in [*(("flair", file) for file in files), *roles.items()]:
            answer = self.upload(job, file, role)
            assert answer.status_code == 201, answer.text
        assert self.post(f"/api/jobs/{job}/start").status_code == 202
        return job

    def wait(self, job: str, *states: str) -> dict[str, Any]:
        """Wait until a job has ended, or has another of some states."""
        revision = None
        for _ in range(200):
            found = self.get(f"/api/jobs/{job}", params={} if revision is None else {"revision": revision}).json()
            if found["state"] in (states or ENDED):
                return found
            revision = found["revision"]
        raise AssertionError(f"still {found['state']}")


@pytest.fixture(scope="session")
def predictor(exported_bundle: Path) -> Predictor:
    return Predictor(exported_bundle, engine="onnx")


@pytest.fixture
def worker(predictor: Predictor) -> ThreadWorker:
    runner = SegmentationRunner.__new__(SegmentationRunner)  # one predictor for all tests
    runner.predictor = predictor
    return ThreadWorker(runner)


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        return Settings(**{"folder": tmp_path / "server", **changes})

    return make


@pytest.fixture
def serve(make_settings: Callable[..., Settings], worker: ThreadWorker) -> Iterator[Callable[..., Client]]:
    """Start a server; it is reached as a script would, without a browser's headers."""
    running: list[Client] = []

    def start(**changes: Any) -> Client:
        service = Service(make_settings(**changes), worker)
        service.start()
        client = Client(create_app(service), base_url="http://localhost:8000", raise_server_exceptions=True)
        client.service, client.worker = service, worker
        running.append(client.__enter__())
        return client

    yield start
    worker.go.set()
    for client in running:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve: Callable[..., Client]) -> Client:
    return serve()


@pytest.fixture
def scan(make_nifti: Callable[..., Path], anatomy: Any) -> Path:
    """A scan whose name nobody shall ever see."""
    return make_nifti("DOE_JANE.nii.gz", volume=anatomy[0])
